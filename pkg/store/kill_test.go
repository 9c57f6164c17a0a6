package store_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"go.uber.org/goleak"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// childDir names the directory that this process, when it is a child of
// TestSIGKILL, writes to until it is killed.
const childDir = "DAMSELFLY_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := writeUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// killContent is the same in parent and child.
func killContent(i int) (*storetest.Content, error) {
	data := bytes.Repeat([]byte{byte(i), 1, 2, 3, 4, 5, 6}, 5*pieceLength/7+i)
	return storetest.Describe(blob.FromBytes(data), data)
}

const killBlobs = 3

// writeUntilKilled fetches and removes blobs for ever, a line for each piece.
func writeUntilKilled(dir string) error {
	s, err := store.Open(store.Config{Dir: dir}, nil)
	if err != nil {
		return err
	}
	for {
		for i := range killBlobs {
			c, err := killContent(i)
			if err != nil {
				return err
			}
			_ = s.Remove(c.Digest)
			b, err := s.Create(c.Digest, c.Size())
			if err != nil {
				return err
			}
			for k := range c.Layout.Pieces() {
				fmt.Println(i, k)
				if err := b.Extend(k, c.Piece(k)); err != nil {
					return err
				}
				if err := s.Pin(c.Digest); err != nil { // writes the sidecar
					return err
				}
			}
			b.Release()
		}
	}
}

// TestSIGKILL kills a process while it writes, again and again, and goes on
// where it was: the lock is free, nothing wrong is served.
func TestSIGKILL(t *testing.T) {
	dir := t.TempDir()
	kept := 0
	for round := range 5 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childDir+"="+dir)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 7+7*round && lines.Scan(); n++ {
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait()

		s := reopen(t, dir)
		for i := range killBlobs {
			c, err := killContent(i)
			if err != nil {
				t.Fatal(err)
			}
			checkServed(t, s, c)
			if b, ok := s.Get(c.Digest); ok {
				kept += b.Have().Count()
				b.Release()
			}
			if round%2 == 1 {
				storetest.Fill(t, s, c)
				whole(t, s, c)
			}
		}
		closeStore(t, s)
	}
	if kept == 0 {
		t.Error("nothing ever survived")
	}
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
