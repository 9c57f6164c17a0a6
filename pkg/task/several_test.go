package task_test

import (
	"bytes"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/task"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

func TestJoiningTellsOnlyWhatIsConcerned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.sched.joined = true
		h := w.open(w.request())
		defer func() { _ = h.Close() }()
		w.Handle(control.Queued{Digest: w.d})
		w.Handle(control.Joined{Concerns: func(blob.Digest) bool { return false }})
		if got := told[control.Want](w.sched); len(got) != 1 {
			t.Fatalf("wanted %d times: another's scheduler joined", len(got))
		}
		w.Handle(control.Joined{Concerns: everything})
		if got := told[control.Want](w.sched); len(got) != 2 {
			t.Fatalf("wanted %d times, want 2", len(got))
		}
	})
}

// Two schedulers have this seed read one blob; the first read goes on, and the
// second finds nothing left to do.
func TestOriginIsReadOnceForTwoSchedulers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{Seed: true}, 0)
		w.sched.joined = true
		w.up.gate = make(chan struct{})
		for id := range uint64(3) {
			l := w.lease(id+1, blob.Run{Count: pieces})
			l.Origin = &damselflyv1.Origin{Kind: damselflyv1.Origin_KIND_BLOB, Registry: "r.example.com", Repository: "app"}
			w.Handle(l)
		}
		synctest.Wait()
		w.Handle(control.Cancel{Lease: 2}) // one that waits for its turn
		synctest.Wait()
		if got := told[control.Failed](w.sched); len(got) != 1 || got[0].Lease != 2 || got[0].Reason != damselflyv1.Failed_REASON_CANCELLED {
			t.Fatalf("told %v", got)
		}
		close(w.up.gate)
		synctest.Wait()
		if got := told[control.Done](w.sched); len(got) != 2 {
			t.Fatalf("%d leases are done", len(got))
		}
		if n := w.up.count(); n != 1 {
			t.Errorf("the origin was read %d times", n)
		}
	})
}

// A scheduler that has a seed read what the seed holds does not know the links, and
// gets them.
func TestOriginLeaseOfWhatIsHereTellsTheLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{Seed: true}, 0)
		w.sched.joined = true
		for id := range uint64(2) {
			w.sched.mu.Lock()
			w.sched.events = nil
			w.sched.mu.Unlock()
			l := w.lease(id+1, blob.Run{Count: pieces})
			l.Origin = &damselflyv1.Origin{Kind: damselflyv1.Origin_KIND_BLOB, Registry: "r.example.com", Repository: "app"}
			w.Handle(l)
			synctest.Wait()
			if got := told[control.Done](w.sched); len(got) != 1 {
				t.Fatalf("the lease ended with %v", got)
			}
		}
		if !slices.ContainsFunc(told[control.Have](w.sched), func(h control.Have) bool { return bytes.Equal(h.Links, w.chain()) }) {
			t.Error("the scheduler was not told the links")
		}
		if n := w.up.count(); n != 1 {
			t.Errorf("the origin was read %d times", n)
		}
	})
}

// A lease tells its end one round trip ahead, and what asking a holder takes; at once,
// where that is longer than the lease.
func TestEndingIsToldOneRoundTripAhead(t *testing.T) {
	const part = 4 * time.Millisecond // what 64 KiB take: 64 ms in all
	for name, c := range map[string]struct{ trip, asking time.Duration }{
		"within the last part": {trip: 0},
		"some parts before":    {trip: 9 * time.Millisecond},
		"as holders are slow":  {3 * time.Millisecond, 16 * time.Millisecond},
		"at once":              {trip: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, task.Config{}, 0)
				w.sched.joined = true
				w.swarm.each = part
				h := w.open(w.request())
				defer func() { _ = h.Close() }()
				lease := func(id uint64, run blob.Run, asking time.Duration) (early, took time.Duration) {
					w.swarm.asked = asking
					l := w.lease(id, run)
					l.Holder, l.Links, l.RoundTrip = &control.Holder{ID: "b"}, w.chain(), c.trip
					started := time.Now()
					ended, done := len(told[control.Ending](w.sched)), len(told[control.Done](w.sched))
					w.Handle(l)
					for len(told[control.Done](w.sched)) == done {
						pass(time.Millisecond)
						if early == 0 && len(told[control.Ending](w.sched)) > ended {
							early = time.Since(started)
						}
					}
					return early, time.Since(started)
				}
				lease(1, blob.Run{Count: 1}, c.asking) // learns what asking takes
				early, took := lease(2, blob.Run{First: 1, Count: pieces - 1}, 0)
				want := min(c.trip+c.asking+part, took-part)
				if ahead := took - early; ahead < want-part || ahead > want+part {
					t.Errorf("told %v before the end, want about %v", ahead, want)
				}
			})
		})
	}
}

