package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path"
)

// Spool returns a file without a name on the store's disk, for n bytes whose place in the
// store is not known yet. It is gone when the caller closes it, and after a crash. The error
// wraps ErrNoSpace where Config.KeepFree does not leave as much.
func (s *Store) Spool(n int64) (*os.File, error) {
	if !s.roomFor(n) {
		return nil, fmt.Errorf("store: spool %d bytes: %w", n, ErrNoSpace)
	}
	if err := s.vol.mkdir(shareDir); err != nil {
		return nil, fmt.Errorf("store: spool: %w", err)
	}
	name := path.Join(shareDir, "spool-"+rand.Text()) // what is left there is removed at the next start
	f, err := s.vol.create(name)
	if err == nil {
		err = s.vol.remove(name)
	}
	if err != nil {
		if f != nil {
			err = errors.Join(err, f.f.Close())
		}
		return nil, fmt.Errorf("store: spool: %w", full(err))
	}
	return f.f, nil
}
