package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// A container runtime on the same file system may keep the same bytes. Share puts
// its file in place of ours, as a hard link or as a clone of its extents, so that
// they are on the disk once. The link is made from the runtime's file to a name of
// ours; nothing in the runtime's directories is ever written.
//
// A file that came so is frozen: nobody writes to it, for it may be the runtime's
// own. And it is free: it counts nothing against the limit, and evicting it would
// give nothing, until Unshare says that the runtime has let go of it.

// shareDir holds, in the volume, links that are not proven yet.
const shareDir = "share"

// Share makes the file at path, in which somebody else keeps blob d, the data of d
// here. It reads the file once and proves it against d before it counts; links
// come of the same pass. A blob that is held keeps its users, its pin and its
// place, and the disk has the room of its own file back when the last user closes
// it. A blob that is not held, or in part and unused, is sealed and held from then
// on; it leaves with Unshare. A blob that shares the file already is left so.
//
// One file is shared at a time; another call waits. pace is called before n bytes are
// read, not at all when the blob shares the file already, and Share ends with its error.
// It returns ErrCannotShare when the file system does not let two names or two files
// share bytes; ErrInUse when the file is still writable, or the blob is on its way
// here; ErrBadDigest when the file's bytes are not d's; fs.ErrNotExist when the
// file has gone; ErrNoSpace and errors of the disk. All of these are wrapped, and
// leave the store as it was.
func (s *Store) Share(ctx context.Context, d blob.Digest, path string, pace func(ctx context.Context, n int64) error) error {
	if _, err := blob.ParseDigest(string(d)); err != nil {
		return fmt.Errorf("store: share: %w", err)
	}
	s.sharing.Lock()
	defer s.sharing.Unlock()
	err := s.shareFile(ctx, d, path, pace)
	switch {
	case err == nil:
		s.metrics.twice.Set(0)
		return nil
	case errors.Is(err, ErrCannotShare):
		s.metrics.twice.Set(1)
	}
	return fmt.Errorf("store: share %s: %w", d, full(err))
}

func (s *Store) shareFile(ctx context.Context, d blob.Digest, from string, pace func(context.Context, int64) error) error {
	before, err := os.Lstat(from)
	if err != nil {
		return err
	}
	layout, err := blob.NewLayout(before.Size())
	if err != nil {
		return err
	}
	switch {
	case !before.Mode().IsRegular() || before.Size() == 0:
		return fmt.Errorf("%s is no file with bytes: %w", from, ErrBadDigest)
	case before.Mode().Perm()&0o222 != 0:
		return fmt.Errorf("%s can be written: %w", from, ErrInUse)
	}
	// One whose file was written to goes first: of a hard link, ours is theirs.
	if b, ok := s.Peek(d); ok {
		b.Release()
	}
	if done, err := s.shares(d, before); done || err != nil {
		return err
	}
	name := path.Join(shareDir, d.Algorithm()+"-"+d.Hex())
	if err := s.vol.mkdir(shareDir); err != nil {
		return err
	}
	if err := s.vol.remove(name); err != nil { // a Share that could not clear up
		return err
	}
	// Where the rename was done it is gone, or is the same file under two names.
	defer func() {
		if err := s.vol.remove(name); err != nil {
			s.log.Warn("cannot remove a link to the runtime's file; it keeps the bytes on the disk until a restart", zap.Error(err))
		}
	}()
	if err := s.vol.borrow(from, name, before); err != nil {
		return err
	}
	guard, err := s.vol.leased(name)
	if err != nil {
		return err
	}
	defer guard.end()
	chain, err := s.proveFile(ctx, name, d, layout, pace)
	if err != nil {
		return err
	}
	return s.take(d, layout, name, chain, guard)
}

// shares tells whether the blob shares the runtime's file already, whose bytes are
// then free. The error says why it cannot now.
func (s *Store) shares(d blob.Digest, theirs fs.FileInfo) (bool, error) {
	s.mu.Lock()
	b, closed := s.blobs[d], s.closed
	s.mu.Unlock()
	if closed {
		return false, ErrClosed
	}
	if b == nil {
		return false, nil
	}
	b.mu.Lock()
	ended, sealed, frozen, refs := b.err != nil, b.sealed, b.frozen, b.refs
	b.mu.Unlock()
	if ended || !sealed && refs > 0 {
		return false, ErrInUse
	}
	if !sealed || !frozen {
		return false, nil
	}
	ours, err := s.vol.stat(b.wholePath())
	// A clone is told by the time that it was given.
	if err != nil || ours.Size() != theirs.Size() || !ours.ModTime().Equal(theirs.ModTime()) {
		return false, absent(err)
	}
	s.setFree(b, true)
	return true, nil
}

