package store

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// How a blob leaves. doomLocked takes it from the living: its readers end, and
// nobody gets it any more. expunge deletes its files and gives its bytes back.
// Between the two the blob is in Store.leaving, and its digest cannot be created
// anew, so that a late deletion never meets a new blob's files.

func (s *Store) addLocked(b *Blob) {
	s.blobs[b.digest] = b
	b.elem = s.lru.PushBack(b)
	b.lastUse = time.Now()
	s.countLocked(b, 1)
	s.metrics.blobs.Set(float64(len(s.blobs)))
}

// useLocked marks a use and takes a reference, unless the blob is leaving.
func (s *Store) useLocked(b *Blob) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return false
	}
	b.refs++
	b.used = true
	s.touchLocked(b)
	return true
}

func (s *Store) touchLocked(b *Blob) {
	if b.elem != nil {
		s.lru.MoveToBack(b.elem)
		b.lastUse = time.Now()
	}
}

// doomLocked makes b end with the error why, unless it has ended. A reason other
// than "" counts as an eviction.
func (s *Store) doomLocked(b *Blob, why error, reason string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return false
	}
	b.endLocked(why)
	s.lru.Remove(b.elem)
	b.elem = nil
	s.leaving[b] = struct{}{}
	if reason != "" {
		s.metrics.evictions.WithLabelValues(reason).Inc()
	}
	return true
}

// dropForSizeLocked dooms a blob that is neither proven nor in use, so that one
// of another size can take its place. It tells whether the blob is leaving.
func (s *Store) dropForSizeLocked(b *Blob) bool {
	b.mu.Lock()
	leaving := b.err != nil
	keep := b.sealed || b.refs > 0
	b.mu.Unlock()
	return leaving || !keep && s.doomLocked(b, ErrRemoved, "")
}

// doomUnusedLocked dooms a blob that nobody uses. It tells whether the blob is
// leaving.
func (s *Store) doomUnusedLocked(b *Blob) bool {
	b.mu.Lock()
	leaving, used := b.err != nil, b.refs > 0 && b.used
	b.mu.Unlock()
	// Who takes a reference without this lock has one already. Who only looks at
	// the blob is told that it is gone.
	return leaving || !used && s.doomLocked(b, ErrRemoved, "")
}

// expunge deletes the files of blobs that are leaving and tells of them. It
// waits for whoever is at it already. A blob whose files cannot be deleted keeps
// its bytes and is tried again when room or its digest is needed.
func (s *Store) expunge(blobs ...*Blob) error {
	for _, b := range blobs {
		if err := b.deleteFiles(); err != nil {
			s.log.Warn("cannot delete blob", zap.Stringer("digest", b.digest), zap.Error(err))
			return fmt.Errorf("delete %s: %w", b.digest, err)
		}
		s.mu.Lock()
		_, first := s.leaving[b]
		if first {
			delete(s.leaving, b)
			delete(s.blobs, b.digest)
			s.countLocked(b, -1)
			s.metrics.blobs.Set(float64(len(s.blobs)))
		}
		s.mu.Unlock()
		if first {
			s.tell(b.digest)
		}
	}
	return nil
}

// tell says that pieces of a blob are no longer held.
func (s *Store) tell(d blob.Digest) {
	if s.onDrop != nil {
		s.onDrop(d)
	}
}

// drop makes a blob leave, or helps one that is leaving on its way.
func (s *Store) drop(b *Blob, why error, reason string) error {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.doomLocked(b, why, reason)
	}
	s.mu.Unlock()
	if closed {
		return ErrClosed
	}
	return s.expunge(b)
}

// damaged drops a blob that the disk has lost and returns the error for those
// who use it.
func (s *Store) damaged(b *Blob, cause error) error {
	err := fmt.Errorf("%w: %w", ErrDamaged, cause)
	s.log.Error("blob is damaged; dropping it", zap.Stringer("digest", b.digest), zap.Error(cause))
	// expunge has logged what went wrong; the blob is gone for its users.
	_ = s.drop(b, err, evictDamaged)
	return fmt.Errorf("store: %s: %w", b.digest, err)
}

