package task

import (
	"bytes"
	"errors"
	"hash"
	"io"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// Keep returns where to write a blob that goes past on its way from ref to a client, from
// its first byte on. Close keeps it, and tells the cluster, if it has the digest;
// Discard forgets it. size is -1 where it is not known. Nil says that there is nothing to
// keep: the blob is here, somebody else writes it, many others are written, or it is larger
// than blobs are. The keeper is for one goroutine.
func (m *Manager) Keep(ref origin.Ref, d blob.Digest, size int64) *Keeper {
	if size > blob.MaxSize {
		return nil
	}
	if b, ok := m.store.Peek(d); ok {
		sealed := b.Sealed()
		b.Release()
		if sealed {
			return nil
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keeping[d] || len(m.keeping) >= maxKeepers || m.ctx.Err() != nil {
		return nil
	}
	m.keeping[d] = true
	if size < 0 {
		size = keepUntold
	}
	return &Keeper{m: m, ref: ref, digest: d, most: size, sum: d.Hash()}
}

const (
	// keepInMemory is how much of a blob is held in memory before it goes to the disk, in
	// bytes.
	keepInMemory = 1 << 20
	// maxKeepers bounds those that take blobs at a time, and so their memory.
	maxKeepers = 16
	// keepUntold is the most that is kept of a blob whose size nobody told, in bytes.
	keepUntold = 1 << 30
)

var errTooLong = errors.New("there is more than the origin told")

// Keeper takes a blob that may not be what its digest says: nothing of it is seen by anybody
// before all of it is proven.
type Keeper struct {
	m      *Manager
	ref    origin.Ref
	digest blob.Digest
	most   int64 // bytes that may come
	sum    hash.Hash
	size   int64
	head   bytes.Buffer
	file   *os.File // what does not fit in memory, with what does; nil: all is in head
}

// Write implements io.Writer. It errs where there is more than was told, or no room.
func (k *Keeper) Write(p []byte) (int, error) {
	_, _ = k.sum.Write(p) // never fails (hash.Hash)
	if k.size += int64(len(p)); k.size > k.most {
		return 0, errTooLong
	}
	if k.file == nil && k.size <= keepInMemory {
		return k.head.Write(p)
	}
	if k.file == nil {
		f, err := k.m.store.Spool(2 * k.most) // it is written once more
		if err != nil {
			return 0, err
		}
		k.file = f
		if _, err := k.head.WriteTo(f); err != nil {
			return 0, err
		}
	}
	return k.file.Write(p)
}

// Discard forgets what was written.
func (k *Keeper) Discard() {
	if k.file != nil {
		_ = k.file.Close()
	}
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	delete(k.m.keeping, k.digest)
}

// Close keeps the blob if all that was written has the digest. What was in memory is kept
// when it returns; the rest follows.
func (k *Keeper) Close() error {
	if blob.Of(k.digest.Algorithm(), k.sum) != k.digest {
		k.Discard()
		return blob.ErrMismatch
	}
	if k.file == nil {
		defer k.Discard()
		return k.m.keepProven(k.ref, k.digest, k.size, bytes.NewReader(k.head.Bytes()))
	}
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	if k.m.ctx.Err() != nil {
		return ErrClosed
	}
	k.m.running.Go(func() {
		defer k.Discard()
		if err := k.m.keepProven(k.ref, k.digest, k.size, io.NewSectionReader(k.file, 0, k.size)); err != nil {
			k.m.log.Debug("a blob that went past could not be kept", zap.Stringer("digest", k.digest), zap.Error(err))
		}
	})
	return nil
}

// keepProven puts a blob that is proven into the store, and tells of it.
func (m *Manager) keepProven(ref origin.Ref, d blob.Digest, size int64, from io.Reader) error {
	b, err := m.create(m.ctx, d, size)
	if err != nil {
		return err
	}
	defer b.Release()
	b.AddPlace(ref.Place(d), true)
	l := b.Layout()
	buf := m.buffer(int(l.PieceLength()))
	defer m.pieces.Put(buf)
	for i := range l.Pieces() {
		piece := (*buf)[:l.Length(i)]
		if _, err := io.ReadFull(from, piece); err != nil {
			return err
		}
		if err := b.Extend(i, piece); err != nil {
			return err
		}
	}
	m.bytes.WithLabelValues("origin").Add(float64(size))
	m.tellBlob(b, false)
	m.mu.Lock()
	t := m.tasks[d]
	m.mu.Unlock()
	if t != nil {
		t.changed()
	}
	return b.Seal()
}

// keep puts a whole blob safely onto the disk, a while after it has come: a sync
// now would hold up the client's own, which is writing the same bytes. Until then
// a restart checks the blob again before it trusts it.
func (m *Manager) keep(t *task) {
	select {
	case <-m.ctx.Done():
	case <-time.After(m.cfg.Settle):
	}
	if err := t.blob.Seal(); err != nil {
		m.log.Error("a whole blob could not be kept", zap.Stringer("digest", t.digest), zap.Error(err))
	}
}