// proveFile reads a file of the volume from its start to its end, and returns its
// chain when it reaches the digest.
func (s *Store) proveFile(ctx context.Context, name string, d blob.Digest, l blob.Layout, pace func(context.Context, int64) error) (_ *blob.Chain, err error) {
	info, err := s.vol.stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() != l.Size() {
		return nil, fmt.Errorf("the file has changed: %w", ErrInUse)
	}
	f, err := s.vol.openRead(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	chain := blob.NewChain(d, l)
	for i := range l.Pieces() {
		if err := pace(ctx, l.Length(i)); err != nil {
			return nil, err
		}
		if err := s.provePiece(f, chain, d, l, i); err != nil {
			return nil, err
		}
	}
	after, err := f.f.Stat()
	if err != nil {
		return nil, err
	}
	if stampOf(after) != stampOf(info) {
		return nil, fmt.Errorf("the file has changed: %w", ErrInUse)
	}
	// Its name here will be trusted after a power cut.
	return chain, f.Sync()
}

// provePiece reads piece i, and adds the link that it leads to.
func (s *Store) provePiece(f *file, chain *blob.Chain, d blob.Digest, l blob.Layout, i int) error {
	s.checks <- struct{}{}
	defer func() { <-s.checks }()
	buf := s.pieceBuffer(l.PieceLength())
	defer s.pieces.Put(buf)
	piece := (*buf)[:l.Length(i)]
	if n, err := f.ReadAt(piece, l.Offset(i)); n < len(piece) {
		return fmt.Errorf("read piece %d: %w", i, err)
	}
	next, err := blob.Advance(d, l, i, chain.Link(i), piece)
	if errors.Is(err, blob.ErrMismatch) {
		return ErrBadDigest
	}
	if err != nil || next == nil {
		return err
	}
	return chain.Add(i+1, next)
}

// take makes the file name of the volume, whose bytes are proven, the data of d.
func (s *Store) take(d blob.Digest, l blob.Layout, name string, chain *blob.Chain, guard *lease) error {
	for {
		b, fresh, leaving, err := s.reserveShared(d, l)
		if err != nil {
			return err
		}
		if b == nil {
			if err := s.expunge(leaving); err != nil {
				return err
			}
			continue
		}
		err = b.takeDisk(name, chain, fresh, guard)
		b.disk.Unlock()
		switch {
		case err == nil:
			s.setFree(b, true)
		case fresh:
			// expunge has logged what went wrong; sharing has failed either way.
			_ = s.drop(b, err, "")
		}
		b.Release()
		return err
	}
}

// reserveShared returns the blob in use with its disk lock held. When a blob has to
// be deleted first, it returns that instead.
func (s *Store) reserveShared(d blob.Digest, l blob.Layout) (b *Blob, fresh bool, leaving *Blob, err error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, false, nil, ErrClosed
	}
	b = s.blobs[d]
	if b == nil {
		b = newBlob(s, d, l)
		b.disk.Lock() // nobody else knows the blob yet, so this does not wait
		b.refs, b.free, b.adopted = 1, true, true
		s.addLocked(b)
		s.mu.Unlock()
		return b, true, nil, nil
	}
	if s.dropForSizeLocked(b) {
		s.mu.Unlock()
		return nil, false, b, nil
	}
	b.mu.Lock()
	sealed := b.sealed
	if sealed {
		b.refs++
	}
	b.mu.Unlock()
	s.mu.Unlock()
	if !sealed {
		return nil, false, nil, ErrInUse
	}
	b.disk.Lock()
	return b, false, nil, nil
}

