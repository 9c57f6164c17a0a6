package task_test

import (
	"bytes"
	"context"
	"errors"
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
}

func (s *scheduler) Tell(e control.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

func (s *scheduler) Joined() bool {
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
	reads   []string
	headers []http.Header
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
	return &body{ctx: ctx, gate: u.gate, r: bytes.NewReader(data[off : off+n])}, nil
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
	ctx  context.Context
	gate chan struct{}
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
	return b.r.Read(p)
}

func (b *body) Close() error { return nil }

// swarm is what other nodes hold.
type swarm struct {
	data map[blob.Digest][]byte
	flip bool
	err  error
}

func (s *swarm) Read(_ context.Context, _ peer.Holder, d blob.Digest, l blob.Layout, run blob.Run, put peer.Put) error {
	if s.err != nil {
		return s.err
	}
	for i := run.First; i < run.End(); i++ {
		p := bytes.Clone(piece(l, s.data[d], i))
		if s.flip {
			p[0] ^= 1
		}
		if err := put(identity.RoleNode, i, p); err != nil {
			return err
		}
	}
	return nil
}

func (s *swarm) Credential(context.Context, peer.Holder, blob.Digest) (http.Header, error) {
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

func TestWithoutSchedulerTheOriginIsReadAtOnceAndOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		started := time.Now()
		var readers []<-chan result
		for range 5 {
			readers = append(readers, read(w.open(w.request())))
		}
		for _, r := range readers {
			w.wantWhole(<-r)
		}
		if took := time.Since(started); took > 10*time.Millisecond {
			t.Errorf("the origin was asked only after %v", took)
		}
		if n := w.up.count(); n != 1 {
			t.Errorf("five clients cost %d reads of the origin", n)
		}
		h := w.open(w.request())
		f, ok := h.Sealed()
		if !ok {
			t.Fatal("a blob that was read whole is no hit")
		}
		_ = f.Close()
		w.wantWhole(<-read(h))
		if n := w.up.count(); n != 1 {
			t.Errorf("a hit read the origin")
		}
	})
}

func TestHangingSchedulerCostsAtMostHalfASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.sched.joined = true
		started := time.Now()
		w.wantWhole(<-read(w.open(w.request())))
		if took := time.Since(started); took > 500*time.Millisecond || took < 300*time.Millisecond {
			t.Errorf("the client waited %v for a scheduler that never answered", took)
		}
	})
}

func TestQueuedTaskWaitsForItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.sched.joined = true
		r := read(w.open(w.request()))
		synctest.Wait()
		if got := told[control.Want](w.sched); len(got) != 1 || got[0].Origin.GetRepository() != "app" || len(got[0].Runs) != 0 {
			t.Fatalf("the scheduler was told %v", got)
		}
		w.Handle(control.Queued{Digest: w.d})
		pass(10 * time.Second) // fake time: the wait of a busy cluster
		if w.up.count() != 0 {
			t.Fatal("a queued task read the origin")
		}
		l := w.lease(1, blob.Run{Count: pieces})
		l.Holder, l.Links = &control.Holder{ID: "b"}, w.chain()
		w.Handle(l)
		w.wantWhole(<-r)
		synctest.Wait()
		if got := told[control.Done](w.sched); len(got) != 1 || got[0].Bytes != int64(len(w.data)) {
			t.Errorf("the lease ended with %v", got)
		}
		if got := told[control.Have](w.sched); !got[len(got)-1].Sealed {
			t.Errorf("the last Have is %v", got[len(got)-1])
		}
		if w.up.count() != 0 {
			t.Error("the origin was read although the swarm had it all")
		}
	})
}

