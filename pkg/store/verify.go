package store

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Pieces that a sidecar names after a restart are claims. Nobody is given one
// before it was read and proven against its links like a piece that has just
// come; one that fails is fetched again.

// Verify checks every piece that was found after a restart and not checked yet.
// It reads and hashes them, on all cores, and returns when all are held or
// dropped, or with ctx's error. Calling it is never needed: readers, Missing and
// Front check what they need. It is for telling others soon what is held.
func (b *Blob) Verify(ctx context.Context) error { return b.verify(ctx, b.layout.All()) }

func (b *Blob) verify(ctx context.Context, r blob.Run) error {
	b.mu.Lock()
	none := b.claims == nil || b.claims.Count() == 0
	b.mu.Unlock()
	if none {
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
	var group errgroup.Group
	for range cap(b.store.checks) {
		group.Go(func() error {
			for {
				if ctx.Err() != nil {
					return fmt.Errorf("store: verify %s: %w", b.digest, context.Cause(ctx))
				}
				i, err := b.nextClaim(r)
				if err != nil || i < 0 {
					return err
				}
				if err := b.check(f, i); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// nextClaim returns a claim within r that nobody checks, -1 when none is left. It
// then has waited for those that others check.
func (b *Blob) nextClaim(r blob.Run) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if err := b.err; err != nil {
			return 0, err
		}
		busy := false
		if b.claims != nil {
			for i := b.claims.NextSet(max(r.First, 0)); i < min(r.End(), b.claims.Len()); i = b.claims.NextSet(i + 1) {
				if !b.checking[i] {
					return i, nil
				}
				busy = true
			}
		}
		if !busy {
			return -1, nil
		}
		b.change.Wait()
	}
}

// claimLocked returns a claim that has to be checked before piece i can be served
// and that nobody checks, -1 when there is none: its own or, when it is the last
// piece and waits for the seal, any.
func (b *Blob) claimLocked(i int) int {
	if b.claimedLocked(i) && !b.checking[i] {
		return i
	}
	if b.claims != nil && i == b.layout.Pieces()-1 && b.hasLocked(i) {
		for k := b.claims.NextSet(0); k < b.claims.Len(); k = b.claims.NextSet(k + 1) {
			if !b.checking[k] {
				return k
			}
		}
	}
	return -1
}

// check proves the claim of piece i, unless somebody else is at it. The piece is
// held afterwards or not claimed any more. The caller has a reference.
func (b *Blob) check(f *file, i int) error {
	b.store.checks <- struct{}{}
	defer func() { <-b.store.checks }()
	p, next, ok := b.beginCheck(i)
	if !ok {
		return nil
	}
	// What a failed sync left in memory reads well, and is not on the disk.
	f.forget(b.layout.Offset(i), b.layout.Length(i))
	err := b.proveOnDisk(f, i, p, next)
	if err != nil {
		b.store.metrics.rotten.Inc()
		b.warn("piece found on disk is not what the sidecar says; it will be fetched again", err)
	}
	if b.endCheck(i, p.gen, err == nil) {
		return b.Seal()
	}
	return nil
}

func (b *Blob) beginCheck(i int) (p proof, next []byte, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || b.hasLocked(i) || !b.claimedLocked(i) || b.checking[i] {
		return p, nil, false
	}
	if b.checking == nil {
		b.checking = map[int]bool{}
	}
	b.checking[i] = true
	copy(p.link[:], b.chain.Link(i))
	p.gen = b.gen
	return p, b.chain.Links(i+1, 1), true
}

// proveOnDisk reads piece i and proves it.
func (b *Blob) proveOnDisk(f *file, i int, p proof, next []byte) error {
	buf := b.store.pieceBuffer(b.layout.PieceLength())
	defer b.store.pieces.Put(buf)
	piece := (*buf)[:b.layout.Length(i)]
	if n, err := f.ReadAt(piece, b.layout.Offset(i)); n < len(piece) {
		return fmt.Errorf("piece %d: %w", i, err)
	}
	got, err := blob.Advance(b.digest, b.layout, i, p.link[:b.digest.LinkSize()], piece)
	if err == nil && string(got) != string(next) {
		err = blob.ErrMismatch
	}
	if err != nil {
		return fmt.Errorf("piece %d: %w", i, err)
	}
	return nil
}

// endCheck settles a claim. It tells whether the blob was proven by it.
func (b *Blob) endCheck(i int, gen uint64, proven bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.checking, i)
	b.change.Broadcast()
	if b.err != nil || b.gen != gen || b.sealed {
		return false
	}
	if proven {
		return b.holdLocked(i)
	}
	if b.claims != nil && b.claims.Clear(i) {
		b.dirty = true
		b.wakeLocked(i)
	}
	return false
}

// pieceBuffer returns a buffer of at least n bytes; it goes back to s.pieces.
func (s *Store) pieceBuffer(n int64) *[]byte {
	if buf, ok := s.pieces.Get().(*[]byte); ok && int64(cap(*buf)) >= n {
		*buf = (*buf)[:cap(*buf)]
		return buf
	}
	buf := make([]byte, n)
	return &buf
}
