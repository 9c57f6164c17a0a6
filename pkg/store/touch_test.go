package store_test

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// unseen has harm change a file, and puts its time of modification back. It returns once
// the kernel's clock of files has moved on.
func unseen(tb testing.TB, name string, harm func()) {
	tb.Helper()
	before := stat(tb, name)
	harm()
	for {
		must(tb, os.Chtimes(name, time.Time{}, time.Unix(before.Mtim.Unix())))
		if stat(tb, name).Ctim != before.Ctim {
			return
		}
	}
}

// writeMapped changes a byte of a file by a mapping of it.
func writeMapped(tb testing.TB, name string, at int64) {
	tb.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(tb, err)
	defer f.Close()
	info, err := f.Stat()
	must(tb, err)
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(tb, err)
	data[at] ^= 0x40
	must(tb, unix.Msync(data, unix.MS_SYNC))
	must(tb, unix.Munmap(data))
}

// replace puts another file with a byte changed under the name.
func replace(tb testing.TB, name string, at int64) {
	tb.Helper()
	data, err := os.ReadFile(name)
	must(tb, err)
	data[at] ^= 0x40
	must(tb, os.WriteFile(name+".new", data, 0o600))
	must(tb, os.Rename(name+".new", name))
}

// TestTimesPutBack: who writes to the file of a sealed blob and puts its time of
// modification back gives nobody a wrong byte; who only touches it costs nobody the blob.
func TestTimesPutBack(t *testing.T) {
	const at = pieceLength + 5
	for name, c := range map[string]struct {
		harm func(tb testing.TB, path string)
		lost int
	}{
		"eight bytes": {func(tb testing.TB, path string) {
			for i := range int64(8) {
				flip(tb, path, at+i)
			}
		}, 1},
		"by a mapping": {func(tb testing.TB, path string) { writeMapped(tb, path, at) }, 1},
		"another file": {func(tb testing.TB, path string) { replace(tb, path, at) }, 1},
		"cut short, and filled with nothing": {func(tb testing.TB, path string) {
			must(tb, os.Truncate(path, pieceLength))
			must(tb, os.Truncate(path, 3*pieceLength))
		}, 2},
		"written with the same bytes": {func(tb testing.TB, path string) { flip(tb, path, at); flip(tb, path, at) }, 0},
		"another mode":                {func(tb testing.TB, path string) { must(tb, os.Chmod(path, 0o640)) }, 0},
		"another name, and not":       {func(tb testing.TB, path string) { must(tb, os.Link(path, path+".x")); must(tb, os.Remove(path+".x")) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			dropped := 0
			s := storetest.Open(t, store.Config{Dir: dir, OnDrop: func(blob.Digest) { dropped++ }})
			content := storetest.Random(t, 1, 3*pieceLength)
			storetest.Fill(t, s, content)
			path := pathOf(dir, content.Digest, "")
			for range 2 { // proven once, it is trusted again
				unseen(t, path, func() { c.harm(t, path) })
				b, ok := s.Get(content.Digest)
				if !ok {
					t.Fatal("gone")
				}
				missing := 0
				for _, r := range b.Missing(content.Layout.All()) {
					missing += r.Count
					for i := r.First; i < r.End(); i++ {
						must(t, b.Put(i, content.Piece(i)))
					}
				}
				if missing != c.lost || c.lost == 0 && dropped > 0 {
					t.Errorf("%d pieces were missing, want %d; dropped %d times", missing, c.lost, dropped)
				}
				must(t, b.Seal())
				mustRead(t, b, content)
				b.Release()
			}
		})
	}
}

// TestSharedFileWithItsTimePutBack: of a hard link to the runtime's file the same holds, but
// that a blob whose file was written to is given up; and the runtime may take its own link away.
func TestSharedFileWithItsTimePutBack(t *testing.T) {
	for _, harmed := range []bool{true, false} {
		dir := t.TempDir()
		c := storetest.Random(t, 1, 3*pieceLength)
		theirs := runtimeFile(t, dir, c.Data)
		at := filepath.Join(dir, "store")
		s := storetest.Open(t, store.Config{Dir: at})
		must(t, s.Share(t.Context(), c.Digest, theirs, noPace))
		if stat(t, pathOf(at, c.Digest, "")).Ino != stat(t, theirs).Ino {
			t.Log("this file system clones; the file is not the runtime's own")
			theirs = pathOf(at, c.Digest, "")
		}
		unseen(t, theirs, func() {
			if harmed {
				must(t, syscall.Chmod(theirs, 0o600))
				flip(t, theirs, pieceLength+5)
				must(t, syscall.Chmod(theirs, 0o400))
			}
		})
		b, ok := s.Get(c.Digest)
		if ok == harmed {
			t.Errorf("written to: %v, held afterwards: %v", harmed, ok)
		}
		if !ok {
			continue
		}
		must(t, os.Remove(theirs))
		b.Release()
		if b, ok = s.Get(c.Digest); !ok {
			t.Fatal("the blob went with the runtime's name of it")
		}
		r := b.Reader(t.Context(), 0, -1)
		if data, err := io.ReadAll(r); err != nil || string(data) != string(c.Data) {
			t.Errorf("%d bytes, %v", len(data), err)
		}
		must(t, r.Close())
		b.Release()
	}
}
