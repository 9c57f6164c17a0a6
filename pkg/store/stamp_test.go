package store_test

import (
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// TestTimesPutBack: bytes that somebody changed never reach a client although the file's
// times, its size and its name are as they were.
func TestTimesPutBack(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, path string){
		"written": func(t *testing.T, path string) { flip(t, path, 7) },
		"by a map": func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			defer f.Close()
			m, err := unix.Mmap(int(f.Fd()), 0, pieceLength, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			must(t, err)
			m[7] ^= 1
			must(t, unix.Munmap(m))
		},
		"cut and restored": func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			must(t, err)
			must(t, os.Truncate(path, 3))
			must(t, os.Truncate(path, int64(len(data))))
		},
		"punched": func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			defer f.Close()
			must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096))
		},
		"another file in its place": func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			must(t, err)
			data[7] ^= 1
			must(t, os.WriteFile(path+".other", data, 0o600))
			must(t, os.Rename(path+".other", path))
		},
		"written, and a link made and removed": func(t *testing.T, path string) {
			flip(t, path, 7)
			must(t, os.Link(path, path+".link"))
			must(t, os.Remove(path+".link"))
		},
	} {
		for _, way := range []string{"ours", "shared", "shared, by the runtime's name", "shared, after a restart"} {
			t.Run(name+", "+way, func(t *testing.T) {
				dir := t.TempDir()
				c := storetest.Random(t, 1, 3*pieceLength)
				s := storetest.Open(t, store.Config{Dir: dir})
				path := pathOf(dir, c.Digest, "")
				if way == "ours" {
					storetest.Fill(t, s, c)
				} else {
					theirs := runtimeFile(t, dir, c.Data)
					must(t, s.Share(t.Context(), c.Digest, theirs, noPace))
					must(t, os.Chmod(theirs, 0o600))
					if way == "shared, by the runtime's name" {
						if name == "another file in its place" {
							return // the blob keeps its file
						}
						path = theirs
					}
				}
				used(t, s, c)
				was := stat(t, path)
				mtime := time.Unix(was.Mtim.Unix())
				for time.Since(time.Unix(was.Ctim.Unix())) < 25*time.Millisecond {
					runtime.Gosched() // our own file's stamp is told from the next one after a tick of the kernel
				}
				if way == "shared, after a restart" {
					must(t, s.Close())
				}
				harm(t, path)
				must(t, os.Chtimes(path, mtime, mtime))
				if now := stat(t, path); now.Mtim != was.Mtim || now.Size != was.Size {
					t.Fatal("the test does not put the times back")
				}
				if way == "shared, after a restart" {
					s = storetest.Open(t, store.Config{Dir: dir})
				}
				b, ok := s.Get(c.Digest)
				if !ok {
					return // given up, to be fetched
				}
				defer b.Release()
				if b.Sealed() {
					t.Fatal("wrong bytes are trusted")
				}
			})
		}
	}
}

// TestRuntimeLinksAndUnlinks: what a runtime does with its file without changing it costs
// one proof, and no blob.
func TestRuntimeLinksAndUnlinks(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Random(t, 1, 3*pieceLength)
	s := storetest.Open(t, store.Config{Dir: dir})
	theirs := runtimeFile(t, dir, c.Data)
	must(t, s.Share(t.Context(), c.Digest, theirs, noPace))
	path := pathOf(dir, c.Digest, "")
	check := func(what string) {
		t.Helper()
		for range 2 {
			b, ok := s.Get(c.Digest)
			if !ok {
				t.Fatalf("%s: the blob is gone", what)
			}
			f, err := b.File()
			must(t, err)
			data, err := io.ReadAll(f)
			if err != nil || string(data) != string(c.Data) || !b.Sealed() {
				t.Errorf("%s: other bytes, error %v, sealed %v", what, err, b.Sealed())
			}
			must(t, f.Close())
			b.Release()
		}
	}
	check("shared")
	must(t, os.Link(theirs, theirs+".2"))
	check("linked")
	must(t, os.Chtimes(theirs, time.Unix(1e9, 0), time.Unix(1e9, 0)))
	check("touched")
	must(t, os.Chmod(theirs, 0o444))
	check("of another mode")
	must(t, s.Close())
	s = storetest.Open(t, store.Config{Dir: dir})
	check("after a restart")
	must(t, os.Remove(theirs))
	must(t, os.Remove(theirs+".2"))
	check("removed")
	s.Kill()
	must(t, os.Remove(filepath.Join(dir, "v1", "stamps")))
	s = storetest.Open(t, store.Config{Dir: dir})
	check("after a crash that lost the stamps")
	if st := stat(t, path); st.Nlink != 1 {
		t.Errorf("%d links", st.Nlink)
	}
}

// TestShareOfAFileThatIsOpenForWriting: a file that somebody can still write to, by a
// descriptor or a map from before it lost its write bits, is not shared.
func TestShareOfAFileThatIsOpenForWriting(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Random(t, 1, pieceLength)
	s := storetest.Open(t, store.Config{Dir: dir})
	theirs := runtimeFile(t, dir, c.Data)
	must(t, os.Chmod(theirs, 0o600))
	f, err := os.OpenFile(theirs, os.O_RDWR, 0)
	must(t, err)
	must(t, os.Chmod(theirs, 0o400))
	m, err := syscall.Mmap(int(f.Fd()), 0, pieceLength, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	must(t, err)
	wantError(t, "open", s.Share(t.Context(), c.Digest, theirs, noPace), store.ErrInUse)
	must(t, f.Close())
	wantError(t, "mapped", s.Share(t.Context(), c.Digest, theirs, noPace), store.ErrInUse)
	must(t, syscall.Munmap(m))
	must(t, s.Share(t.Context(), c.Digest, theirs, noPace))
}
