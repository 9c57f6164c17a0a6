// Package proxytest holds an in-memory proxy.Tasks for tests of the faces, and
// the suite that it and the real one pass.
package proxytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
)

// Getter reads at an origin; proxy.Upstream is one.
type Getter interface {
	Get(ctx context.Context, ref origin.Ref, header http.Header) (*http.Response, error)
}

// Tasks keeps blobs in memory. What it does not hold it reads from the origin,
// once, however many ask. It is safe for concurrent use.
type Tasks struct {
	dir    string
	origin Getter

	mu       sync.Mutex
	blobs    map[blob.Digest]*Blob
	places   map[blob.Place]bool
	requests []proxy.Request
	open     int
	onOpen   func(n int)
}

// OnOpen has fn called with how often Open was called, before it does anything. It must be
// set before that.
func (t *Tasks) OnOpen(fn func(n int)) { t.onOpen = fn }

// NewTasks returns Tasks that write sealed blobs below dir.
func NewTasks(dir string, origin Getter) *Tasks {
	return &Tasks{dir: dir, origin: origin, blobs: map[blob.Digest]*Blob{}, places: map[blob.Place]bool{}}
}

// Blob is a blob that is being made whole. Its methods are safe for concurrent
// use.
type Blob struct {
	mu      sync.Mutex
	data    []byte
	have    int64 // bytes that are here, from the start
	err     error
	changed chan struct{}
}

// Add puts a blob there of which have bytes are here; it is sealed when all are.
func (t *Tasks) Add(data []byte, have int64) *Blob {
	b := &Blob{data: data, have: have, changed: make(chan struct{})}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.blobs[blob.FromBytes(data)] = b
	return b
}

// Arrive makes the blob's first have bytes be here.
func (b *Blob) Arrive(have int64) { b.change(func() { b.have = have }) }

// Fail ends the task with an error.
func (b *Blob) Fail(err error) { b.change(func() { b.err = err }) }

func (b *Blob) change(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn()
	close(b.changed)
	b.changed = make(chan struct{})
}

// Requests are those that Open was called with, in order.
func (t *Tasks) Requests() []proxy.Request {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]proxy.Request(nil), t.requests...)
}

// OpenHandles counts the handles that are not closed.
func (t *Tasks) OpenHandles() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open
}

// Open implements proxy.Tasks.
func (t *Tasks) Open(ctx context.Context, req proxy.Request) (proxy.Handle, error) {
	t.mu.Lock()
	t.requests = append(t.requests, req)
	if n := len(t.requests); t.onOpen != nil {
		t.mu.Unlock()
		t.onOpen(n)
		t.mu.Lock()
	}
	b, held := t.blobs[req.Digest]
	if !held {
		b = &Blob{changed: make(chan struct{}), have: -1}
		t.blobs[req.Digest] = b
	}
	t.mu.Unlock()
	if !held {
		if b.fetch(ctx, t.origin, req) == nil {
			t.Serves(req.Ref, req.Digest)
		}
	}
	if err := b.known(ctx); err != nil {
		t.mu.Lock()
		if t.blobs[req.Digest] == b && !held {
			delete(t.blobs, req.Digest)
		}
		t.mu.Unlock()
		return nil, err
	}
	if req.Size > 0 && req.Size != int64(len(b.data)) {
		return nil, fmt.Errorf("blob %s has %d bytes, not %d", req.Digest, len(b.data), req.Size)
	}
	t.mu.Lock()
	t.open++
	t.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	h := &handle{tasks: t, blob: b, cancel: cancel}
	h.reader = &reader{ctx: ctx, blob: b}
	return h, nil
}

// Served implements proxy.Tasks.
func (t *Tasks) Served(ref origin.Ref, d blob.Digest) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.places[ref.Place(d)]
}

// Serves implements proxy.Tasks.
func (t *Tasks) Serves(ref origin.Ref, d blob.Digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.places[ref.Place(d)] = true
}

