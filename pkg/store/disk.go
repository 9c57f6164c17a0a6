package store

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// What is written beside the data, and when. DESIGN.md has the order of writes
// and what each crash leaves behind.

const (
	layoutVersion = "v1"
	partSuffix    = ".part"
	metaSuffix    = ".meta"
	tempSuffix    = ".meta.tmp"

	// A sidecar that is not written costs refetching after a crash, one that is
	// written costs a small write and a rename.
	savePieces = 64
	saveEvery  = time.Second
)

// create makes the files of a new blob, whose disk lock the caller holds and
// whose reference it has; both are given up on an error, and the blob leaves.
func (b *Blob) create() error {
	if b.hiddenDisk() {
		b.disk.Unlock()
		err := b.prepare()
		if err != nil {
			b.Release()
		}
		return err
	}
	f, err := b.createDisk()
	b.mu.Lock()
	if ended := b.err; err == nil && ended != nil {
		err = errors.Join(ended, f.close())
	}
	if err == nil {
		b.file = f
		b.loaded = true
		b.dirty = true
		b.saved = time.Now()
		b.held = blob.NewBitmap(b.layout.Pieces())
		b.chain = blob.NewChain(b.digest, b.layout)
		b.sealed = b.layout.Pieces() == 0 // Create has compared the digest
	}
	empty := b.sealed
	b.mu.Unlock()
	if err != nil {
		// Who waits for the lock begins anew, and does not take the blob for damaged.
		b.store.mu.Lock()
		if !b.store.closed {
			b.store.doomLocked(b, ErrRemoved, "")
		}
		b.store.mu.Unlock()
	}
	b.disk.Unlock()
	if err == nil && empty {
		err = b.Seal()
	}
	if err != nil {
		err = full(err)
		// expunge has logged what went wrong; the creation has failed either way.
		_ = b.store.drop(b, err, "")
		b.Release()
		err = fmt.Errorf("store: create %s: %w", b.digest, err)
	}
	return err
}

