package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// How a file outside of the volume gets a name in it: see share.go.

// dropLinks removes what a crash left of a Share: links that keep the runtime's
// bytes on the disk after the runtime has let go of them.
func (s *Store) dropLinks() {
	for _, name := range s.names(shareDir) {
		if err := s.vol.remove(path.Join(shareDir, name)); err != nil {
			s.log.Warn("cannot remove a link to a file of the runtime", zap.String("name", name), zap.Error(err))
		}
	}
}

// borrow makes the file name of the volume share the bytes of the file from, which
// is outside of it, as a hard link or, where that cannot be, as a clone.
func (v *volume) borrow(from, name string, info fs.FileInfo) error {
	linkErr := v.do(operation{kind: "link", name: name}, func() error {
		return os.Link(from, filepath.Join(v.root.Name(), filepath.FromSlash(name)))
	})
	if !isUnable(linkErr) {
		return linkErr
	}
	cloneErr := v.clone(from, name, info)
	if !isUnable(cloneErr) || errors.Is(linkErr, syscall.EMLINK) {
		return cloneErr
	}
	return fmt.Errorf("%w: %w; %w", ErrCannotShare, linkErr, cloneErr)
}

// isUnable tells whether the file system cannot do what was asked, or may not.
func isUnable(err error) bool {
	for _, e := range []error{
		syscall.EXDEV, syscall.EPERM, syscall.EACCES, syscall.EOPNOTSUPP, syscall.ENOSYS,
		syscall.ENOTTY, syscall.EINVAL, syscall.EMLINK,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (v *volume) clone(from, name string, info fs.FileInfo) error {
	src, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // only read
	f, err := v.open(operation{kind: "create", name: name}, os.O_CREATE|os.O_EXCL|os.O_RDWR)
	if err != nil {
		return err
	}
	err = v.do(operation{kind: "clone", name: name}, func() error {
		return unix.IoctlFileClone(int(f.f.Fd()), int(src.Fd()))
	})
	if err != nil {
		err = &os.PathError{Op: "clone", Path: from, Err: err}
	}
	if err = errors.Join(err, f.close()); err == nil {
		err = v.touch(name, info.ModTime()) // tells later whose clone it is
	}
	return err
}
