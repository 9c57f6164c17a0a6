package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// volume is the directory that a store's files are in. Each operation on the
// disk goes through it, and none can leave the directory (os.Root).
type volume struct {
	root *os.Root
	tap  tap

	mu      sync.Mutex
	durable map[string]bool // directories whose own names a power cut leaves
}

// tap stands between the store and the disk: it does the operation by calling
// do, and may fail it before or after. It is how tests see and break every
// operation; nil outside of them.
type tap func(op *operation, do func() error) error

// operation is one operation on the disk as a tap sees it.
type operation struct {
	kind string // "create", "open", "openread", "read", "write", "sync", "rename", ...
	name string // path in the volume
	to   string // rename: the new path
	off  int64  // read, write: offset in the file
	data []byte // read, write: the bytes; a tap may shorten them before it calls do
}

func openVolume(dir string, t tap) (*volume, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &volume{root: root, tap: t, durable: map[string]bool{}}, nil
}

func (v *volume) close() error { return v.root.Close() }

func (v *volume) do(op operation, do func() error) error {
	if v.tap == nil {
		return do()
	}
	return v.tap(&op, do)
}

// mkdir makes a directory whose parent exists; syncPath makes it durable. One that
// exists is fine.
func (v *volume) mkdir(name string) error {
	return v.do(operation{kind: "mkdir", name: name}, func() error {
		err := v.root.Mkdir(name, 0o700)
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
		return err
	})
}

func (v *volume) create(name string) (*file, error) {
	return v.open(operation{kind: "create", name: name}, os.O_CREATE|os.O_TRUNC|os.O_RDWR)
}

// openData opens a file for reading and, where the disk allows it, for writing.
func (v *volume) openData(name string) (*file, error) {
	f, err := v.open(operation{kind: "open", name: name}, os.O_RDWR)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return v.openRead(name)
	}
	return f, err
}

func (v *volume) openRead(name string) (*file, error) {
	return v.open(operation{kind: "openread", name: name}, os.O_RDONLY)
}

func (v *volume) open(op operation, flag int) (*file, error) {
	var f *os.File
	err := v.do(op, func() (err error) {
		f, err = v.root.OpenFile(op.name, flag, 0o600)
		return err
	})
	if err != nil {
		if f != nil {
			_ = f.Close()
		}
		return nil, err
	}
	return &file{f: f, v: v, name: op.name}, nil
}

func (v *volume) rename(from, to string) error {
	return v.do(operation{kind: "rename", name: from, to: to}, func() error { return v.root.Rename(from, to) })
}

// remove deletes a file. One that is not there is fine.
func (v *volume) remove(name string) error {
	return v.do(operation{kind: "remove", name: name}, func() error { return absent(v.root.Remove(name)) })
}

// outside is the directory that the volume's own is in, as an operation names it.
const outside = ".."

// syncPath makes the names in a directory durable, and those of the directory and of
// all above it in the store: an earlier process may have made them and been killed.
func (v *volume) syncPath(name string) error {
	if err := v.syncDir(name); err != nil {
		return err
	}
	for name != outside {
		parent := path.Dir(name)
		if name == "." {
			parent = outside
		}
		v.mu.Lock()
		durable := v.durable[name]
		v.mu.Unlock()
		if !durable {
			if err := v.syncDir(parent); err != nil {
				return err
			}
			v.mu.Lock()
			v.durable[name] = true
			v.mu.Unlock()
		}
		name = parent
	}
	return nil
}

// syncDir makes the names in a directory durable.
func (v *volume) syncDir(name string) error {
	return v.do(operation{kind: "syncdir", name: name}, func() error {
		if name != outside {
			d, err := v.root.Open(name)
			return syncOpen(d, err)
		}
		dir := filepath.Dir(v.root.Name())
		// What that one is in is the administrator's, and may be closed to us.
		_ = syncOpen(os.Open(filepath.Dir(dir)))
		return syncOpen(os.Open(dir))
	})
}

