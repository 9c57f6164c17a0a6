package control_test

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// unanswered reads what comes on a stream, and gives the last ping's number.
func unanswered(st *stream) (ping func() uint64) {
	var mu sync.Mutex
	var last uint64
	go func() {
		for {
			select {
			case m := <-st.up:
				for _, e := range m.GetEvents() {
					if p := e.GetPing(); p != nil {
						mu.Lock()
						last = p.GetNumber()
						mu.Unlock()
					}
				}
			case <-st.ctx.Done():
				return
			}
		}
	}()
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
}

func pong(number uint64) *damselflyv1.Decision {
	return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Pong{Pong: &damselflyv1.Pong{Number: number}}}
}

// until waits for the next decision that r takes, and tells when it came.
func (r *recorder) until(what func(control.Decision) bool) time.Duration {
	started := time.Now()
	for {
		<-time.After(10 * time.Millisecond)
		if slices.ContainsFunc(r.take(), what) {
			return time.Since(started)
		}
	}
}

func TestSilentSchedulerIsLostWithinHalfASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, st, r := attend(t, busily)
		ping := unanswered(st)
		if took := r.until(lost); took > 700*time.Millisecond || c.Answering() {
			t.Fatalf("a silent scheduler was given up after %v", took)
		}
		// What was leased runs on and ends where it came from: the scheduler knows of it.
		st.decide(lease(7, blob.FromBytes(nil)))
		synctest.Wait()
		if got := r.take(); len(got) != 2 || !spoke(got[0]) || !c.Answering() {
			t.Fatalf("when it spoke again the handler heard %v", got)
		}
		// It was slow: it may be so for twice as long now.
		st.decide(pong(ping()))
		if took := r.until(lost); took < 800*time.Millisecond || took > 1200*time.Millisecond {
			t.Fatalf("a scheduler that is slow was given up after %v", took)
		}
		select {
		case next := <-s.streams: // it hangs
			<-next.up
			next.decide(welcome)
			synctest.Wait()
			if got := r.take(); len(got) != 1 || !joined(got[0]) {
				t.Fatalf("after it came back the handler heard %v", got)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a scheduler that hangs keeps its stream")
		}
	})
}

// A process that was stopped, or got no CPU, finds the answers of that time unread.
func TestOwnSleepIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asleep := make(chan time.Duration, 1)
		c, _, st, r := attend(t, func() bool {
			select {
			case d := <-asleep:
				<-time.After(d)
			default:
			}
			return true
		})
		for i := range 50 {
			n := (<-st.up).GetEvents()[0].GetPing().GetNumber()
			if i == 20 {
				asleep <- time.Second // from the next tick on
				<-time.After(time.Second + 120*time.Millisecond)
			}
			st.decide(pong(n))
		}
		if got := r.take(); len(got) != 0 || !c.Answering() {
			t.Fatalf("the handler heard %v", got)
		}
	})
}

// Who gets pieces by leases has no reason to help itself; but a lease may trickle.
func TestPiecesPutSilenceOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, st, r := attend(t, busily)
		unanswered(st)
		started := time.Now()
		for c.Answering() && time.Since(started) < time.Minute {
			c.Tell(control.Have{Digest: blob.FromBytes(nil), Size: 1, Runs: []blob.Run{{Count: 1}}})
			<-time.After(90 * time.Millisecond)
		}
		if took := time.Since(started); took < 2*time.Second || took > 2500*time.Millisecond || !slices.ContainsFunc(r.take(), lost) {
			t.Fatalf("a silent scheduler was given up after %v", took)
		}
	})
}

// What happens in a silence is told on the stream, and nothing again after it: where
// telling all takes a scheduler long, it would fall silent over that, again and again.
func TestSilentSchedulerIsToldOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a")
		s, r := newSet(t, c, busily, "a:1")
		a := c.at("a").accept(t)
		d, e := blob.FromBytes([]byte("x")), blob.FromBytes([]byte("y"))
		s.Tell(control.Want{Digest: d, Size: 1})
		a.late(3 * time.Second)
		r.until(lost)
		s.Tell(control.Unwant{Digest: d})
		s.Tell(control.Want{Digest: e, Size: 1})
		s.Tell(control.Have{Digest: e, Size: 1, Sealed: true})
		a.late(0)
		<-time.After(4 * time.Second)
		if got := r.take(); len(got) != 1 || !spoke(got[0]) {
			t.Fatalf("when it spoke again the handler heard %v", got)
		}
		wants(t, "the silent one", a, "want "+d.String(), "unwant "+d.String(), "want "+e.String(), "have "+e.String())
	})
}

func TestPauseIsNoRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a")
		_, r := newSet(t, c, busily, "a:1")
		a := c.at("a").accept(t)
		a.late(time.Millisecond)
		<-time.After(10 * time.Second)
		a.late(4 * time.Second)
		r.until(lost)
		a.late(time.Millisecond)
		r.until(spoke)
		a.decide(lease(1, blob.FromBytes(nil)))
		if trip := of[control.Lease](r)[0].RoundTrip; trip > 2*time.Millisecond {
			t.Fatalf("after a pause a round trip of 1 ms counts as %v", trip)
		}
	})
}

// What waits for a scheduler that says a word now and then, and reads nothing, is bounded.
func TestSchedulerThatReadsNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, st, _ := attend(t, busily)
		started := time.Now()
		for {
			select {
			case <-s.streams:
				if took := time.Since(started); took < time.Minute || took > 2*time.Minute {
					t.Errorf("its stream ended after %v", took)
				}
				return
			case <-time.After(time.Second):
			}
			if time.Since(started) > 10*time.Minute {
				t.Fatal("its stream does not end")
			}
			select {
			case st.down <- &damselflyv1.SchedulerMessage{}:
			case <-st.ctx.Done():
			}
		}
	})
}

// The only scheduler that is known hangs; another starting point would answer.
func TestAnotherStartingPointIsTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b")
		s, _ := newSet(t, c, busily, "a:1", "b:1")
		other := "b"
		var st *stream
		select {
		case st = <-c.at("a").streams:
		case st = <-c.at("b").streams:
			other = "a"
		}
		<-st.up
		st.decide(welcome) // alone: it names nobody
		unanswered(st)
		started := time.Now()
		c.at(other).accept(t)
		if took := time.Since(started); took > 8*time.Second || !s.Answering() {
			t.Fatalf("the other was attended after %v", took)
		}
	})
}

// One that crashed in its silence, and is a new process now, did not speak again.
func TestNewStreamIsNotSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, r, at := three(t)
		at["c"].late(time.Hour)
		r.until(lostAny)
		close(at["c"].down)
		at["c"] = c.at("c").accept(t, who("a", "b", "c"))
		r.take()
		at["c"].late(time.Hour)
		if took := r.until(lostAny); took > 700*time.Millisecond {
			t.Fatalf("it was given up after %v", took)
		}
	})
}

func lostAny(d control.Decision) bool {
	_, ok := d.(control.Lost)
	return ok
}
