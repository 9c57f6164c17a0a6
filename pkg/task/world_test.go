package task_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/task"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scheduler records what it is told.
type scheduler struct {
	mu     sync.Mutex
	joined bool
	events []control.Event
	self   peer.Holder
	seeds  []peer.Holder
}

func (s *scheduler) Known() (self peer.Holder, seeds []peer.Holder) { return s.self, s.seeds }

func (s *scheduler) Tell(e control.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

func (s *scheduler) Joined(blob.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.joined
}

func told[E control.Event](s *scheduler) []E {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []E
	for _, e := range s.events {
		if e, ok := e.(E); ok {
			out = append(out, e)
		}
	}
	return out
}

// upstream is an origin: what it serves under a digest, and how it misbehaves.
type upstream struct {
	mu      sync.Mutex
	data    map[string][]byte
	err     error
	gate    chan struct{} // if set, a body blocks on it before its first byte
	bad     string        // registry that does worse than others: see badly
	badly   func(io.Reader) io.Reader
	slow    func(context.Context, int) error // if set, called with the bytes of each read
	reads   []string
	headers []http.Header
	sent    int64 // bytes that were read of all bodies
}

func (u *upstream) bytesRead() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sent
}

func (u *upstream) Read(ctx context.Context, ref origin.Ref, h http.Header, size, off, n int64) (io.ReadCloser, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reads = append(u.reads, fmt.Sprintf("%d+%d", off, n))
	u.headers = append(u.headers, h)
	if u.err != nil {
		return nil, u.err
	}
	data := u.data[ref.Reference]
	if n < 0 {
		n = size - off
	}
	b := &body{up: u, ctx: ctx, gate: u.gate, slow: u.slow, r: bytes.NewReader(data[off : off+n])}
	if u.badly != nil && ref.Registry == u.bad {
		b.r = u.badly(b.r)
	}
	return b, nil
}

func (u *upstream) Size(_ context.Context, ref origin.Ref, _ http.Header) (int64, string, blob.Digest, error) {
	if u.err != nil {
		return 0, "", "", u.err
	}
	return int64(len(u.data[ref.Reference])), "", blob.Digest(ref.Reference), nil
}

func (u *upstream) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.reads)
}

type body struct {
	up   *upstream
	ctx  context.Context
	gate chan struct{}
	slow func(context.Context, int) error
	r    io.Reader
}

func (b *body) Read(p []byte) (int, error) {
	if b.gate != nil {
		select {
		case <-b.gate:
		case <-b.ctx.Done():
			return 0, b.ctx.Err() // as net/http does, whatever the cause
		}
	}
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	b.up.mu.Lock()
	b.up.sent += int64(n)
	b.up.mu.Unlock()
	if b.slow != nil && n > 0 {
		if err := b.slow(b.ctx, n); err != nil {
			return 0, err
		}
	}
	return n, err
}

func (b *body) Close() error { return nil }

// swarm is what other nodes hold.
type swarm struct {
	data  map[blob.Digest][]byte
	flip  bool
	err   error
	each  time.Duration // that 64 KiB take
	asked time.Duration // before the first of them
	hang  bool          // sends nothing

	places []blob.Place
}

func (s *swarm) Read(ctx context.Context, _ peer.Holder, d blob.Digest, l blob.Layout, run blob.Run, begin peer.Begin, progress func(int)) error {
	if s.err != nil {
		return s.err
	}
	if s.hang {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	pass(s.asked)
	for i := run.First; i < run.End(); i++ {
		p := bytes.Clone(piece(l, s.data[d], i))
		if s.flip {
			p[0] ^= 1
		}
		taker := begin(peer.Sender{Role: identity.RoleNode, Places: s.places}, i)
		for part := range slices.Chunk(p, 64<<10) {
			pass(s.each)
			taker.Add(part)
			progress(len(part))
		}
		if err := taker.Put(); err != nil {
			return err
		}
	}
	return nil
}

func (s *swarm) ReadSome(context.Context, peer.Holder, blob.Digest, blob.Layout, *blob.Bitmap, int, peer.Begin) error {
	return peer.ErrMissing
}

func (s *swarm) Holdings(_ context.Context, _ peer.Holder, _ blob.Digest, l blob.Layout, _ int, _ string) (peer.Holdings, error) {
	return peer.Holdings{Have: blob.NewBitmap(l.Pieces())}, nil
}

func (s *swarm) Credential(context.Context, peer.Holder, blob.Digest, *damselflyv1.Origin) (http.Header, error) {
	return http.Header{"Authorization": {"Bearer of the waiting client"}}, nil
}

func piece(l blob.Layout, data []byte, i int) []byte {
	return data[l.Offset(i) : l.Offset(i)+l.Length(i)]
}

type world struct {
	*task.Manager
	t     *testing.T
	sched *scheduler
	up    *upstream
	swarm *swarm
	store *store.Store
	data  []byte
	d     blob.Digest
}

const pieces = 4

// newWorld runs a manager over a real store, with one blob of four pieces at the
// origin. It must be called in a bubble.
func newWorld(t *testing.T, cfg task.Config, maxBytes int64) *world {
	t.Helper()
	data := make([]byte, pieces*blob.MinPieceLength-100)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	w := &world{t: t, data: data, d: blob.FromBytes(data), sched: &scheduler{}}
	w.up = &upstream{data: map[string][]byte{w.d.String(): data}}
	w.swarm = &swarm{data: map[blob.Digest][]byte{w.d: data}}
	var err error
	w.store, err = store.Open(store.Config{Dir: t.TempDir(), MaxBytes: maxBytes}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	w.Manager = task.New(cfg, w.store, w.sched, w.swarm, w.up, zap.NewNop(), nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	synctest.Wait()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) request() task.Request {
	return task.Request{
		Digest: w.d, Size: int64(len(w.data)), Length: -1,
		Ref: origin.Ref{Kind: origin.KindBlob, Registry: "r.example.com", Repository: "app", Reference: w.d.String()},
	}
}

func (w *world) open(req task.Request) *task.Handle {
	w.t.Helper()
	h, err := w.Open(w.t.Context(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// read reads h to its end in the background.
func read(h *task.Handle) <-chan result {
	out := make(chan result, 1)
	go func() {
		b, err := io.ReadAll(h.Content())
		out <- result{b, err, h.Close()}
	}()
	return out
}

type result struct {
	data     []byte
	err      error
	closeErr error
}

func (w *world) wantWhole(r result) {
	w.t.Helper()
	if r.err != nil || r.closeErr != nil || !bytes.Equal(r.data, w.data) {
		w.t.Fatalf("read %d of %d bytes, %v, %v", len(r.data), len(w.data), r.err, r.closeErr)
	}
}

// chain returns every link of the world's blob.
func (w *world) chain() []byte {
	l, _ := blob.NewLayout(int64(len(w.data)))
	c := blob.NewChain(w.d, l)
	for i := range l.Pieces() {
		if next, _ := blob.Advance(w.d, l, i, c.Link(i), piece(l, w.data, i)); next != nil {
			_ = c.Add(i+1, next)
		}
	}
	return c.Links(0, l.Pieces())
}

func (w *world) lease(id uint64, run blob.Run) control.Lease {
	l, _ := blob.NewLayout(int64(len(w.data)))
	return control.Lease{ID: id, Digest: w.d, Layout: l, Run: run}
}

// everything concerns every blob.
func everything(blob.Digest) bool { return true }

// pass lets d of the bubble's time go by.
func pass(d time.Duration) { <-time.After(d) }
