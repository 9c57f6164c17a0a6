package store

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// A sealed blob is read without being proven again, as long as its file is as the
// store left it. Times of modification can be set by whoever can write, so the file is
// known by its time of change (ctime) and its inode as well, which cannot.
//
// When somebody else has written to it, the blob is in doubt: the seal is taken back, and
// every piece is a claim, as after a restart. So pieces that did not suffer are proven when
// they are needed, and the others are fetched again. Where only the time of change differs,
// as when a runtime takes its link to the file away, the bytes are proven once and the seal
// stays. Bytes that change below the file system are found by the scrub alone.

// stamp is how the file of a sealed blob looks. The zero stamp is that of a file of which
// that is not known.
type stamp struct {
	size              int64
	modified, changed time.Time
	device, inode     uint64
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size(), modified: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.device, s.inode, s.changed = sys.Dev, sys.Ino, time.Unix(sys.Ctim.Unix())
	}
	return s
}

// touched reports whether the file is as it was but for its time of change.
func (s stamp) touched(now stamp) bool {
	now.changed = s.changed
	return s == now
}

// rememberLocked notes how the file of a sealed blob looks, which the caller has
// written the last of. Where it cannot be told, nothing is ever in doubt.
func (b *Blob) rememberLocked() {
	b.stamp = stamp{}
	if b.file == nil {
		return
	}
	if info, err := b.file.f.Stat(); err == nil {
		b.stamp = stampOf(info)
	}
}

// moveDisk changes the names of the file by move, which changes its time of change.
func (b *Blob) moveDisk(move func() error) error {
	before, err1 := b.stat()
	if err := move(); err != nil {
		return err
	}
	after, err2 := b.stat()
	if errors.Join(err1, err2) != nil {
		return nil // whoever uses the blob looks again
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if was, now := stampOf(before), stampOf(after); b.stamp == was && was.touched(now) {
		b.stamp = now
	}
	return nil
}

// stat looks at the file of the blob, whatever it is called now.
func (b *Blob) stat() (fs.FileInfo, error) {
	info, err := b.store.vol.stat(b.wholePath())
	if errors.Is(err, fs.ErrNotExist) {
		info, err = b.store.vol.stat(b.partPath())
	}
	return info, err
}

// doubtful tells how the file of the blob looks now, and whether somebody else wrote to it
// or may have: of a touched file only proving it tells. Of a blob that is not sealed nobody
// relies on it, and of a file that is not there whoever reads it finds out.
func (b *Blob) doubtful() (now stamp, doubtful, touched bool, err error) {
	if !b.Sealed() {
		return stamp{}, false, false, nil
	}
	info, err := b.stat()
	if err != nil {
		return stamp{}, false, false, absent(err)
	}
	now = stampOf(info)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.sealed || b.writers > 0 || b.stamp == (stamp{}) || b.stamp == now {
		return now, false, false, nil
	}
	touched = b.stamp.touched(now)
	return now, !touched || now.size != b.layout.Size(), touched, nil
}

// doubt takes the seal back when the file was written to. The error says that this
// cannot be told, or that the blob is gone. The caller has a reference.
func (b *Blob) doubt() error {
	_, doubtful, touched, err := b.doubtful()
	if err != nil {
		return fmt.Errorf("store: look at %s: %w", b.digest, err)
	}
	if !doubtful && !touched {
		return nil
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

// proveDisk reads a touched file, and reports whether its bytes are the blob's. Then it
// is known by how it looks now. Others that use the blob wait for that.
func (b *Blob) proveDisk() (bool, error) {
	f, err := b.store.vol.openRead(b.dataPath())
	if err != nil {
		return false, err
	}
	defer func() { _ = f.close() }() // it was only read
	before, err := f.f.Stat()
	if err != nil {
		return false, err
	}
	var group errgroup.Group
	group.SetLimit(cap(b.store.checks))
	for i := range b.layout.Pieces() {
		group.Go(func() error {
			_, held, err := b.proveHeld(f, i)
			if err == nil && !held {
				err = blob.ErrUnknownLink
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return false, nil
	}
	after, err := f.f.Stat()
	if err != nil || stampOf(before) != stampOf(after) {
		return false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stamp = stampOf(after)
	return true, nil
}

// doubtDisk looks once more, now that nobody else can be at it, and takes the name
// away first, as loseDisk does.
func (b *Blob) doubtDisk() (bool, error) {
	_, doubtful, touched, err := b.doubtful()
	if err != nil || !doubtful && !touched {
		return false, err
	}
	if touched && !doubtful {
		if proven, err := b.proveDisk(); proven || err != nil {
			return false, err
		}
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
		b.stamp = stamp{}
		b.mu.Unlock()
		return false, nil
	}
	b.sealed = false
	b.held = blob.NewBitmap(b.layout.Pieces())
	b.claims = blob.NewBitmap(b.layout.Pieces())
	b.claims.SetRun(b.layout.All())
	b.stamp = stamp{}
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
