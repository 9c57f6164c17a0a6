package store

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"fmt"
	"syscall"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Put takes piece i of the blob, whole, from any source. It proves the piece
// against links i and i+1 (the last piece against link i and the digest), writes
// it and wakes who waits for it. The piece is hashed by the caller's goroutine
// with no lock held; put pieces at once from as many as there are cores. piece
// stays the caller's, who leaves it as it is until Put returns. A piece that is held
// already is no error. Put of the piece that completes the blob seals it for its
// readers; Seal puts that on the disk.
//
// The error wraps blob.ErrUnknownLink when a link is not known yet,
// blob.ErrMismatch when the piece does not fit them, ErrNoSpace when the disk is
// full, ErrRemoved, ErrDamaged or ErrClosed when the blob has ended, or is that
// of the failed write. The piece is then not held.
func (b *Blob) Put(i int, piece []byte) error {
	return b.put(&Arrival{b: b, i: i, parts: [][]byte{piece}}, false)
}

// Extend takes piece i from the origin, read in order, where the chain ends: it
// needs link i and adds link i+1 to the chain. Where link i+1 is known it is Put.
//
// Errors are those of Put, but a last piece that does not reach the digest gives
// ErrBadDigest, which wraps blob.ErrMismatch: this piece or one before it is
// wrong. Nothing of the blob's last piece was given to anybody; call Reset.
func (b *Blob) Extend(i int, piece []byte) error {
	return b.put(&Arrival{b: b, i: i, parts: [][]byte{piece}}, true)
}

func (b *Blob) put(a *Arrival, origin bool) error {
	i := a.i
	if err := b.layout.Check(blob.Run{First: i, Count: 1}); err != nil {
		return fmt.Errorf("store: put into %s: %w", b.digest, err)
	}
	b.mu.Lock()
	held := b.err == nil && b.hasLocked(i)
	b.mu.Unlock()
	if held {
		return nil
	}
	f, err := b.enter()
	if err != nil {
		return err
	}
	defer b.Release()
	if err := b.load(); err != nil {
		return err
	}
	for {
		p, held, err := b.proofOf(i, origin)
		if err != nil || held {
			return err
		}
		next, err := a.next(p.link)
		if err != nil {
			if origin && i == b.layout.Pieces()-1 && int64(len(a.parts[0])) == b.layout.Length(i) {
				err = ErrBadDigest
			}
			return fmt.Errorf("store: piece %d of %s: %w", i, b.digest, err)
		}
		admitted, err := b.admit(i, next, p.gen)
		if err != nil {
			return err
		}
		if admitted {
			return b.write(f, i, a)
		}
	}
}

// proof is what a piece is proven against, copied out of the chain.
type proof struct {
	link [sha512.Size]byte
	gen  uint64
}

// proofOf returns what piece i is to be proven against, or that it is held.
func (b *Blob) proofOf(i int, origin bool) (p proof, held bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.err; err != nil {
		return p, false, err
	}
	if b.hasLocked(i) {
		return p, true, nil
	}
	if link := b.chain.Link(i); link == nil || !origin && !b.chain.Proves(i) {
		return p, false, fmt.Errorf("store: piece %d of %s: %w", i, b.digest, blob.ErrUnknownLink)
	}
	copy(p.link[:], b.chain.Link(i))
	p.gen = b.gen
	return p, false, nil
}

// admit decides whether piece i, which leads to the link next, may be written,
// and counts the writer in. It is false when the proof is void, because the blob
// was started over or lost bytes since it began, and when the piece is held by now.
// A piece has one writer at a time, so that nobody writes to a blob that is sealed.
func (b *Blob) admit(i int, next []byte, gen uint64) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for (b.resetting || b.writing[i]) && b.err == nil {
		b.change.Wait()
	}
	if err := b.err; err != nil {
		return false, err
	}
	if b.gen != gen || b.hasLocked(i) {
		return false, nil
	}
	if next != nil {
		switch known := b.chain.Link(i + 1); {
		case known == nil:
			if err := b.chain.Add(i+1, next); err != nil {
				return false, fmt.Errorf("store: link %d of %s: %w", i+1, b.digest, err)
			}
			b.dirty = true
		case !bytes.Equal(known, next):
			return false, fmt.Errorf("store: piece %d of %s: %w", i, b.digest, blob.ErrMismatch)
		}
	}
	if b.writing == nil {
		b.writing = map[int]bool{}
	}
	b.writing[i] = true
	b.writers++
	return true, nil
}

// write puts a proven piece onto the disk and makes it known.
func (b *Blob) write(f *file, i int, a *Arrival) error {
	off := b.layout.Offset(i)
	length, err := b.layout.Length(i), error(syscall.ENOSPC)
	if !b.inPart || b.store.roomFor(length) {
		err = f.writeParts(a.parts, off)
	}
	// What cannot be kept whole is not worth another blob.
	if isFull(err) && !b.inPart && b.store.evictForDisk(length) {
		err = f.writeParts(a.parts, off)
	}
	switch ended := b.wrote(i, err == nil); {
	case ended != nil:
		return ended
	case err != nil:
		return fmt.Errorf("store: write piece %d of %s: %w", i, b.digest, full(err))
	}
	b.saveSoon()
	return nil
}

