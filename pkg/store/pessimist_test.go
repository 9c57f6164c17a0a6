package store_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// flaky is a disk that fails, with err, the operations that are named.
type flaky struct {
	mu   sync.Mutex
	kind string
	part string // of the name
	err  error
	done int // how many operations of the kind were done
}

func (k *flaky) tap(op store.Operation, _ *[]byte, _ int64, do func() error) error {
	k.mu.Lock()
	hit := op.Kind == k.kind && strings.Contains(op.Name, k.part)
	if hit {
		k.done++
	}
	err := k.err
	k.mu.Unlock()
	if hit && err != nil {
		return err
	}
	return do()
}

func (k *flaky) set(kind, part string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kind, k.part, k.err, k.done = kind, part, err, 0
}

func openFlaky(t *testing.T, dir string, k *flaky) *store.Store {
	t.Helper()
	s, err := store.OpenTapped(store.Config{Dir: dir}, nil, k.tap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestFileIsCutShort: the file of a blob ends early, and the first that is seen of it is
// that its last piece is gone. Once that one is written anew, the file is as long as ever
// and has a hole where the others were.
func TestFileIsCutShort(t *testing.T) {
	dir := t.TempDir()
	s := storetest.Open(t, store.Config{Dir: dir})
	c := storetest.Random(t, 1, 5*pieceLength)
	storetest.Fill(t, s, c)
	b, _ := s.Get(c.Digest)
	defer b.Release()
	if err := os.Truncate(pathOf(dir, c.Digest, ""), 2*pieceLength+7); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, pieceLength)
	wantError(t, "read", b.ReadPiece(4, buf), store.ErrDamaged)
	if err := b.Put(4, c.Piece(4)); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		err := b.ReadPiece(i, buf)
		if err == nil && !bytes.Equal(buf, c.Piece(i)) {
			t.Errorf("piece %d serves wrong bytes", i)
		}
		if gone := i == 2 || i == 3; gone != errors.Is(err, store.ErrMissing) {
			t.Errorf("piece %d: %v", i, err)
		}
	}
	storetest.Fill(t, s, c)
	mustRead(t, b, c)
}

// TestDiskThatDoesNotAnswer: a directory, or a sidecar, that could not be read for a
// moment takes no sealed blob away.
func TestDiskThatDoesNotAnswer(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Random(t, 1, 2*pieceLength)
	k := &flaky{}
	s := openFlaky(t, dir, k)
	storetest.Fill(t, s, c)
	closeStore(t, s)

	for _, test := range []struct{ kind, part string }{{"list", c.Digest.Hex()[:2]}, {"openread", ".meta"}, {"stat", c.Digest.Hex()}} {
		k.set(test.kind, test.part, syscall.EIO)
		s = openFlaky(t, dir, k)
		if _, ok := s.Get(c.Digest); ok || k.done == 0 {
			t.Fatalf("%s did not fail", test.kind)
		}
		k.set("write", "", nil)
		b := create(t, s, c)
		if !b.Sealed() || k.done > 0 {
			t.Fatalf("after a failed %s the blob is sealed: %v; %d writes", test.kind, b.Sealed(), k.done)
		}
		mustRead(t, b, c)
		b.Release()
		if got := s.Reserved(); got != c.Size() {
			t.Errorf("%d bytes reserved", got)
		}
		closeStore(t, s)
	}

	s = openFlaky(t, dir, k)
	b, _ := s.Get(c.Digest)
	defer b.Release()
	k.set("read", ".meta", syscall.EIO)
	if _, links := b.Links(0, 2); len(links) > 0 {
		t.Error("links out of a sidecar that cannot be read")
	}
	wantError(t, "pin", s.Pin(c.Digest), syscall.EIO)
	mustRead(t, b, c)
	k.set("", "", nil)
	if _, links := b.Links(0, 2); !bytes.Equal(links, c.Links) {
		t.Error("links are lost")
	}
}

// TestNamesThatAreFoundAreNotDurable: a process that was killed before its last sync
// leaves names that the next one sees and that a power cut may still take. It syncs them
// once it used the blob.
func TestNamesThatAreFoundAreNotDurable(t *testing.T) {
	contents := killable(t)[:1]
	for seed := range uint64(10) {
		l := newLife(t, rand.New(rand.NewPCG(seed, 5)), contents)
		l.p.fault = func(op store.Operation, _ *[]byte) (bool, error) {
			if op.Kind == "syncdir" {
				return false, syscall.EIO
			}
			return false, nil
		}
		b := create(t, l.s, contents[0])
		wantError(t, "put", b.Extend(0, contents[0].Piece(0)), nil)
		wantError(t, "seal", b.Seal(), nil)
		l.end()
		l.p.fault = nil
		l.open()
		l.look(0) // gets it, and lets it go
		l.look(0)
		if !l.committed[0] {
			t.Error("a blob that was used is not on the disk")
		}
		l.judge(l.p.cut(t))
		l.end()
	}
}

