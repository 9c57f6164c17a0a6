package store

import (
	"errors"
	"fmt"
	"io/fs"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// A sealed blob is read without being proven again, as long as its file is as the
// store left it. When somebody else has written to it, which its stamp tells, it is in
// doubt: one that a runtime has too is proven at once (stamp.go), of any other the seal is taken back, and every piece is a claim,
// as after a restart. So pieces that did not suffer are proven when they are needed,
// and the others are fetched again. Bytes that change below the file system are
// found by the scrub alone.

// rememberLocked notes how the file of a sealed blob looks, which the caller has
// written the last of. Where it cannot be told, nothing is ever in doubt.
func (b *Blob) rememberLocked() {
	b.changed = stamp{}
	if b.file == nil {
		return
	}
	if info, err := b.file.f.Stat(); err == nil {
		b.changed = stampOf(info)
	}
}

// stat looks at the file of the blob, whatever it is called now.
func (b *Blob) stat() (fs.FileInfo, error) {
	info, err := b.store.vol.stat(b.wholePath())
	if errors.Is(err, fs.ErrNotExist) {
		info, err = b.store.vol.stat(b.partPath())
	}
	return info, err
}

// doubtful tells whether somebody else wrote to the file of the blob. Of a blob that
// is not sealed nobody relies on it, and of a file that is not there whoever reads it
// finds out.
func (b *Blob) doubtful() (bool, error) {
	if !b.Sealed() {
		return false, nil
	}
	info, err := b.stat()
	if err != nil {
		return false, absent(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	known := b.sealed && b.writers == 0 && b.changed != (stamp{})
	return known && (stampOf(info) != b.changed || info.Size() != b.layout.Size()), nil
}

// doubt takes the seal back when the file was written to. The error says that this
// cannot be told, or that the blob is gone. The caller has a reference.
func (b *Blob) doubt() error {
	doubtful, err := b.doubtful()
	if err != nil {
		return fmt.Errorf("store: look at %s: %w", b.digest, err)
	}
	if !doubtful {
		return nil
	}
	if b.isFrozen() {
		return b.reprove()
	}
	if err := b.load(); err != nil {
		return err
	}
	b.disk.Lock()
	doubted, err := b.doubtDisk()
	b.disk.Unlock()
	if isScarcity(err) {
		return fmt.Errorf("store: %s: %w", b.digest, err)
	}
	if err != nil {
		return b.damaged(err)
	}
	if doubted {
		b.store.log.Error("somebody else wrote to the file of a sealed blob; its pieces are proven again when they are needed",
			zap.Stringer("digest", b.digest))
		b.store.tell(b.digest)
	}
	return nil
}

// doubtDisk looks once more, now that nobody else can be at it, and takes the name
// away first, as loseDisk does.
func (b *Blob) doubtDisk() (bool, error) {
	if doubtful, err := b.doubtful(); err != nil || !doubtful {
		return false, err
	}
	if err := b.unnameDisk(); err != nil {
		return false, err
	}
	f, err := b.openFileDisk()
	if err == nil {
		err = f.cut(b.layout.Size())
	}
	if err != nil {
		return false, err
	}
	b.mu.Lock()
	if b.err != nil || !b.sealed {
		b.mu.Unlock()
		return false, nil
	}
	if b.layout.Pieces() == 0 { // it is whole again, and sealed when it falls idle
		b.changed = stamp{}
		b.mu.Unlock()
		return false, nil
	}
	b.sealed = false
	b.held = blob.NewBitmap(b.layout.Pieces())
	b.claims = blob.NewBitmap(b.layout.Pieces())
	b.claims.SetRun(b.layout.All())
	b.changed = stamp{}
	b.gen++
	b.dirty = true
	// Who reads now goes on with what is still right. Nobody may be there who
	// fetches the rest for it.
	b.failLocked(fmt.Errorf("store: read %s: %w: its file was written to", b.digest, ErrDamaged))
	b.mu.Unlock()
	if err := b.saveDisk(false); err != nil {
		b.warn("cannot save sidecar of a blob in doubt; a restart would check what it names", err)
	}
	return true, nil
}

// unnameDisk takes the name of a whole blob back, durably. A rename that failed may
// have been done all the same, so named does not tell whether there is one.
func (b *Blob) unnameDisk() error {
	if b.isFrozen() {
		return errors.New("the file may be the runtime's too, and is not written to")
	}
	err := b.store.vol.rename(b.wholePath(), b.partPath())
	if err == nil {
		err = b.store.vol.syncDir(b.dir())
	}
	if absent(err) != nil {
		return fmt.Errorf("take the seal back: %w", err)
	}
	b.named, b.synced, b.marked, b.found = false, false, false, false
	return nil
}

// cut takes away what lies behind the first size bytes of the file.
func (f *file) cut(size int64) error {
	info, err := f.f.Stat()
	if err != nil || info.Size() <= size {
		return err
	}
	return f.v.do(operation{kind: "truncate", name: f.name}, func() error { return f.f.Truncate(size) })
}
