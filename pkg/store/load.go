package store

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// What a blob has open or in memory while it is used: its file, its chain, and
// which pieces are held. idle puts it away again.

// hold takes a reference for one operation, unless the blob has ended.
func (b *Blob) hold() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.err; err != nil {
		return err
	}
	b.refs++
	return nil
}

// enter begins one operation on the blob's data: it takes a reference, which the
// caller releases, and opens the file. A blob that has ended gives its error.
func (b *Blob) enter() (*file, error) {
	b.mu.Lock()
	if err := b.err; err != nil {
		b.mu.Unlock()
		return nil, err
	}
	b.refs++
	f := b.file
	b.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := b.openFile()
	if err != nil {
		b.Release()
		return nil, err
	}
	return f, nil
}

// openFile opens the data; the caller has a reference, so that it stays open.
func (b *Blob) openFile() (*file, error) {
	b.disk.Lock()
	f, err := b.openFileDisk()
	b.disk.Unlock()
	if err != nil && errors.Is(err, fs.ErrNotExist) {
		return nil, b.damaged(err)
	}
	return f, err
}

func (b *Blob) openFileDisk() (*file, error) {
	b.mu.Lock()
	f, err := b.file, b.err
	b.mu.Unlock()
	if f != nil || err != nil {
		return f, err
	}
	open := b.store.vol.openData
	if b.isFrozen() {
		open = b.store.vol.openRead
	}
	f, err = open(b.dataPath())
	if errors.Is(err, fs.ErrNotExist) {
		// A rename that failed may have been done all the same.
		b.named = !b.named
		if f, err = open(b.dataPath()); err != nil {
			b.named = !b.named
		}
	}
	if err != nil {
		return nil, fmt.Errorf("store: open %s: %w", b.digest, err)
	}
	b.mu.Lock()
	if err = b.err; err == nil {
		b.file = f
	}
	b.mu.Unlock()
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// load brings the chain into memory, and on the first time what the sidecar says
// is held. The caller has a reference, so that the chain stays. The error wraps
// ErrDamaged when the sidecar is of no use; the blob is then dropped. A sealed blob
// stays, without its links, when the disk does not give the sidecar back this time.
func (b *Blob) load() error {
	b.mu.Lock()
	done, err := b.chain != nil, b.err
	b.mu.Unlock()
	if done || err != nil {
		return err
	}
	b.disk.Lock()
	err = b.loadDisk()
	b.disk.Unlock()
	useless := errors.Is(err, errCorrupt) || errors.Is(err, errVersion) || errors.Is(err, fs.ErrNotExist)
	if err == nil || isScarcity(err) || errors.Is(err, ErrClosed) || errors.Is(err, ErrRemoved) || b.Sealed() && !useless {
		return err
	}
	return b.damaged(err)
}

func (b *Blob) loadDisk() error {
	b.mu.Lock()
	done, err := b.chain != nil, b.err
	b.mu.Unlock()
	if done || err != nil {
		return err
	}
	m, err := b.readSidecar()
	if err != nil {
		return fmt.Errorf("store: read sidecar of %s: %w", b.digest, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.chain = m.chain
	if b.loaded {
		return nil
	}
	b.loaded = true
	b.saved = time.Now()
	b.held = blob.NewBitmap(b.layout.Pieces())
	if b.claims = m.held; b.claims == nil {
		b.claims = blob.NewBitmap(b.layout.Pieces())
		b.claims.SetRun(b.layout.All())
	}
	if b.layout.Pieces() == 0 && b.digest.Matches(nil) { // no piece will come and seal it
		b.sealed, b.dirty = true, true
		b.held, b.claims = nil, nil
	}
	return nil
}

// prepare makes a blob that was found on disk ready for use. The caller has a
// reference.
func (b *Blob) prepare() error {
	b.mu.Lock()
	loaded, err := b.loaded, b.err
	b.mu.Unlock()
	switch {
	case err != nil:
		return err
	case loaded:
		return b.doubt()
	}
	return b.load()
}