// makeRoomLocked tells which blobs have to leave before size more bytes fit; none
// when they fit now. It dooms those that nobody uses, least recently used first,
// and none when that would not be enough.
func (s *Store) makeRoomLocked(d blob.Digest, size int64) ([]*Blob, error) {
	limit := s.cfg.MaxBytes
	if limit == 0 || s.used+size <= limit {
		return nil, nil
	}
	need := s.used + size - limit
	var leaving []*Blob
	for b := range s.leaving {
		leaving = append(leaving, b)
		need -= b.costLocked()
	}
	victims, free, pinned, inUse := s.victimsLocked(need, 0, false)
	if free < need {
		return nil, fmt.Errorf("store: create %s: %w: %d bytes needed, the limit is %d, of which %d are pinned and %d in use; raise the limit, unpin blobs or try again later",
			d, ErrNoSpace, size, limit, pinned, inUse)
	}
	for _, b := range victims {
		s.doomLocked(b, ErrRemoved, evictLimit)
	}
	return append(leaving, victims...), nil
}

// victimsLocked picks unused blobs, least recently used first, until they hold
// need bytes and are count or more: as the limit counts them, or what the disk gets. It returns their bytes, and those of blobs
// passed over.
func (s *Store) victimsLocked(need int64, count int, onDisk bool) (victims []*Blob, free, pinned, inUse int64) {
	for e := s.lru.Front(); e != nil && (free < need || len(victims) < count); e = e.Next() {
		b := e.Value.(*Blob)
		size := b.costLocked()
		if b.free {
			continue // evicting it would give nothing
		}
		b.mu.Lock()
		if onDisk && b.inPart && b.held != nil {
			size = int64(b.held.Count()) * b.layout.PieceLength()
		}
		switch {
		case b.pinned:
			pinned += size
		case b.refs > 0:
			inUse += size
		default:
			victims = append(victims, b)
			free += size
		}
		b.mu.Unlock()
	}
	return victims, free, pinned, inUse
}

// shrink brings a store that was just opened within its limit, as far as pins
// allow.
func (s *Store) shrink() {
	if s.cfg.MaxBytes == 0 {
		return
	}
	s.mu.Lock()
	victims, _, _, _ := s.victimsLocked(s.used-s.cfg.MaxBytes, 0, false)
	for _, b := range victims {
		s.doomLocked(b, ErrRemoved, evictLimit)
	}
	s.mu.Unlock()
	// expunge has logged what went wrong; such a blob is tried again later.
	_ = s.expunge(victims...)
}

// evictForDisk gives up unused blobs because the disk is full, until they held need
// bytes or none is left. It tells whether any was. The caller holds no lock.
func (s *Store) evictForDisk(need int64) bool {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false
	}
	victims, _, _, _ := s.victimsLocked(need, 0, true)
	for _, b := range victims {
		s.doomLocked(b, ErrRemoved, evictFull)
	}
	s.mu.Unlock()
	if len(victims) > 0 {
		s.log.Warn("disk is full before the limit of the store is reached; evicted unused blobs",
			zap.Int("blobs", len(victims)), zap.Int64("limit_bytes", s.cfg.MaxBytes))
	}
	return len(victims) > 0 && s.expunge(victims...) == nil
}

// makeDiskRoom gives up unused blobs because a new one of size bytes found the disk
// full, and none when that would not be enough. evicted is what was given up for it
// already. It returns the bytes that blobs gave up, 0 when trying again is of no
// use. The caller holds no lock.
func (s *Store) makeDiskRoom(size, evicted int64) int64 {
	need := int64(1)
	disk, err := s.disk()
	switch {
	case evicted >= max(size, 1):
		return 0
	case err != nil || disk.Files > 0 && disk.FreeFiles < 2*filesOfBlob:
	case disk.Free < size:
		need = size - disk.Free
	default: // a quota of somebody else's, or the file system's own needs
		need = max(1, size-evicted)
	}
	s.mu.Lock()
	_, free, _, _ := s.victimsLocked(need, 0, true)
	s.mu.Unlock()
	if free < need || !s.evictForDisk(need) {
		return 0
	}
	return free
}

// wakeRun lets Run look at the disk.
func (s *Store) wakeRun() {
	select {
	case s.created <- struct{}{}:
	default:
	}
}