// Keep implements proxy.Tasks.
func (t *Tasks) Keep(ref origin.Ref, d blob.Digest, _ int64) io.WriteCloser {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, held := t.blobs[d]; held {
		return nil
	}
	return &keeper{tasks: t, ref: ref, digest: d}
}

type keeper struct {
	tasks  *Tasks
	ref    origin.Ref
	digest blob.Digest
	got    bytes.Buffer
}

// Write implements io.Writer.
func (k *keeper) Write(p []byte) (int, error) { return k.got.Write(p) }

// Close implements io.Closer.
func (k *keeper) Close() error {
	if !k.digest.Matches(k.got.Bytes()) {
		return blob.ErrMismatch
	}
	k.tasks.Serves(k.ref, k.digest)
	k.tasks.Add(k.got.Bytes(), int64(k.got.Len()))
	return nil
}

// fetch reads the whole blob at the origin.
func (b *Blob) fetch(ctx context.Context, from Getter, req proxy.Request) error {
	data, err := func() ([]byte, error) {
		resp, err := from.Get(ctx, req.Ref, req.Header)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		switch {
		case resp.StatusCode != http.StatusOK:
			return nil, &origin.StatusError{Code: resp.StatusCode, Header: resp.Header, Body: data, Ref: req.Ref}
		case err != nil:
			return nil, err
		case !req.Digest.Matches(data):
			return nil, blob.ErrMismatch
		}
		return data, nil
	}()
	b.change(func() {
		b.data, b.err = data, err
		if err == nil {
			b.have = int64(len(data))
		}
	})
	return err
}

// known waits until the blob's size is known.
func (b *Blob) known(ctx context.Context) error {
	_, err := b.wait(ctx, -1)
	return err
}

// wait waits until the byte at off is here and returns how many there are from
// there on. The size is known when the byte at -1 is.
func (b *Blob) wait(ctx context.Context, off int64) (int64, error) {
	for {
		b.mu.Lock()
		have, err, changed := b.have, b.err, b.changed
		b.mu.Unlock()
		switch {
		case have > off:
			return have - off, nil
		case err != nil:
			return 0, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

type handle struct {
	tasks  *Tasks
	blob   *Blob
	reader *reader
	cancel context.CancelFunc
	once   sync.Once
}

// Sealed implements proxy.Handle.
func (h *handle) Sealed() (*os.File, bool) {
	h.blob.mu.Lock()
	whole := h.blob.have == int64(len(h.blob.data))
	h.blob.mu.Unlock()
	if !whole {
		return nil, false
	}
	f, err := os.CreateTemp(h.tasks.dir, "blob")
	if err != nil {
		return nil, false
	}
	_, err = f.Write(h.blob.data)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	return f, err == nil
}

// Content implements proxy.Handle.
func (h *handle) Content() io.ReadSeeker { return h.reader }

// Ready implements proxy.Handle.
func (h *handle) Ready(ctx context.Context, off int64) error {
	_, err := h.blob.wait(ctx, off)
	return err
}

// Close implements proxy.Handle.
func (h *handle) Close() error {
	h.once.Do(func() {
		h.cancel()
		h.tasks.mu.Lock()
		h.tasks.open--
		h.tasks.mu.Unlock()
	})
	return nil
}

type reader struct {
	ctx  context.Context
	blob *Blob
	pos  int64
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.pos >= int64(len(r.blob.data)) {
		return 0, io.EOF
	}
	n, err := r.blob.wait(r.ctx, r.pos)
	if err != nil {
		return 0, err
	}
	got := copy(p, r.blob.data[r.pos:r.pos+n])
	r.pos += int64(got)
	return got, nil
}

// Seek implements io.Seeker.
func (r *reader) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += r.pos
	case io.SeekEnd:
		off += int64(len(r.blob.data))
	}
	if off < 0 {
		return 0, errors.New("before the start")
	}
	r.pos = off
	return off, nil
}