// A holder that hangs is given up although the scheduler that leased from it is gone.
func TestHangingHolderIsGivenUpWithoutTheScheduler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.sched.joined = true
		w.swarm.hang = true
		h := w.open(w.request())
		defer func() { _ = h.Close() }()
		l := w.lease(1, blob.Run{Count: pieces})
		l.Holder, l.Links, l.Deadline = &control.Holder{ID: "b"}, w.chain(), 2*time.Second
		w.Handle(l)
		pass(3 * time.Second)
		if got := told[control.Failed](w.sched); len(got) != 0 {
			t.Fatalf("given up with %v before the scheduler could take it back", got)
		}
		pass(5 * time.Second)
		if got := told[control.Failed](w.sched); len(got) != 1 || got[0].Reason != damselflyv1.Failed_REASON_UNREACHABLE {
			t.Errorf("the lease ended with %v", got)
		}
	})
}

func TestOverloadedSchedulerIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.sched.joined = true
		r := read(w.open(w.request()))
		synctest.Wait()
		refuse := control.Refuse{Digest: w.d, RetryAfter: time.Second}
		for n := 1; n <= 3; n++ {
			started := time.Now()
			w.Handle(refuse)
			for len(told[control.Want](w.sched)) == n {
				pass(10 * time.Millisecond)
			}
			if took := time.Since(started); took < 750*time.Millisecond || took > 1270*time.Millisecond {
				t.Fatalf("wanted again after %v", took)
			}
			if w.up.count() != 0 {
				t.Fatal("the origin was read although the scheduler only asked to wait")
			}
		}
		w.Handle(control.Queued{Digest: w.d}) // it has time now
		pass(10 * time.Second)
		if w.up.count() != 0 {
			t.Fatal("the origin was read")
		}
		l := w.lease(1, blob.Run{Count: pieces})
		l.Holder, l.Links = &control.Holder{ID: "b"}, w.chain()
		w.Handle(l)
		w.wantWhole(<-r)
	})
}

func TestSchedulerThatStaysOverloadedIsDoneWithout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.sched.joined = true
		r := read(w.open(w.request()))
		started := time.Now()
		wanted := 0
		for w.up.count() == 0 {
			synctest.Wait()
			if n := len(told[control.Want](w.sched)); n > wanted {
				wanted = n
				w.Handle(control.Refuse{Digest: w.d, RetryAfter: time.Second})
			}
			pass(10 * time.Millisecond)
		}
		if took := time.Since(started); took < 3*time.Second || took > 6*time.Second {
			t.Errorf("the origin was read after %v", took)
		}
		w.wantWhole(<-r)
	})
}

func TestRangeReadersAreUrgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.sched.joined = true
		last := func() []blob.Run {
			all := told[control.Want](w.sched)
			return all[len(all)-1].Urgent
		}
		whole := w.open(w.request())
		defer func() { _ = whole.Close() }()
		if got := last(); len(got) != 0 {
			t.Fatalf("a reader of all hurries for %v", got)
		}
		req := w.request()
		req.Offset, req.Length = blob.MinPieceLength, 2*blob.MinPieceLength
		first := w.open(req)
		if got := last(); !slices.Equal(got, []blob.Run{{First: 1, Count: 2}}) {
			t.Fatalf("urgent is %v", got)
		}
		l := w.lease(1, blob.Run{Count: 2})
		l.Holder, l.Links = &control.Holder{ID: "b"}, w.chain()
		w.Handle(l)
		synctest.Wait()
		if got := told[control.Want](w.sched); len(got) != 2 {
			t.Fatalf("wanted %d times: pieces that come are no reason to want again", len(got))
		}
		req.Offset, req.Length = 3*blob.MinPieceLength, 10
		second := w.open(req)
		defer func() { _ = second.Close() }()
		if got := last(); !slices.Equal(got, []blob.Run{{First: 2, Count: 1}, {First: 3, Count: 1}}) {
			t.Fatalf("urgent is %v", got)
		}
		_ = first.Close()
		w.Handle(control.Joined{Concerns: everything})
		if got := last(); !slices.Equal(got, []blob.Run{{First: 3, Count: 1}}) {
			t.Fatalf("after the first reader has left urgent is %v", got)
		}
	})
}
