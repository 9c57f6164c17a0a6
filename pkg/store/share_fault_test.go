package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// A disk that loses a piece of a shared file: the blob starts over in a file of its
// own, and not one byte is written to the runtime's.
func TestSharedFileIsNeverWritten(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Random(t, 1, 2*pieceLength+1)
	theirs := runtimeFile(t, dir, c.Data)
	before := stat(t, theirs)
	lost := false
	var dropped []blob.Digest
	at := filepath.Join(dir, "store")
	s, err := store.OpenTapped(store.Config{Dir: at, OnDrop: func(d blob.Digest) { dropped = append(dropped, d) }}, nil,
		func(op store.Operation, _ *[]byte, off int64, do func() error) error {
			if lost && op.Kind == "read" && off == pieceLength && !strings.HasSuffix(op.Name, ".meta") {
				return syscall.EIO
			}
			return do()
		})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { wantError(t, "close", s.Close(), nil) }()
	wantError(t, "share", s.Share(t.Context(), c.Digest, theirs, noPace), nil)
	b, _ := s.Get(c.Digest)
	lost = true
	wantError(t, "read", b.ReadPiece(1, make([]byte, pieceLength)), store.ErrDamaged)
	wantError(t, "put into what was lost", b.Put(1, c.Piece(1)), store.ErrDamaged)
	b.Release()
	lost = false
	if !slices.Equal(dropped, []blob.Digest{c.Digest}) {
		t.Errorf("told of the loss of %v", dropped)
	}
	wrong := slices.Clone(c.Data)
	slices.Reverse(wrong)
	b = create(t, s, c)
	if n := len(b.Missing(c.Layout.All())); n == 0 {
		t.Error("nothing is missing")
	}
	b.Release()
	storetest.Fill(t, s, c)
	if ours := stat(t, pathOf(at, c.Digest, "")); ours.Ino == before.Ino || ours.Nlink != 1 {
		t.Errorf("the blob was fetched again into the runtime's file: %+v", ours)
	}
	checkUntouched(t, theirs, c.Data, before)
}

func TestSharedBytesDoNotCount(t *testing.T) {
	dir := t.TempDir()
	var all []*storetest.Content
	for i := range 4 {
		all = append(all, storetest.Random(t, uint64(i), 1000))
	}
	paths := make([]string, len(all))
	for i, c := range all {
		sub := filepath.Join(dir, fmt.Sprint(i))
		wantError(t, "mkdir", os.Mkdir(sub, 0o700), nil)
		paths[i] = runtimeFile(t, sub, c.Data)
	}
	s := storetest.Open(t, store.Config{Dir: filepath.Join(dir, "store"), MaxBytes: 1500})
	storetest.Fill(t, s, all[0])
	wantError(t, "share", s.Share(t.Context(), all[0].Digest, paths[0], noPace), nil)
	storetest.Fill(t, s, all[1])
	wantError(t, "share", s.Share(t.Context(), all[1].Digest, paths[1], noPace), nil)
	wantError(t, "share", s.Share(t.Context(), all[2].Digest, paths[2], noPace), nil)
	storetest.Fill(t, s, all[3])
	if info := s.Blobs(); len(info) != 4 || s.Reserved() != 1000 {
		t.Fatalf("%d blobs held, %d bytes count", len(info), s.Reserved())
	}
	// There is no room for another, although much more is held: all[3] gives way,
	// and none that would give nothing.
	next := storetest.Random(t, 9, 900)
	storetest.Fill(t, s, next)
	if held := digests(s.Blobs()); len(held) != 4 || slices.Contains(held, all[3].Digest) {
		t.Errorf("held %v", held)
	}
	// The runtime lets go of one that was fetched here: it counts again, is the
	// least recently used, and goes.
	wantError(t, "unshare", s.Unshare(all[0].Digest), nil)
	if held := digests(s.Blobs()); slices.Contains(held, all[0].Digest) || len(held) != 3 || s.Reserved() != 900 {
		t.Errorf("held %v, %d bytes count", held, s.Reserved())
	}
	wantError(t, "unshare again", s.Unshare(all[0].Digest), nil)
	// One that only the runtime had leaves, unless it is pinned.
	wantError(t, "pin", s.Pin(all[2].Digest), nil)
	wantError(t, "remove", s.Remove(next.Digest), nil)
	wantError(t, "unshare", s.Unshare(all[2].Digest), nil)
	if held := digests(s.Blobs()); !slices.Contains(held, all[2].Digest) || s.Reserved() != 1000 {
		t.Errorf("held %v, %d bytes count", held, s.Reserved())
	}
	wantError(t, "remove", s.Remove(all[1].Digest), nil)
	wantError(t, "remove", s.Remove(all[2].Digest), nil)
	if s.Reserved() != 0 {
		t.Errorf("%d bytes count of nothing", s.Reserved())
	}
}

