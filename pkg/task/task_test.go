package task_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/task"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

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
		links, held, sealed := make([]byte, 32*pieces), map[int]bool{}, false
		for _, h := range haves { // some may be told twice
			// The last piece proves the digest. Its own Have may come behind that of the
			// whole blob.
			if h.Sealed && !sealed && len(held) < pieces-1 {
				t.Errorf("the blob was called whole before its digest was proven: pieces %v were told", held)
			}
			if sealed && !h.Sealed {
				t.Error("the blob was called whole, and then not")
			}
			sealed = h.Sealed
			copy(links[32*h.FirstLink:], h.Links)
			for _, r := range h.Runs {
				for i := r.First; i < r.End(); i++ {
					held[i] = true
				}
			}
		}
		if !bytes.Equal(links[32:], w.chain()[32:]) {
			t.Error("not all links were published")
		}
		if len(held) != pieces || !sealed {
			t.Errorf("pieces %v were told, whole: %v", held, sealed)
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
		w.Handle(control.Joined{Concerns: everything})
		if got := told[control.Have](w.sched); len(got) != 1 || !got[0].Sealed || len(got[0].Links) != 0 {
			t.Fatalf("told %v", got)
		}
		w.Handle(control.Tell{Digest: w.d})
		if got := told[control.Have](w.sched); len(got) != 2 || !bytes.Equal(got[1].Links, w.chain()) {
			t.Fatal("Tell was not answered with the chain")
		}
	})
}

// A chain that led to a wrong digest is dropped, said to be dropped, and what
// clients wait for is asked for anew.
func TestRevokedBlobIsDroppedAndWantedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.sched.joined = true
		h := w.open(w.request())
		l := w.lease(1, blob.Run{Count: 2})
		l.Holder, l.Links = &control.Holder{ID: "b"}, w.chain()
		w.Handle(l)
		synctest.Wait()
		b, _ := w.store.Get(w.d)
		if b.Have().Count() != 2 {
			t.Fatalf("%d pieces came", b.Have().Count())
		}
		b.Release()
		w.sched.mu.Lock()
		w.sched.events = nil
		w.sched.mu.Unlock()
		w.Handle(control.Revoke{Digest: w.d})
		synctest.Wait()
		if drops, wants := told[control.Drop](w.sched), told[control.Want](w.sched); len(drops) == 0 || len(wants) != 1 {
			t.Fatalf("told %d drops and %d wants", len(drops), len(wants))
		}
		l.ID = 2
		l.Run.Count = pieces
		w.Handle(l)
		w.wantWhole(<-read(h))
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
		w.Handle(control.Joined{Concerns: everything})
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