func TestSeedReadsOnBehalfAndPublishesTheChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{Seed: true}, 0)
		w.sched.joined = true
		l := w.lease(3, blob.Run{Count: pieces})
		l.Origin = &damselflyv1.Origin{Kind: damselflyv1.Origin_KIND_BLOB, Registry: "r.example.com", Repository: "app", Private: true}
		l.OnBehalf = &control.Holder{ID: "waiting"}
		w.Handle(l)
		synctest.Wait()
		if got := w.up.headers[0].Get("Authorization"); got != "Bearer of the waiting client" {
			t.Errorf("the origin saw %q", got)
		}
		haves := told[control.Have](w.sched)
		links, runs := []byte{}, []int{}
		for _, h := range haves {
			links = append(links, h.Links...)
			for _, r := range h.Runs {
				runs = append(runs, r.First)
			}
		}
		if !bytes.Equal(links, w.chain()[32:]) {
			t.Errorf("%d bytes of links were published", len(links))
		}
		if !slices.Equal(runs, []int{0, 1, 2, 3}) || !haves[len(haves)-1].Sealed {
			t.Errorf("pieces %v were told", runs)
		}
		for _, h := range haves[:len(haves)-1] {
			if h.Sealed {
				t.Error("the blob was called whole before its digest was proven")
			}
		}
	})
}

func TestNodeTakesNoLeaseThatNobodyWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		l := w.lease(9, blob.Run{Count: 1})
		l.Holder = &control.Holder{ID: "b"}
		w.Handle(l)
		synctest.Wait()
		if got := told[control.Failed](w.sched); len(got) != 1 || got[0].Reason != damselflyv1.Failed_REASON_CANCELLED {
			t.Fatalf("got %v", got)
		}
	})
}

func TestFailuresAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		swarm  swarm
		links  bool
		reason damselflyv1.Failed_Reason
	}{
		"bad piece":   {swarm{flip: true}, true, damselflyv1.Failed_REASON_BAD_PIECE},
		"busy":        {swarm{err: fmt.Errorf("x: %w", peer.ErrBusy)}, true, damselflyv1.Failed_REASON_BUSY},
		"missing":     {swarm{err: peer.ErrMissing}, true, damselflyv1.Failed_REASON_MISSING},
		"unreachable": {swarm{err: peer.ErrUnreachable}, true, damselflyv1.Failed_REASON_UNREACHABLE},
		"malformed":   {swarm{err: peer.ErrMalformed}, true, damselflyv1.Failed_REASON_BAD_PIECE},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, task.Config{}, 0)
				w.sched.joined = true
				h := w.open(w.request())
				w.swarm.flip, w.swarm.err = c.swarm.flip, c.swarm.err
				l := w.lease(1, blob.Run{Count: 2})
				l.Holder, l.Links = &control.Holder{ID: "liar"}, w.chain()
				w.Handle(l)
				synctest.Wait()
				if got := told[control.Failed](w.sched); len(got) != 1 || got[0].Reason != c.reason {
					t.Fatalf("told %v, want %v", got, c.reason)
				}
				if b, _ := w.store.Get(w.d); b.Have().Count() != 0 {
					t.Fatal("something of it was kept")
				}
				_ = h.Close()
			})
		})
	}
}

func TestOriginErrorReachesTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.up.err = &origin.StatusError{Code: http.StatusNotFound}
		h := w.open(w.request())
		var status *origin.StatusError
		if err := h.Ready(t.Context(), 0); !errors.As(err, &status) || status.Code != http.StatusNotFound {
			t.Fatalf("Ready says %v", err)
		}
		_ = h.Close()
		synctest.Wait()
		w.up.err = nil
		w.wantWhole(<-read(w.open(w.request()))) // the failure is not remembered
	})
}

func TestWrongBytesFromTheOriginNeverComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		bad := bytes.Clone(w.data)
		bad[len(bad)/2] ^= 1
		w.up.data[w.d.String()] = bad
		r := <-read(w.open(w.request()))
		if r.err == nil || len(r.data) >= len(w.data) {
			t.Fatalf("a client read %d bytes with error %v", len(r.data), r.err)
		}
		synctest.Wait()
		if b, ok := w.store.Get(w.d); ok && (b.Sealed() || b.Have().Count() > 0) {
			t.Fatal("wrong bytes are still served")
		}
		w.up.data[w.d.String()] = w.data
		w.wantWhole(<-read(w.open(w.request())))
	})
}

func TestClientThatLeavesStopsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.up.gate = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		first, err := w.Open(ctx, w.request())
		if err != nil {
			t.Fatal(err)
		}
		gone := read(first)
		stays := read(w.open(w.request()))
		synctest.Wait()
		cancel()
		if r := <-gone; !errors.Is(r.err, context.Canceled) {
			t.Fatalf("the client that left got %v", r.err)
		}
		close(w.up.gate)
		w.wantWhole(<-stays)
		if n := w.up.count(); n != 1 {
			t.Errorf("the origin was read %d times", n)
		}
	})
}

func TestTaskEndsAfterItsLastClientLingered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{Linger: time.Minute}, 0)
		w.sched.joined = true
		h := w.open(w.request())
		w.Handle(control.Queued{Digest: w.d})
		_ = h.Close()
		pass(59 * time.Second)
		synctest.Wait()
		if got := told[control.Unwant](w.sched); len(got) != 0 {
			t.Fatal("the want was taken back at once: the next range of the same client would start anew")
		}
		pass(2 * time.Minute)
		synctest.Wait()
		if got := told[control.Unwant](w.sched); len(got) != 1 {
			t.Fatalf("told %v", got)
		}
	})
}

func TestRangeWantsItsPiecesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.sched.joined = true
		req := w.request()
		req.Offset, req.Length = blob.MinPieceLength, 10
		h := w.open(req)
		defer func() { _ = h.Close() }()
		if got := told[control.Want](w.sched); len(got) != 1 || len(got[0].Runs) != 1 || got[0].Runs[0] != (blob.Run{First: 1, Count: 1}) {
			t.Fatalf("told %v", got)
		}
		whole := w.open(w.request())
		defer func() { _ = whole.Close() }()
		if got := told[control.Want](w.sched); len(got) != 2 || len(got[1].Runs) != 0 {
			t.Fatalf("told %v", got)
		}
	})
}

func TestFullStoreStreamsThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 1000)
		h := w.open(w.request())
		if err := h.Ready(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Content().Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		w.wantWhole(<-read(h))
	})
}

func TestJoiningTellsHoldingsAndWants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.wantWhole(<-read(w.open(w.request())))
		w.sched.mu.Lock()
		w.sched.joined, w.sched.events = true, nil
		w.sched.mu.Unlock()
		w.Handle(control.Joined{})
		if got := told[control.Have](w.sched); len(got) != 1 || !got[0].Sealed || len(got[0].Links) != 0 {
			t.Fatalf("told %v", got)
		}
		w.Handle(control.Tell{Digest: w.d})
		if got := told[control.Have](w.sched); len(got) != 2 || !bytes.Equal(got[1].Links, w.chain()) {
			t.Fatal("Tell was not answered with the chain")
		}
	})
}

// A scheduler that comes back takes over: what the node granted itself ends, and
// the origin is not read twice for what the swarm has.
func TestReturningSchedulerTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.up.gate = make(chan struct{})
		r := read(w.open(w.request()))
		synctest.Wait()
		if w.up.count() != 1 {
			t.Fatal("without a scheduler the origin was not read")
		}
		w.sched.mu.Lock()
		w.sched.joined = true
		w.sched.mu.Unlock()
		w.Handle(control.Joined{})
		w.Handle(control.Queued{Digest: w.d})
		l := w.lease(1, blob.Run{Count: pieces})
		l.Holder, l.Links = &control.Holder{ID: "b"}, w.chain()
		w.Handle(l)
		w.wantWhole(<-r)
		if w.up.count() != 1 {
			t.Errorf("the origin was read %d times", w.up.count())
		}
	})
}

// pass lets d of the bubble's time go by.
func pass(d time.Duration) { <-time.After(d) }
