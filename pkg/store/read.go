package store

import (
	"context"
	"errors"
	"fmt"
	"io"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// ReadPiece reads piece i into buf, which is as long as the piece. Errors are
// those of ReadAt.
func (b *Blob) ReadPiece(i int, buf []byte) error {
	if err := b.layout.Check(blob.Run{First: i, Count: 1}); err != nil {
		return fmt.Errorf("store: read %s: %w", b.digest, err)
	}
	if int64(len(buf)) != b.layout.Length(i) {
		return fmt.Errorf("store: read piece %d of %s: it has %d bytes, the buffer %d", i, b.digest, b.layout.Length(i), len(buf))
	}
	_, err := b.ReadAt(buf, b.layout.Offset(i))
	return err
}

// ReadAt reads len(p) bytes at off for another node; it implements io.ReaderAt
// and does not wait for bytes. Unlike a Reader, which feeds a client, it gives the
// last piece as soon as that is held: the piece has reached the digest, and the
// other node proves the whole for itself. The error wraps ErrMissing when not all of them may be served now,
// and ErrDamaged when the disk could not give them back: the piece is then no
// longer held.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("store: read %s: offset %d", b.digest, off)
	}
	if off >= b.layout.Size() {
		return 0, io.EOF
	}
	short := int64(len(p)) > b.layout.Size()-off
	if short {
		p = p[:b.layout.Size()-off]
	}
	if err := b.verify(context.Background(), b.layout.Covering(off, int64(len(p)))); err != nil {
		return 0, err
	}
	f, err := b.enter()
	if err != nil {
		return 0, err
	}
	defer b.Release()
	n, gen := b.heldAt(off, int64(len(p)))
	if n < int64(len(p)) {
		return 0, fmt.Errorf("store: read piece %d of %s: %w", b.layout.At(off+n), b.digest, ErrMissing)
	}
	if got, err := b.readFile(f, p, off); err != nil {
		return got, err
	}
	if !b.still(gen) {
		return 0, fmt.Errorf("store: read %s: %w", b.digest, ErrMissing)
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// heldAt tells how many of the n bytes at off are held now, and in which
// generation of the blob.
func (b *Blob) heldAt(off, n int64) (int64, uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.heldLocked(off, n, b.layout.Pieces()), b.gen
}

// readableLocked tells how many of the n bytes at off a client may be given now:
// the last piece waits for the seal, so that nobody completes a blob that is not
// proven.
func (b *Blob) readableLocked(off, n int64) int64 {
	return b.heldLocked(off, n, b.layout.Pieces()-1)
}

// heldLocked tells how many of the n bytes at off lie in pieces before end that
// are held, or in a blob that is sealed.
func (b *Blob) heldLocked(off, n int64, end int) int64 {
	switch {
	case b.err != nil:
		return 0
	case b.sealed:
		return min(n, b.layout.Size()-off)
	case b.held == nil:
		return 0
	}
	end = min(b.held.NextClear(b.layout.At(off)), end)
	return max(0, min(n, b.layout.Offset(end)-off, b.layout.Size()-off))
}

// still tells whether the blob lives and has lost nothing since it was in the
// generation gen: bytes that were read in between are then those that were proven.
func (b *Blob) still(gen uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err == nil && b.gen == gen
}

// readFile reads bytes of held pieces. When the disk does not give them back, the
// piece is given up.
func (b *Blob) readFile(f *file, p []byte, off int64) (int, error) {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	b.mu.Lock()
	ended := b.err
	b.mu.Unlock()
	if ended != nil {
		return n, ended
	}
	if isScarcity(err) {
		return n, fmt.Errorf("store: read %s: %w", b.digest, err)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, b.lose(b.layout.At(off+int64(n)), err)
}

// lose gives up piece i, which the disk did not give back, and returns the error
// for its readers. Readers that come to it end with that error too: nobody may be
// there who fetches it again. The caller has a reference.
func (b *Blob) lose(i int, cause error) error {
	err := fmt.Errorf("store: read piece %d of %s: %w: %w", i, b.digest, ErrDamaged, cause)
	if err := b.load(); err != nil {
		if b.Sealed() && !isScarcity(err) {
			return b.damaged(err) // neither piece nor links
		}
		return err
	}
	b.disk.Lock()
	lost, failed := b.loseDisk(i, err)
	b.disk.Unlock()
	if failed != nil {
		b.store.metrics.rotten.Inc()
		return b.damaged(failed)
	}
	if lost {
		b.store.metrics.rotten.Inc()
		b.store.log.Error("disk lost a piece; it will be fetched again when it is wanted",
			zap.Stringer("digest", b.digest), zap.Int("piece", i), zap.Error(cause))
		b.store.tell(b.digest)
	}
	return err
}

// loseDisk takes the seal back on disk before it does so in memory: a piece that
// is written anew must never be under a name that is trusted.
func (b *Blob) loseDisk(i int, told error) (lost bool, err error) {
	if err := b.unnameDisk(); err != nil {
		return false, err
	}
	end := b.layout.Size()
	if errors.Is(told, io.ErrUnexpectedEOF) {
		// What else was cut off goes as well: once the piece is written anew, it
		// would read as zeros.
		info, err := b.stat()
		if err != nil {
			return false, err
		}
		end = info.Size()
	}
	b.mu.Lock()
	if b.err != nil || !b.hasLocked(i) {
		b.mu.Unlock()
		return false, nil
	}
	if b.sealed {
		b.sealed = false
		b.held = blob.NewBitmap(b.layout.Pieces())
		b.held.SetRun(b.layout.All())
	}
	b.held.Clear(i)
	for k := b.held.NextSet(0); k < b.held.Len(); k = b.held.NextSet(k + 1) {
		if b.layout.Offset(k)+b.layout.Length(k) > end {
			b.held.Clear(k)
		}
	}
	b.gen++
	b.dirty = true
	b.failLocked(told)
	b.mu.Unlock()
	if err := b.saveDisk(false); err != nil {
		b.warn("cannot save sidecar of a damaged blob; a restart would check what it names", err)
	}
	return true, nil
}