func syncOpen(d *os.File, err error) error {
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// exists tells whether there is a file of that name.
func (v *volume) exists(name string) (bool, error) {
	_, err := v.stat(name)
	return err == nil, absent(err)
}

func (v *volume) stat(name string) (info fs.FileInfo, err error) {
	err = v.do(operation{kind: "stat", name: name}, func() error {
		info, err = v.root.Lstat(name)
		return err
	})
	return info, err
}

func (v *volume) list(name string) (entries []fs.DirEntry, err error) {
	err = v.do(operation{kind: "list", name: name}, func() error {
		d, err := v.root.Open(name)
		if err != nil {
			return err
		}
		entries, err = d.ReadDir(-1)
		return errors.Join(err, d.Close())
	})
	return entries, err
}

func (v *volume) touch(name string, t time.Time) error {
	return v.do(operation{kind: "touch", name: name}, func() error { return v.root.Chtimes(name, t, t) })
}

// readFile reads the first limit bytes of a file, or all if it has fewer.
func (v *volume) readFile(name string, limit int64) ([]byte, error) {
	f, err := v.openRead(name)
	if err != nil {
		return nil, err
	}
	info, err := f.f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	data := make([]byte, min(limit, info.Size()))
	n, err := f.ReadAt(data, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	_ = f.close() // nothing was written to it
	return data[:n], err
}

// replaceFile puts data under name in one step, by way of a temporary file: a
// crash leaves the old content or the new. With durable it is the new content
// that a power cut leaves, once the directory is synced.
func (v *volume) replaceFile(name, temp string, data []byte, durable bool) error {
	f, err := v.create(temp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.close()); err == nil {
		err = v.rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, v.remove(temp))
	}
	return nil
}

// file is an open file of a volume. It is safe for concurrent use.
type file struct {
	f    *os.File
	v    *volume
	name string
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if f.v.tap == nil {
		return f.f.WriteAt(p, off)
	}
	return f.tapped("write", p, off, f.f.WriteAt)
}

// maxParts is how many parts one call to the system takes (IOV_MAX of Linux).
const maxParts = 1024

// writeParts writes parts one behind the other, from off on.
func (f *file) writeParts(parts [][]byte, off int64) error {
	if f.v.tap != nil && len(parts) > 1 {
		parts = [][]byte{slices.Concat(parts...)} // a piece is one operation
	}
	if len(parts) == 1 {
		_, err := f.WriteAt(parts[0], off)
		return err
	}
	raw, err := f.f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = writeVector(parts, off, func(some [][]byte, off int64) (int, error) { return unix.Pwritev(int(fd), some, off) })
	})
	if failed != nil {
		failed = &os.PathError{Op: "pwritev", Path: f.name, Err: failed}
	}
	return errors.Join(err, failed)
}

// writeVector writes parts from off on by write, which may write less than it is given.
func writeVector(parts [][]byte, off int64, write func(parts [][]byte, off int64) (int, error)) error {
	skip := 0 // bytes of parts[0] that are written
	for len(parts) > 0 {
		some := parts[:min(len(parts), maxParts)]
		if skip > 0 {
			some = [][]byte{parts[0][skip:]} // rare: what is left of a part goes alone
		}
		n, err := write(some, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n <= 0 {
			return io.ErrShortWrite
		}
		off += int64(n)
		for n += skip; len(parts) > 0 && n >= len(parts[0]); parts = parts[1:] {
			n -= len(parts[0])
		}
		skip = n
	}
	return nil
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if f.v.tap == nil {
		return f.f.ReadAt(p, off)
	}
	return f.tapped("read", p, off, f.f.ReadAt)
}

func (f *file) tapped(kind string, p []byte, off int64, do func([]byte, int64) (int, error)) (n int, err error) {
	op := &operation{kind: kind, name: f.name, off: off, data: p}
	err = f.v.tap(op, func() (err error) {
		n, err = do(op.data, off)
		return err
	})
	return n, err
}

func (f *file) Sync() error {
	return f.v.do(operation{kind: "sync", name: f.name}, f.f.Sync)
}

// close closes the file whatever it returns. An error may tell of writes that failed
// late.
func (f *file) close() error {
	err := f.f.Close()
	return f.v.do(operation{kind: "close", name: f.name}, func() error { return err })
}
