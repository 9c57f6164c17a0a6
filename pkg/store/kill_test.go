package store_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// childDir names the directory that this process, when it is a child of
// TestSIGKILL, writes to until it is killed; childSeed is what it does.
const (
	childDir  = "DAMSELFLY_STORE_TEST_CHILD"
	childSeed = "DAMSELFLY_STORE_TEST_CHILD_SEED"
)

// killsVariable sets how many processes TestSIGKILL kills.
const killsVariable = "DAMSELFLY_STORE_KILLS"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := writeUntilKilled(dir, os.Getenv(childSeed)); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

const killBlobs = 4

// killContents are the same in parent and child.
func killContents() ([]*storetest.Content, error) {
	var all []*storetest.Content
	for i := range killBlobs {
		data := bytes.Repeat([]byte{byte(i), 1, 2, 3, 4, 5, 6}, (i+1)*pieceLength/7+i)
		c, err := storetest.Describe(blob.FromBytes(data), data)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// writeUntilKilled fetches, seals and removes blobs for ever, several at once. It
// says "sealed i" once blob i is on the disk, and "gone i" before it removes it.
func writeUntilKilled(dir, seed string) error {
	s, err := store.Open(store.Config{Dir: dir}, nil)
	if err != nil {
		return err
	}
	contents, err := killContents()
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	fmt.Println("open")
	failed := make(chan error)
	for i, c := range contents {
		go func() {
			rng := rand.New(rand.NewPCG(n, uint64(i)))
			for {
				if err := oneRound(s, i, c, rng); err != nil {
					failed <- err
				}
			}
		}()
	}
	return <-failed
}

func oneRound(s *store.Store, i int, c *storetest.Content, rng *rand.Rand) error {
	b, err := s.Create(c.Digest, c.Size())
	if err != nil {
		return err
	}
	if err := b.AddLinks(0, c.Links); err != nil {
		return err
	}
	for _, k := range rng.Perm(c.Layout.Pieces()) {
		if err := b.Put(k, c.Piece(k)); err != nil {
			return err
		}
		if rng.IntN(4) == 0 {
			if err := s.Pin(c.Digest); err != nil { // writes the sidecar
				return err
			}
		}
	}
	if err := b.Seal(); err != nil {
		return err
	}
	fmt.Println("sealed", i)
	b.Release()
	if rng.IntN(2) == 0 {
		fmt.Println("gone", i)
		return s.Remove(c.Digest)
	}
	return nil
}

// TestSIGKILL kills a process that writes, at a random moment, again and again, and
// looks at what it left and at what it had said: what was sealed is, nothing wrong is
// served, and the next process goes on with it.
func TestSIGKILL(t *testing.T) {
	t.Parallel()
	contents, err := killContents()
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed) // of the moments, which no run has twice
	rng := rand.New(rand.NewPCG(seed, 0))
	dir := memoryDir(t)
	sealed, kept, partly := make([]bool, killBlobs), 0, 0
	for round := range variable(t, killsVariable, "50") {
		runAndKill(t, dir, rng, sealed)
		s := reopen(t, dir)
		for i, c := range contents {
			b, ok := s.Get(c.Digest)
			if ok && !b.Sealed() {
				partly++
			}
			if sealed[i] && (!ok || !b.Sealed()) {
				t.Errorf("kill %d: blob %d was sealed and is lost", round, i)
			}
			if ok {
				b.Release()
			}
			if sealed[i] {
				kept++
			}
			checkServed(t, s, c)
			if rng.IntN(4) == 0 {
				refill(t, s, c)
				whole(t, s, c)
				sealed[i] = true
			}
		}
		closeStore(t, s)
	}
	if kept == 0 || partly == 0 {
		t.Errorf("after all kills %d blobs were found sealed and %d in part: the test sees nothing", kept, partly)
	}
}

// runAndKill runs a child on dir, kills it after some of its lines and some more
// time, and notes in sealed what it had said.
func runAndKill(t *testing.T, dir string, rng *rand.Rand, sealed []bool) {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childDir+"="+dir, childSeed+"="+strconv.FormatUint(rng.Uint64(), 10))
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines, after := bufio.NewReader(out), time.Duration(rng.IntN(3000))*time.Microsecond
	for left := rng.IntN(20); ; left-- {
		if left == 0 { // what it still says while this waits is read all the same
			timer := time.AfterFunc(after, func() { _ = child.Process.Kill() })
			defer timer.Stop()
		}
		line, err := lines.ReadString('\n')
		if err == io.EOF { // a line that was cut off says nothing
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var i int
		switch what, _ := strings.CutSuffix(line, "\n"); {
		case scan(what, "sealed %d", &i):
			sealed[i] = true
		case scan(what, "gone %d", &i):
			sealed[i] = false
		}
	}
	_ = child.Wait() // killed
	if !child.ProcessState.Exited() {
		return
	}
	t.Fatalf("the child ended by itself: %v", child.ProcessState)
}

func scan(line, format string, i *int) bool {
	n, err := fmt.Sscanf(line, format, i)
	return n == 1 && err == nil
}

// TestLargeBlob puts pieces far beyond 4 GiB: offsets are 64 bits wide, the file
// is sparse and memory does not grow with the blob.
func TestLargeBlob(t *testing.T) {
	const size = 50 << 30
	dir := t.TempDir()
	s, err := store.OpenTapped(store.Config{Dir: dir}, nil, func(op store.Operation, _ *[]byte, _ int64, do func() error) error {
		if op.Kind == "allocate" {
			return nil // the disk of a test need not have so much
		}
		return do()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	c := storetest.Random(t, 1, 16<<20)
	b, err := s.Create(c.Digest, size)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	l := b.Layout()
	i := l.Pieces() - 2
	links := make([]byte, 64)
	next, err := blob.Advance(c.Digest, l, i, links[:32], c.Data)
	if err != nil {
		t.Fatal(err)
	}
	copy(links[32:], next)
	if err := b.AddLinks(i, links); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(i, c.Data); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if _, err := b.ReadAt(buf, l.Offset(i)+1000); err != nil || string(buf) != string(c.Data[1000:1100]) {
		t.Errorf("read at %d: %v", l.Offset(i)+1000, err)
	}
	if b.Front() != 0 || b.Have().Count() != 1 || s.Reserved() != size {
		t.Error("holds something else")
	}
}
