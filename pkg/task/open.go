package task

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// Request says which blob a client wants, and where it comes from.
type Request struct {
	Digest blob.Digest
	// Size in bytes; zero or less when it is not known, which costs a HEAD.
	Size int64
	Ref  origin.Ref
	// Header holds what the client sent for the origin (Authorization). It goes
	// to the origin, and to the seed that reads for this client, and nowhere else.
	Header http.Header
	// Offset and Length are the bytes that this client reads, Length < 0: to the
	// end. Other bytes of the blob can be read too; they may not be on their way.
	Offset, Length int64
}

// Handle is one client's hold on a blob. It is for one goroutine; Close ends it.
type Handle struct {
	size    int64
	blob    *store.Blob
	content io.ReadSeekCloser
	ready   func(ctx context.Context, off int64) error
	close   func()
}

// Size is the blob's size in bytes.
func (h *Handle) Size() int64 { return h.size }

// Sealed returns the blob as a file when all of it is here; the caller closes
// the file.
func (h *Handle) Sealed() (*os.File, bool) {
	if h.blob == nil || !h.blob.Sealed() {
		return nil, false
	}
	f, err := h.blob.File()
	return f, err == nil
}

// Content reads the blob, waiting for bytes that have not come yet. It fails
// with the task's error.
func (h *Handle) Content() io.ReadSeeker { return h.content }

// Ready returns when the byte at off can be read, with the task's error when it
// never will be (an *origin.StatusError keeps the origin's answer), or with
// ctx's.
func (h *Handle) Ready(ctx context.Context, off int64) error { return h.ready(ctx, off) }

// Close says that this client is gone; others that wait for the blob go on.
func (h *Handle) Close() error {
	defer h.close()
	return h.content.Close()
}

// Open returns a handle on the blob that req names, while its bytes are on their
// way. ctx is the client's: reads through the handle end with it, the task does
// not. It errs when the blob's size cannot be learned or the store refuses.
func (m *Manager) Open(ctx context.Context, req Request) (*Handle, error) {
	if b, ok := m.store.Get(req.Digest); ok {
		if b.Sealed() {
			return m.handle(ctx, b, nil, blob.Run{}), nil
		}
		b.Release()
	}
	size := req.Size
	if size <= 0 {
		var err error
		if size, _, _, err = m.origins.Size(ctx, req.Ref, req.Header); err != nil {
			return nil, fmt.Errorf("learning the size of %s: %w", req.Digest, err)
		}
	}
	b, err := m.create(ctx, req.Digest, size)
	if errors.Is(err, store.ErrNoSpace) {
		m.log.Warn("the store has no room for a blob; a client gets it as it comes, and nothing is kept",
			zap.Stringer("digest", req.Digest), zap.Int64("size", size))
		return m.passThrough(m.swarmContent(ctx, req, size, nil)), nil
	}
	if errors.Is(err, store.ErrSize) {
		// One of two origins lies. Its clients shall not keep those of the other
		// from the blob: the digest tells who was right.
		m.log.Warn("two origins tell two sizes of a blob; a client gets it straight from its own",
			zap.Stringer("digest", req.Digest), zap.Error(err))
		return m.passThrough(m.originContent(ctx, req, size)), nil
	}
	if err != nil {
		return nil, err
	}
	if b.Sealed() {
		return m.handle(ctx, b, nil, blob.Run{}), nil
	}
	run := b.Layout().All()
	if req.Length >= 0 && !(req.Offset == 0 && req.Length >= size) {
		run = b.Layout().Covering(req.Offset, req.Length)
		if !m.leadsTo(ctx, b, run) {
			b.Release()
			return m.passThrough(m.originContent(ctx, req, size)), nil
		}
	}
	t, err := m.join(b, req, run)
	if err != nil {
		b.Release()
		return nil, err
	}
	h := m.handle(ctx, b, t, run)
	m.through(ctx, h, req)
	return h, nil
}

// create is store.Create. A blob of another size, which a task had until it failed, gives
// way once that has let go of it.
func (m *Manager) create(ctx context.Context, d blob.Digest, size int64) (*store.Blob, error) {
	b, err := m.store.Create(d, size)
	if !errors.Is(err, store.ErrSize) {
		return b, err
	}
	m.mu.Lock()
	t, ok := m.tasks[d]
	m.mu.Unlock()
	if ok && t.ctx.Err() == nil {
		return nil, err
	}
	if ok {
		select {
		case <-t.gone:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return m.store.Create(d, size)
}

// join adds a client to the task of b, starting it where there is none.
func (m *Manager) join(b *store.Blob, req Request, run blob.Run) (*task, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tasks[req.Digest]
	if !ok || t.ctx.Err() != nil {
		var err error
		if t, err = m.start(b, req.Ref, req.Header.Clone()); err != nil {
			return nil, err
		}
	}
	t.claimed(claim{req.Ref, req.Header.Clone()})
	t.clients++
	before, all := t.wanted.Count(), t.all
	t.all = t.all || run == b.Layout().All()
	t.wanted.SetRun(run)
	m.farChanged()
	if urgent := t.opened(run); urgent || t.clients == 1 || t.wanted.Count() != before || t.all != all {
		m.want(t)
	}
	t.changed()
	return t, nil
}

func (m *Manager) leave(t *task, run blob.Run) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t.closed(run)
	t.clients--
	t.idle = time.Now()
	t.left = t.idle
	t.changed()
}

// handle returns a client's view of b, whose use it takes over; t is nil when b
// needs no task, else its client reads run.
func (m *Manager) handle(ctx context.Context, b *store.Blob, t *task, run blob.Run) *Handle {
	ctx, cancel := context.WithCancelCause(ctx)
	h := &Handle{size: b.Size(), blob: b}
	h.close = func() {
		cancel(context.Canceled)
		b.Release()
	}
	if t != nil {
		stop := context.AfterFunc(t.ctx, func() {
			if cause := context.Cause(t.ctx); !errors.Is(cause, errDone) {
				cancel(cause)
			}
		})
		h.close = func() {
			stop()
			cancel(context.Canceled)
			m.leave(t, run)
			m.release(b)
		}
	}
	h.content = b.ReadSeeker(ctx)
	h.ready = func(wait context.Context, off int64) error {
		wait, done := context.WithCancelCause(wait)
		defer done(nil)
		defer context.AfterFunc(ctx, func() { done(context.Cause(ctx)) })()
		return b.Wait(wait, off)
	}
	return h
}

// through has h go on without the store, with the client's own ctx, where that runs
// full.
func (m *Manager) through(ctx context.Context, h *Handle, req Request) {
	o := &overflow{
		ReadSeekCloser: h.content,
		blob:           h.blob,
		rest:           m.swarmContent(ctx, req, h.size, h.blob),
	}
	stored := h.ready
	h.content = o
	h.ready = func(ctx context.Context, off int64) error {
		if err := stored(ctx, off); !errors.Is(err, store.ErrNoSpace) {
			return err
		}
		if _, err := o.rest.Seek(off, io.SeekStart); err != nil {
			return err
		}
		return o.rest.open()
	}
}

// passThrough gives one client what c reads without keeping it.
func (*Manager) passThrough(c *originContent) *Handle {
	return &Handle{size: c.size, content: c, close: func() {}, ready: func(_ context.Context, off int64) error {
		_, err := c.Seek(off, io.SeekStart)
		if err == nil && off < c.size {
			err = c.open()
		}
		return err
	}}
}
