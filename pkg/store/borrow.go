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
	return fmt.Errorf("%w: %s: %w; %w", ErrCannotShare, obstacle(from, v.root.Name()), linkErr, cloneErr)
}

// obstacle says why a file and a directory cannot share bytes, and what to do. Only
// whoever runs this process sees which mounts it was given, so it names them.
func obstacle(file, dir string) string {
	their, theirDev, err := mountOf(file)
	our, ourDev, err2 := mountOf(dir)
	switch {
	case err != nil || err2 != nil:
		return "they must be on one file system, and for hard links below one mount of it; see README.md"
	case theirDev != ourDev:
		return fmt.Sprintf("they are on two file systems, %s and %s; put dataDir on the runtime's", their, our)
	case their != our:
		return fmt.Sprintf("hard links do not cross mounts, here %s and %s, although both are of one file system, and it makes no clones between them; "+
			"mount one directory that both are below instead, such as the host's /var/lib, and set dataDir and store.share below that", their, our)
	default:
		return fmt.Sprintf("both are below the mount %s, whose file system refuses links and clones, or refuses them to this user; run as root", our)
	}
}

// mountOf returns where the mount that a file is on begins, and its file system.
func mountOf(name string) (point string, dev uint64, err error) {
	look := func(name string) (st unix.Statx_t, err error) {
		err = unix.Statx(unix.AT_FDCWD, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st)
		if err == nil && st.Mask&unix.STATX_MNT_ID == 0 { // Linux before 5.8
			err = errors.ErrUnsupported
		}
		return st, err
	}
	if name, err = filepath.EvalSymlinks(name); err != nil {
		return "", 0, err
	}
	at, err := look(name)
	for parent := filepath.Dir(name); err == nil && name != parent; name, parent = parent, filepath.Dir(parent) {
		if above, err := look(parent); err != nil || above.Mnt_id != at.Mnt_id {
			break
		}
	}
	return name, unix.Mkdev(at.Dev_major, at.Dev_minor), err
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