// TestMemoryIsNotTheDisk: after a sync that failed, memory may hold what the disk does
// not, and the next sync says nothing of it. When the blob could not be deleted either,
// the next process proves what is on the disk.
func TestMemoryIsNotTheDisk(t *testing.T) {
	contents := killable(t)[1:2]
	c := contents[0]
	for seed := range uint64(10) {
		l := newLife(t, rand.New(rand.NewPCG(seed, 6)), contents)
		b := create(t, l.s, c)
		for i := range c.Layout.Pieces() {
			wantError(t, "put", b.Extend(i, c.Piece(i)), nil)
		}
		wantError(t, "pin", l.s.Pin(c.Digest), nil) // writes the sidecar
		l.p.fault = func(op store.Operation, _ *[]byte) (bool, error) {
			if op.Kind == "sync" || op.Kind == "remove" {
				return false, syscall.EIO
			}
			return false, nil
		}
		wantError(t, "seal", b.Seal(), store.ErrDamaged)
		l.end()
		l.p.fault = nil
		l.open()
		if _, ok := l.s.Get(c.Digest); !ok {
			t.Fatal("the blob was deleted all the same: the test sees nothing")
		}
		refill(t, l.s, c)
		l.look(0)
		if !l.committed[0] {
			t.Error("not on the disk after its Seal")
		}
		l.judge(l.p.cut(t))
		l.end()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestScarcityIsNoDamage: a read that fails for want of memory tells nothing of the disk.
func TestScarcityIsNoDamage(t *testing.T) {
	k := &flaky{}
	s := openFlaky(t, t.TempDir(), k)
	c := storetest.Random(t, 1, 2*pieceLength)
	storetest.Fill(t, s, c)
	b, _ := s.Get(c.Digest)
	defer b.Release()
	b.Links(0, 1) // reads the sidecar
	k.set("read", "", syscall.ENOMEM)
	err := b.ReadPiece(0, make([]byte, pieceLength))
	wantError(t, "read", err, syscall.ENOMEM)
	if errors.Is(err, store.ErrDamaged) || !b.Sealed() {
		t.Fatalf("the blob is damaged: %v", err)
	}
	k.set("", "", nil)
	mustRead(t, b, c)
}

// TestFilesOfAnotherVersionAreNotWrittenTo: what was left alone gives way to a new file.
// The old one may have other names.
func TestFilesOfAnotherVersionAreNotWrittenTo(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Random(t, 1, 2*pieceLength)
	s := storetest.Open(t, store.Config{Dir: dir})
	b := create(t, s, c)
	if err := b.Extend(0, c.Piece(0)); err != nil {
		t.Fatal(err)
	}
	b.Release()
	closeStore(t, s)
	setVersion(t, pathOf(dir, c.Digest, ".meta"), 2)
	other := filepath.Join(t.TempDir(), "other")
	if err := os.Link(pathOf(dir, c.Digest, ".part"), other); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	s = reopen(t, dir)
	storetest.Fill(t, s, c)
	if after, err := os.ReadFile(other); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the other name's file has changed: %v", err)
	}
}

// TestOneWriterAPiece: a piece that two put at once is written once, so that nobody
// writes to a blob that is sealed; when the first fails, the second writes it.
func TestOneWriterAPiece(t *testing.T) {
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			writes, open := 0, make(chan struct{})
			s, err := store.OpenTapped(store.Config{Dir: t.TempDir()}, nil, func(op store.Operation, _ *[]byte, _ int64, do func() error) error {
				if op.Kind != "write" || !strings.HasSuffix(op.Name, ".part") {
					return do()
				}
				mu.Lock()
				writes++
				first := writes == 1
				mu.Unlock()
				<-open
				if first && fails {
					return syscall.EIO
				}
				return do()
			})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			c := storetest.Random(t, 1, pieceLength)
			b := create(t, s, c)
			defer b.Release()
			done := make(chan error, 3)
			for range 3 {
				go func() { done <- b.Put(0, c.Piece(0)) }()
			}
			synctest.Wait()
			mu.Lock()
			if writes != 1 {
				t.Errorf("%d writes of a piece at once", writes)
			}
			mu.Unlock()
			close(open)
			failed := 0
			for range 3 {
				if err := <-done; err != nil {
					wantError(t, "put", err, syscall.EIO)
					failed++
				}
			}
			if fails != (failed == 1) || fails != (writes == 2) || failed > 1 {
				t.Errorf("%d of 3 puts failed, %d writes", failed, writes)
			}
			mustRead(t, b, c)
		})
	}
}

// TestLateWriteErrorLosesTheBlob: a network file system may tell of a failed write when
// the file is closed.
func TestLateWriteErrorLosesTheBlob(t *testing.T) {
	k := &flaky{}
	s := openFlaky(t, t.TempDir(), k)
	c := storetest.Random(t, 1, 2*pieceLength)
	b := create(t, s, c)
	if err := b.Extend(0, c.Piece(0)); err != nil {
		t.Fatal(err)
	}
	k.set("close", ".part", syscall.EDQUOT)
	b.Release()
	k.set("", "", nil)
	if _, ok := s.Get(c.Digest); ok {
		t.Error("a blob whose writes failed is held")
	}
	storetest.Fill(t, s, c)
	whole(t, s, c)
}

// TestFailedSyncIsNotTriedAgain: the kernel drops what it could not write, and calls the
// next sync a success. That the disk was full is no exception.
func TestFailedSyncIsNotTriedAgain(t *testing.T) {
	for _, cause := range []error{syscall.EIO, syscall.ENOSPC, syscall.EDQUOT} {
		k := &flaky{}
		s := openFlaky(t, t.TempDir(), k)
		old, c := storetest.Random(t, 1, 100), storetest.Random(t, 2, 100)
		storetest.Fill(t, s, old) // there is something to evict
		b := create(t, s, c)
		if err := b.Extend(0, c.Piece(0)); err != nil {
			t.Fatal(err)
		}
		k.set("sync", ".part", cause)
		wantError(t, "seal", b.Seal(), store.ErrDamaged)
		b.Release()
		if _, ok := s.Get(c.Digest); ok || k.done != 1 {
			t.Errorf("%v: held %v after %d syncs", cause, ok, k.done)
		}
	}
}