func TestShareAcrossFileSystems(t *testing.T) {
	other, err := os.MkdirTemp("/dev/shm", "damselfly-test-")
	if err != nil {
		t.Fatalf("this test needs a second file system at /dev/shm: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(other) })
	c := storetest.Random(t, 1, pieceLength+1)
	theirs := runtimeFile(t, other, c.Data)
	s := storetest.Open(t, store.Config{})
	storetest.Fill(t, s, c)
	err = s.Share(t.Context(), c.Digest, theirs, noPace)
	wantError(t, "share", err, store.ErrCannotShare)
	if err == nil || !strings.Contains(err.Error(), "two file systems, /dev/shm and /") {
		t.Errorf("it does not say which file systems: %v", err)
	}
	b, _ := s.Get(c.Digest)
	mustRead(t, b, c)
	b.Release()
	if s.Reserved() != c.Size() {
		t.Errorf("%d bytes count", s.Reserved())
	}
}

// cloneFor makes a disk that has no hard links but clones.
func cloneFor(theirs *string, dir string) func(store.Operation, *[]byte, int64, func() error) error {
	return func(op store.Operation, _ *[]byte, _ int64, do func() error) error {
		switch op.Kind {
		case "link":
			return &os.LinkError{Op: "link", Old: *theirs, New: op.Name, Err: syscall.EXDEV}
		case "clone":
			data, err := os.ReadFile(*theirs)
			return errors.Join(err, os.WriteFile(filepath.Join(dir, "v1", op.Name), data, 0o600))
		}
		return do()
	}
}

func TestShareByClone(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Random(t, 1, pieceLength+1)
	theirs := runtimeFile(t, dir, c.Data)
	at := filepath.Join(dir, "store")
	s, err := store.OpenTapped(store.Config{Dir: at}, nil, cloneFor(&theirs, at))
	if err != nil {
		t.Fatal(err)
	}
	storetest.Fill(t, s, c)
	for range 2 {
		before := stat(t, pathOf(at, c.Digest, "")).Ino
		wantError(t, "share", s.Share(t.Context(), c.Digest, theirs, noPace), nil)
		if info := s.Blobs(); len(info) != 1 || !info[0].Shared {
			t.Errorf("blobs %+v", info)
		}
		b, _ := s.Get(c.Digest)
		mustRead(t, b, c)
		b.Release()
		if stat(t, theirs).Nlink != 1 || stat(t, pathOf(at, c.Digest, "")).Ino == before {
			t.Error("it was no clone")
		}
		// The runtime pulls the image anew: another file, another copy.
		if err := errors.Join(os.Remove(theirs), os.WriteFile(theirs, c.Data, 0o400)); err != nil {
			t.Fatal(err)
		}
	}
	wantError(t, "close", s.Close(), nil)
}

// TestShareFailsAtTheNthOperation breaks each operation of a Share in each way, and
// kills the store there. The runtime's file stays as it is, what was held is held,
// nothing wrong is read, and the next Share works.
func TestShareFailsAtTheNthOperation(t *testing.T) {
	c := storetest.Random(t, 1, pieceLength+9)
	for name, how := range faults {
		for _, had := range []string{"nothing", "sealed", "unsealed"} {
			t.Run(name+" "+had, func(t *testing.T) {
				for at := 1; breakShare(t, c, how, had, at, false); at++ {
					if at > 100 {
						t.Fatal("a Share never ends")
					}
				}
				for at := 1; name == "EIO" && breakShare(t, c, how, had, at, true); at++ {
				}
			})
		}
	}
}

// breakShare tells whether there was an operation at to break. crash: none after it
// comes through either.
func breakShare(t *testing.T, c *storetest.Content, how func(store.Operation, *[]byte, func() error) error, had string, at int, crash bool) bool {
	dir := t.TempDir()
	theirs := runtimeFile(t, dir, c.Data)
	before := stat(t, theirs)
	in := filepath.Join(dir, "store")
	k := &breaker{how: how, rest: crash}
	s, err := store.OpenTapped(store.Config{Dir: in}, nil, k.tap)
	if err != nil {
		t.Fatal(err)
	}
	switch had {
	case "sealed":
		storetest.Fill(t, s, c)
	case "unsealed":
		b := create(t, s, c)
		for i := range c.Layout.Pieces() {
			wantError(t, "put", b.Extend(i, c.Piece(i)), nil)
		}
		defer b.Release()
	}
	k.mu.Lock()
	k.at = k.seen + at
	k.mu.Unlock()
	err = s.Share(t.Context(), c.Digest, theirs, noPace)
	checkUntouched(t, theirs, c.Data, before)
	if crash {
		s.Kill()
	}
	k.mend()
	b, ok := s.Get(c.Digest)
	if !crash && ok != (had != "nothing" || err == nil) {
		t.Errorf("operation %d %+v: held %v, share ended with %v", at, k.last, ok, err)
	}
	if ok {
		mustRead(t, b, c)
		b.Release()
	}
	if !crash {
		s.Kill()
	}
	again, err := store.OpenTapped(store.Config{Dir: in}, nil, k.tap)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Kill()
	for _, info := range again.Blobs() {
		b, ok := again.Get(info.Digest)
		if !ok {
			t.Errorf("operation %d %+v: a crash leaves a blob that cannot be used", at, k.last)
			continue
		}
		wantError(t, "verify", b.Verify(t.Context()), nil)
		if b.Sealed() {
			mustRead(t, b, c)
		}
		b.Release()
		var ours syscall.Stat_t
		if syscall.Stat(pathOf(in, c.Digest, ""), &ours) == nil && ours.Ino == before.Ino && !info.Shared {
			t.Errorf("operation %d %+v: a crash makes the runtime's file one of ours to write to", at, k.last)
		}
	}
	if n := stat(t, theirs).Nlink; n > 2 || n > 1 && len(again.Blobs()) == 0 {
		t.Errorf("operation %d %+v: a crash leaves %d names of the runtime's file", at, k.last, n)
	}
	wantError(t, "the next share", again.Share(t.Context(), c.Digest, theirs, noPace), nil)
	if ours := stat(t, pathOf(in, c.Digest, "")); ours.Ino != before.Ino {
		t.Errorf("operation %d %+v: the next share shares nothing", at, k.last)
	}
	checkUntouched(t, theirs, c.Data, before)
	return k.broke
}

// TestPowerCutWhileSharing cuts the power before each operation of a Share: what was
// sealed on the disk stays so, what a Share has returned from too, and nothing wrong
// is ever read.
func TestPowerCutWhileSharing(t *testing.T) {
	c := storetest.Random(t, 1, pieceLength+9)
	for _, had := range []string{"nothing", "part", "sealed", "unsealed"} {
		t.Run(had, func(t *testing.T) {
			for n := 1; cutShare(t, c, had, n); n++ {
				if t.Failed() {
					t.Fatalf("power cut before operation %d", n)
				}
			}
		})
	}
}

// cutShare tells whether the power went before the Share was through.
func cutShare(t *testing.T, c *storetest.Content, had string, n int) bool {
	dir := memoryDir(t)
	theirs := runtimeFile(t, memoryDir(t), c.Data)
	p := newPlatter(t, rand.New(rand.NewPCG(uint64(n), 1)), dir)
	s, err := store.OpenTapped(store.Config{Dir: dir}, nil, p.tap)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	if had != "nothing" {
		b := create(t, s, c)
		wantError(t, "put", b.Extend(0, c.Piece(0)), nil)
		switch had {
		case "part":
			b.Release()
		case "unsealed":
			wantError(t, "put", b.Extend(1, c.Piece(1)), nil)
			defer b.Release()
		case "sealed":
			wantError(t, "put", b.Extend(1, c.Piece(1)), nil)
			wantError(t, "seal", b.Seal(), nil)
			b.Release()
		}
	}
	p.cutAt = p.seen + n
	err = s.Share(t.Context(), c.Digest, theirs, noPace)
	for range 5 {
		left, openErr := store.OpenTapped(store.Config{Dir: p.cut(t)}, nil, (&breaker{}).tap)
		if openErr != nil {
			t.Fatal(openErr)
		}
		if kept := slices.Equal(left.OnDisk(), []blob.Digest{c.Digest}); !kept && (had == "sealed" || err == nil) {
			t.Errorf("the blob is lost, share ended with %v", err)
		}
		if b, ok := left.Get(c.Digest); ok {
			wantError(t, "verify", b.Verify(t.Context()), nil)
			if b.Sealed() {
				mustRead(t, b, c)
			}
			b.Release()
		}
		left.Kill()
	}
	return !p.alive()
}
