package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/gofrs/flock"
)

// lockFile is locked by who changes a directory that several processes use.
const lockFile = ".lock"

// makeLockedDir makes a directory for withLock when it is missing.
func makeLockedDir(dir string) error {
	if err := makeDir(dir); err != nil {
		return err
	}
	_, err := createFile(filepath.Join(dir, lockFile), nil)
	return err
}

// withLock runs f while no other process or goroutine does for the directory.
func withLock(dir string, f func() error) error {
	// A lock of its own for each call: goroutines exclude each other as processes do.
	lock := flock.New(filepath.Join(dir, lockFile), flock.SetPermissions(0o600))
	if err := lock.Lock(); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	defer lock.Close()
	return f()
}

// makeDir makes a directory for secrets, and its parents, when it is missing.
func makeDir(dir string) error {
	if dir == "" {
		return errors.New("no directory given to keep the identity in")
	}
	return os.MkdirAll(dir, 0o700)
}

// createFile writes content to a new file at path with mode 0600. It never
// changes a file that is there: of several processes one creates it, and
// created says whether it was this one. The file appears whole or not at all.
func createFile(path string, content []byte) (created bool, err error) {
	temp, err := writeTemp(path, content)
	if err != nil {
		return false, err
	}
	defer os.Remove(temp)
	if err := os.Link(temp, path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return false, nil
		}
		return false, err
	}
	return true, syncDir(filepath.Dir(path))
}

// replaceFile puts content at path with mode 0600, whole or not at all, and
// durably.
func replaceFile(path string, content []byte) error {
	temp, err := writeTemp(path, content)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

func writeTemp(path string, content []byte) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return "", err
	}
	err = giveToOwner(f)
	if err == nil {
		_, err = f.Write(content)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// giveToOwner gives a file that root makes to the owner of its directory, so
// that a command run by root beside a service of another user leaves nothing that
// the service cannot read.
func giveToOwner(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	return f.Chown(int(owner.Uid), int(owner.Gid))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// readSecret reads a file that holds a private key. A file that everybody may
// read is refused. Group bits are taken away where that is possible: volume
// managers are known to add them at each mount.
func readSecret(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	mode := info.Mode().Perm()
	if mode&0o007 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, so any user of this machine could have read the private key in it: delete it to get a new one, or run chmod 600 on it if nobody has", path, mode)
	}
	if mode&0o070 != 0 {
		if err := os.Chmod(path, 0o600); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS) {
			return nil, err
		}
	}
	return os.ReadFile(path)
}