// wrote counts a writer out and takes its piece as held. It returns why the blob
// has ended, if it has.
func (b *Blob) wrote(i int, ok bool) (ended error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.writing, i)
	b.writers--
	b.change.Broadcast()
	if err := b.err; err != nil || !ok {
		return err
	}
	b.holdLocked(i)
	return nil
}

// holdLocked takes piece i, which is proven and written, as held. When every
// piece is, their links join from the initial value to the digest, so the blob is
// proven: it is sealed, and holdLocked returns true.
func (b *Blob) holdLocked(i int) bool {
	if b.claims != nil {
		b.claims.Clear(i)
	}
	if b.sealed || !b.held.Set(i) {
		return false
	}
	b.dirty = true
	b.fresh++
	if b.held.Full() {
		b.sealed = true
		b.held, b.claims = nil, nil
		b.rememberLocked()
		b.wakeAllLocked()
		return true
	}
	if i < b.layout.Pieces()-1 {
		b.wakeLocked(i)
	}
	return false
}

// AddLinks adds links that stand side by side, the first being link first. It
// takes all or none. Links are promises of whoever published them; only pieces
// prove them. The error wraps blob.ErrConflict where one differs from a link that
// is known, and otherwise says that they do not fit the blob.
func (b *Blob) AddLinks(first int, links []byte) error {
	if err := b.hold(); err != nil {
		return err
	}
	defer b.Release()
	if err := b.load(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.err; err != nil {
		return err
	}
	if err := b.chain.Add(first, links); err != nil {
		return fmt.Errorf("store: links of %s: %w", b.digest, err)
	}
	b.dirty = b.dirty || !b.sealed
	return nil
}

// Linked is the set of links that are known.
func (b *Blob) Linked() *blob.Bitmap {
	n := b.layout.Pieces()
	out := blob.NewBitmap(n)
	for at := 0; at < n; {
		first, links := b.Links(at, n-at)
		count := len(links) / b.digest.LinkSize()
		if count == 0 {
			break
		}
		out.SetRun(blob.Run{First: first, Count: count})
		at = first + count
	}
	return out
}

// Links returns known links side by side, which never change: those of [first, first+count)
// from the first known one on, up to the first gap. firstOut is the index of the
// first link returned. links is empty when none of them is known.
func (b *Blob) Links(first, count int) (firstOut int, links []byte) {
	if b.hold() != nil {
		return first, nil
	}
	defer b.Release()
	if err := b.load(); err != nil {
		if !errors.Is(err, ErrDamaged) {
			b.warn("cannot read links", err)
		}
		return first, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.layout.Pieces()
	if b.err != nil || first < 0 || first >= n || count <= 0 {
		return first, nil
	}
	end := first + min(count, n-first)
	for i := first; i < end; i++ {
		if b.chain.Link(i) != nil {
			return i, b.chain.Links(i, end-i)
		}
	}
	return first, nil
}

// Reset starts the blob over because its chain led to a wrong digest: it drops
// every piece that is not proven and every link but the first. Of a sealed blob
// all is proven; nothing happens. Readers that have handed out nothing yet keep
// waiting; those that have end with ErrReset, for what they gave is not vouched
// for any more. Put, Extend and AddLinks may go on at once.
func (b *Blob) Reset() error {
	if err := b.hold(); err != nil {
		return err
	}
	defer b.Release()
	if err := b.load(); err != nil {
		return err
	}
	lost, err := b.reset()
	if err != nil || lost == 0 {
		return err
	}
	b.store.log.Warn("chain led to a wrong digest; blob is started over",
		zap.Stringer("digest", b.digest), zap.Int("pieces", lost))
	b.disk.Lock()
	err = b.saveDisk(false)
	b.disk.Unlock()
	if err != nil {
		b.warn("cannot save sidecar of a blob that was started over; a restart would check and drop its pieces", err)
	}
	b.store.tell(b.digest)
	return nil
}

// reset tells how many pieces it dropped.
func (b *Blob) reset() (lost int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.resetting && b.err == nil {
		b.change.Wait()
	}
	// A piece that is being written is proven by the chain that is to go. Were
	// it still written after a piece of the next chain, that one would be wrong.
	b.resetting = true
	for b.writers > 0 {
		b.change.Wait()
	}
	b.resetting = false
	b.change.Broadcast()
	if err := b.err; err != nil || b.sealed {
		return 0, err
	}
	lost = b.held.Count()
	b.gen++
	b.resets++
	b.stands = 0
	b.held = blob.NewBitmap(b.layout.Pieces())
	b.claims = nil
	b.places = nil // who served what had another digest has not served the blob
	b.chain.Forget()
	b.dirty = true
	b.fresh = 0
	b.wakeAllLocked()
	return lost, nil
}
