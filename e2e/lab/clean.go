package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/damselfly-p2p/damselfly/e2e/fabric"
)

// dirPattern names the directories of runs; holdName is the file in each that its run
// holds locked for as long as it lives.
const (
	dirPattern = "damselfly-lab-*"
	holdName   = "hold"
)

// newDir makes a directory for a run, and holds it until release is called.
func newDir() (dir string, release func(), err error) {
	if dir, err = os.MkdirTemp("", dirPattern); err != nil {
		return "", nil, err
	}
	hold, err := os.OpenFile(filepath.Join(dir, holdName), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(hold.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("hold %s: %w", dir, err), os.RemoveAll(dir))
	}
	return dir, func() {
		// A directory without the file is kept on purpose.
		_ = os.Remove(hold.Name())
		_ = hold.Close()
	}, nil
}

// clean removes what runs left that did not end well: namespaces, links, files. Their
// processes died with them. It says what it removed, and leaves what belongs to a run
// that lives.
func clean() ([]string, error) {
	removed, err := fabric.Clean()
	errs := []error{err}
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPattern))
	errs = append(errs, err)
	for _, dir := range dirs {
		dead, err := abandoned(dir)
		if err == nil && dead {
			if err = os.RemoveAll(dir); err == nil {
				removed = append(removed, dir)
			}
		}
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// abandoned tells whether a directory's run is gone and did not say that it is kept.
func abandoned(dir string) (bool, error) {
	hold, err := os.OpenFile(filepath.Join(dir, holdName), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer hold.Close()
	err = unix.Flock(int(hold.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
