package store

import (
	"context"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Proof is what reading a blob again has shown.
type Proof struct {
	Digest blob.Digest
	Pieces int   // pieces that were held or found on disk, and read
	Bytes  int64 // bytes of them
	Rotten int   // pieces that were not what they should be, and are no longer held
}

// Prove reads and proves every piece of a blob that is held or was found on disk,
// on all cores. Rotten pieces are given up as if a reader had found them. It does
// not count as a use of the blob. The error wraps ErrNotHeld when the store has no
// such blob, or is ctx's, or says why the blob could not be read.
func (s *Store) Prove(ctx context.Context, d blob.Digest) (Proof, error) {
	p := Proof{Digest: d}
	b, ok := s.Peek(d)
	if !ok {
		return p, fmt.Errorf("store: prove %s: %w", d, ErrNotHeld)
	}
	defer b.Release()
	err := b.load()
	if err == nil {
		p.Rotten, p.Bytes, err = b.settleClaims(ctx)
		p.Pieces = p.Rotten
	}
	var f *file
	if err == nil {
		f, err = b.openFile()
	}
	if err == nil {
		err = b.proveAll(ctx, f, &p)
	}
	if err != nil {
		return p, fmt.Errorf("store: prove %s: %w", d, err)
	}
	return p, nil
}

// settleClaims checks what was found on disk. It tells how much of it was wrong.
func (b *Blob) settleClaims(ctx context.Context) (pieces int, bytes int64, err error) {
	b.mu.Lock()
	var claims []blob.Run
	if b.claims != nil {
		claims = b.claims.Runs()
	}
	b.mu.Unlock()
	err = b.Verify(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range claims {
		for i := r.First; i < r.End(); i++ {
			if !b.hasLocked(i) && !b.claimedLocked(i) {
				pieces++
				bytes += b.layout.Length(i)
			}
		}
	}
	return pieces, bytes, err
}

func (b *Blob) proveAll(ctx context.Context, f *file, p *Proof) error {
	var next, pieces, bytes, rotten atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range cap(b.store.checks) {
		group.Go(func() error {
			for i := int(next.Add(1) - 1); i < b.layout.Pieces(); i = int(next.Add(1) - 1) {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				read, bad := b.prove(f, i)
				if read {
					pieces.Add(1)
					bytes.Add(b.layout.Length(i))
				}
				if bad {
					rotten.Add(1)
				}
			}
			return nil
		})
	}
	err := group.Wait()
	p.Pieces += int(pieces.Load())
	p.Bytes += bytes.Load()
	p.Rotten += int(rotten.Load())
	return err
}