// hiddenDisk takes in the blob's files where the disk has them and did not show them
// when the store was opened: a sealed blob is not lost because of one bad moment. It
// tells whether there was something of use.
func (b *Blob) hiddenDisk() bool {
	found := &found{digest: b.digest}
	var err error
	if found.whole, err = b.store.vol.exists(b.wholePath()); err == nil {
		found.part, err = b.store.vol.exists(b.partPath())
	}
	if err != nil || !found.whole && !found.part {
		return false
	}
	old, err := b.store.adopt(found)
	if err != nil || old == nil || old.layout != b.layout || old.frozen {
		return false // createDisk deletes what is left
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.named, b.synced, b.found = old.named, old.synced, old.found
	b.pinned, b.sealed, b.loaded, b.changed = old.pinned, old.sealed, old.loaded, old.changed
	b.frozen, b.adopted = old.frozen, old.adopted
	return true
}

func (b *Blob) createDisk() (*file, error) {
	if err := b.store.vol.mkdir(b.digest.Algorithm()); err != nil {
		return nil, err
	}
	if err := b.store.vol.mkdir(b.dir()); err != nil {
		return nil, err
	}
	// What was left alone, such as files of another version, must not be taken for
	// ours, nor be written to: it may be somebody else's as well.
	for _, name := range []string{b.metaPath(), b.wholePath(), b.partPath()} {
		if err := b.store.vol.remove(name); err != nil {
			return nil, err
		}
	}
	f, err := b.store.vol.create(b.partPath())
	if err == nil {
		if err = b.setAside(f); err != nil {
			return nil, errors.Join(err, f.close())
		}
	}
	return f, err
}

// sidecarLocked is the blob's present state; the chain is loaded, and disk is held.
// That the blob is sealed is said once the data is synced: under the name of a whole
// blob it is believed from then on.
func (b *Blob) sidecarLocked() []byte {
	m := sidecar{header: header{digest: b.digest, layout: b.layout, sealed: b.sealed && b.synced, pinned: b.pinned, shared: b.frozen, adopted: b.adopted, places: b.places}, held: b.held, chain: b.chain}
	switch {
	case b.sealed:
		m.held = blob.NewBitmap(b.layout.Pieces())
		m.held.SetRun(b.layout.All())
	case b.claims != nil && b.claims.Count() > 0:
		m.held = b.held.Clone()
		for _, r := range b.claims.Runs() {
			m.held.SetRun(r)
		}
	}
	return m.encode()
}

func (b *Blob) readSidecar() (*sidecar, error) {
	h := header{digest: b.digest, layout: b.layout}
	data, err := b.store.vol.readFile(b.metaPath(), h.maxSidecar()+1)
	if err != nil {
		return nil, err
	}
	m, err := decodeSidecar(b.digest, data)
	if err == nil && m.layout != b.layout {
		err = fmt.Errorf("%w: size %d", errCorrupt, m.layout.Size())
	}
	return m, err
}

// saveSoon writes the sidecar when that is due. Nobody waits for it.
func (b *Blob) saveSoon() {
	b.mu.Lock()
	due := b.dirty && !b.sealed && (b.fresh >= savePieces || time.Since(b.saved) >= saveEvery)
	b.mu.Unlock()
	if !due || !b.disk.TryLock() {
		return
	}
	err := b.saveDisk(false)
	b.disk.Unlock()
	if err != nil {
		b.warn("cannot save sidecar; a restart would fetch again what it does not name", err)
	}
}

// saveDisk writes the sidecar if it is behind. A failure leaves it so.
func (b *Blob) saveDisk(durable bool) error {
	b.mu.Lock()
	if b.err != nil || !b.dirty {
		b.mu.Unlock()
		return nil
	}
	data := b.sidecarLocked()
	durable = durable || b.synced // what a restart believes is what a power cut leaves
	b.dirty = b.sealed && !b.synced
	b.fresh = 0
	b.saved = time.Now()
	b.mu.Unlock()
	err := b.store.vol.replaceFile(b.metaPath(), b.tempPath(), data, durable)
	if err != nil {
		b.mu.Lock()
		b.dirty = true
		b.mu.Unlock()
	}
	return err
}

// errSync: the data could not be made durable. The kernel may have dropped the
// pages that it could not write, so the same data is not synced again and hoped
// for: the blob is given up.
var errSync = errors.New("sync of the data failed")

// Seal puts the seal of a blob whose last missing piece has come onto the disk:
// it syncs data, sidecar and directory, which takes long on a slow disk. Whoever
// put the last piece calls it once it has told who waits; a blob that nobody
// sealed so is sealed when it falls idle, and one that the power cut overtakes is
// checked again. Of any other blob it does nothing.
//
// Only a failed sync of the data is an error: it wraps ErrDamaged, and the blob
// is gone. What else fails is tried again when the blob falls idle.
func (b *Blob) Seal() error {
	err := b.mark()
	if isFull(err) && !errors.Is(err, errSync) && b.store.evictForDisk(1) {
		err = b.mark()
	}
	if errors.Is(err, errSync) {
		return b.damaged(err)
	}
	if err != nil {
		b.warn("cannot mark blob as sealed on disk; a restart would check it again", err)
	}
	return nil
}

func (b *Blob) mark() error {
	b.disk.Lock()
	defer b.disk.Unlock()
	return b.markDisk()
}

// markDisk makes the seal durable: data, sidecar, names, in this order.
func (b *Blob) markDisk() error {
	b.mu.Lock()
	f := b.file
	todo := b.err == nil && b.sealed && !b.marked
	b.mu.Unlock()
	if !todo {
		return nil
	}
	if !b.synced {
		if f == nil {
			var err error
			if f, err = b.openFileDisk(); err != nil {
				return err
			}
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("%w: %w", errSync, err)
		}
		b.synced = true
	}
	if err := b.saveDisk(true); err != nil {
		return err
	}
	if !b.named {
		err := b.moved(b.partPath(), b.wholePath())
		if errors.Is(err, fs.ErrNotExist) { // one that failed may have been done all the same
			_, err = b.store.vol.stat(b.wholePath())
		}
		if err != nil {
			return err
		}
		b.named = true
	}
	if err := b.store.vol.syncPath(b.dir()); err != nil {
		return err
	}
	b.marked, b.found = true, false
	return nil
}

// setPinned changes the pin on disk, then in memory.
func (b *Blob) setPinned(pinned bool) error {
	if err := b.load(); err != nil {
		return err
	}
	b.disk.Lock()
	defer b.disk.Unlock()
	b.mu.Lock()
	if err := b.err; err != nil {
		b.mu.Unlock()
		return err
	}
	was := b.pinned
	b.pinned = pinned
	b.dirty = true
	b.mu.Unlock()
	err := b.saveDisk(true)
	if err == nil {
		err = b.store.vol.syncPath(b.dir())
	}
	if err != nil {
		b.mu.Lock()
		b.pinned = was
		b.dirty = true
		b.mu.Unlock()
		return full(err)
	}
	return nil
}

// idle puts away what a blob keeps open or in memory for its users, once there
// are none: the sidecar is saved, the file closed, the chain left on disk.
func (b *Blob) idle() {
	err := b.idleDisk()
	if errors.Is(err, errSync) {
		// damaged has logged it; nobody uses the blob.
		_ = b.damaged(err)
	} else if err != nil {
		b.warn("cannot save blob that falls idle", err)
	}
}

func (b *Blob) idleDisk() error {
	b.disk.Lock()
	defer b.disk.Unlock()
	b.mu.Lock()
	used, ended := b.refs > 0, b.err != nil
	b.mu.Unlock()
	if used {
		return nil
	}
	var err error
	if !ended {
		if err = b.markDisk(); err == nil {
			err = b.saveDisk(false)
		}
	}
	b.mu.Lock()
	var f *file
	if b.refs == 0 {
		f, b.file = b.file, nil
		if !b.dirty {
			b.chain = nil
		}
	}
	b.mu.Unlock()
	if f == nil {
		return err
	}
	closing := f.close()
	if closing != nil && !b.synced {
		closing = fmt.Errorf("%w: %w", errSync, closing) // a write failed late
	}
	return errors.Join(err, closing)
}

// shut ends the blob because its store closes, and saves what a restart can use.
func (b *Blob) shut() error {
	b.disk.Lock()
	defer b.disk.Unlock()
	var err error
	if !b.found { // else nobody used it, and there may be thousands
		err = b.markDisk()
	}
	if errors.Is(err, errSync) {
		b.store.log.Error("blob is damaged; dropping it", zap.Stringer("digest", b.digest), zap.Error(err))
		b.mu.Lock()
		b.endLocked(ErrClosed)
		b.mu.Unlock()
		return errors.Join(err, b.deleteFilesDisk())
	}
	b.mu.Lock()
	var data []byte
	if b.err == nil {
		if b.dirty {
			data = b.sidecarLocked()
		}
		b.endLocked(ErrClosed)
	}
	f := b.file
	b.file = nil
	b.mu.Unlock()
	if data != nil {
		err = errors.Join(err, b.store.vol.replaceFile(b.metaPath(), b.tempPath(), data, b.synced))
	}
	if f != nil {
		err = errors.Join(err, f.close())
	}
	if !b.gone {
		b.store.mu.Lock()
		used := b.lastUse
		b.store.mu.Unlock()
		// The time of last use orders evictions after a restart, no more.
		// Not that of the data, which may be a file of the runtime.
		_ = b.store.vol.touch(b.metaPath(), used)
	}
	return err
}

// deleteFiles deletes the files of a blob that has ended.
func (b *Blob) deleteFiles() error {
	b.disk.Lock()
	defer b.disk.Unlock()
	return b.deleteFilesDisk()
}

func (b *Blob) deleteFilesDisk() error {
	if b.gone {
		return nil
	}
	// The data goes first: what is left of a deletion that a crash cut short is a
	// sidecar without data, which claims nothing.
	for _, name := range []string{b.wholePath(), b.partPath(), b.metaPath(), b.tempPath()} {
		if err := b.store.vol.remove(name); err != nil {
			return err
		}
	}
	b.gone = true
	b.mu.Lock()
	var f *file
	if b.refs == 0 {
		f, b.file = b.file, nil
	}
	b.chain, b.held, b.claims = nil, nil, nil
	b.mu.Unlock()
	if f != nil {
		_ = f.close() // nothing of it is wanted any more
	}
	return nil
}