// takeDisk puts the file under the blob's trusted name. The sidecar comes first, so
// that no crash leaves the file there without the word that it is not to be
// written to.
func (b *Blob) takeDisk(name string, chain *blob.Chain, fresh bool, guard *lease) error {
	v := b.store.vol
	if fresh {
		if err := b.clearDisk(); err != nil {
			return err
		}
	}
	b.mu.Lock()
	if err := b.err; err != nil {
		b.mu.Unlock()
		return err
	}
	if !fresh && !b.sealed {
		b.mu.Unlock()
		return fmt.Errorf("the blob has just lost a piece: %w", ErrInUse)
	}
	b.frozen, b.changed = true, unproven()
	h := header{digest: b.digest, layout: b.layout, sealed: true, pinned: b.pinned, shared: true, adopted: b.adopted, places: b.places}
	b.mu.Unlock()
	data := (&sidecar{header: h, chain: chain}).encode()
	steps := []func() error{
		func() error { return v.replaceFile(b.metaPath(), b.tempPath(), data, true) },
		func() error { return v.syncPath(b.dir()) },
		func() error { return v.rename(name, b.wholePath()) },
		func() error { return v.syncDir(shareDir) },
		func() error { return v.syncPath(b.dir()) },
	}
	if !b.named && !fresh { // it was not sealed on the disk yet
		steps = append(steps,
			func() error { return v.remove(b.partPath()) },
			func() error { return v.syncPath(b.dir()) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	b.named, b.synced, b.marked = true, true, true
	// Where nobody can have written to it since it was proven, its stamp is proven too.
	now := unproven()
	if is, err := guard.f.stamp(); err == nil {
		is.settle()
		if guard.held() {
			now = is
		}
	}
	b.store.marks.Store(true)
	b.mu.Lock()
	b.changed = now
	b.sealed, b.loaded, b.dirty = true, true, false
	b.held, b.claims = nil, nil
	b.wakeAllLocked()
	b.mu.Unlock()
	return nil
}

// clearDisk makes the directory of a new blob, and room in it for its files.
func (b *Blob) clearDisk() error {
	v := b.store.vol
	if err := v.mkdir(b.digest.Algorithm()); err != nil {
		return err
	}
	if err := v.mkdir(b.dir()); err != nil {
		return err
	}
	// Files of another version that were left alone must not be taken for ours.
	for _, name := range []string{b.metaPath(), b.wholePath(), b.partPath()} {
		if err := v.remove(name); err != nil {
			return err
		}
	}
	return v.syncPath(b.dir())
}

// Unshare says that the runtime has let go of the file that blob d shares, if it
// does. A blob that came from the runtime alone leaves, unless it is pinned; any
// other counts against the limit again, for which unused blobs may have to go. The
// error wraps ErrInUse when the blob would leave and is in use.
func (s *Store) Unshare(d blob.Digest) error {
	s.mu.Lock()
	b := s.blobs[d]
	if b == nil || s.closed || !b.free || b.elem == nil {
		s.mu.Unlock()
		return nil
	}
	b.mu.Lock()
	leaves, used := b.adopted && !b.pinned, b.refs > 0
	b.mu.Unlock()
	if leaves && used {
		s.mu.Unlock()
		return fmt.Errorf("store: unshare %s: %w", d, ErrInUse)
	}
	if leaves {
		s.doomLocked(b, ErrRemoved, evictShared)
	}
	s.mu.Unlock()
	if leaves {
		return s.expunge(b)
	}
	s.setFree(b, false)
	s.shrink()
	return nil
}

// setFree says whether the bytes of a blob count against the limit.
func (s *Store) setFree(b *Blob, free bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.elem == nil || b.free == free { // of a blob that leaves they are given back as they were taken
		return
	}
	s.countLocked(b, -1)
	b.free = free
	s.countLocked(b, 1)
}

// countLocked adds the bytes of a blob to what is taken, or with sign -1 gives
// them back.
func (s *Store) countLocked(b *Blob, sign int64) {
	s.used += sign * b.costLocked()
	s.free += sign * (b.layout.Size() - b.costLocked())
	s.metrics.bytes.Set(float64(s.used))
	s.metrics.shared.Set(float64(s.free))
}

// costLocked is what a blob takes of the limit, and what evicting it gives back.
func (b *Blob) costLocked() int64 {
	if b.free {
		return 0
	}
	return b.layout.Size()
}

// isFrozen tells whether the blob's data may be a file that somebody else has too.
func (b *Blob) isFrozen() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.frozen
}
