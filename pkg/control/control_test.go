package control_test

import (
	"bytes"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// attend runs a set with one scheduler in a bubble and returns its first stream,
// welcomed.
func attend(t *testing.T, waiting func() bool) (*control.Set, *scheduler, *stream, *recorder) {
	t.Helper()
	c := newCluster("a")
	set, r := newSet(t, c, waiting, "a:1")
	st := <-c.at("a").streams
	if hello := <-st.up; hello.GetEvents()[0].GetAttend().GetProtocol() != control.Protocol {
		t.Fatalf("the first event is %v", hello)
	}
	if set.Answering() || set.Joined(blob.FromBytes(nil)) {
		t.Fatal("joined before the scheduler's welcome")
	}
	st.decide(welcome)
	synctest.Wait()
	if got := r.take(); len(got) != 1 || !joined(got[0]) || !set.Joined(blob.FromBytes(nil)) {
		t.Fatalf("after the welcome: %v", got)
	}
	return set, c.at("a"), st, r
}

func joined(d control.Decision) bool {
	j, ok := d.(control.Joined)
	return ok && j.Concerns(blob.FromBytes(nil))
}

func lost(d control.Decision) bool {
	l, ok := d.(control.Lost)
	return ok && l.Concerns(blob.FromBytes(nil))
}

func TestHavesTravelTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, st, _ := attend(t, idly)
		d := blob.FromBytes([]byte("x"))
		st.decide(lease(7, d))
		synctest.Wait()
		link := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
		c.Tell(control.Want{Digest: d, Size: 1 << 20}) // the sender takes this one and waits
		synctest.Wait()
		c.Tell(control.Have{Digest: d, Size: 1 << 20, Runs: []blob.Run{{First: 0, Count: 1}}, FirstLink: 1, Links: link(1)})
		c.Tell(control.Have{Digest: d, Size: 1 << 20, Runs: []blob.Run{{First: 1, Count: 1}}, FirstLink: 2, Links: link(2)})
		c.Tell(control.Have{Digest: d, Size: 1 << 20, Runs: []blob.Run{{First: 3, Count: 1}}, Sealed: true})
		c.Tell(control.Done{Lease: 1})
		if w := (<-st.up).GetEvents(); w[0].GetWant() == nil {
			t.Fatalf("first came %v", w)
		}
		events := (<-st.up).GetEvents()
		if len(events) != 2 || events[1].GetDone().GetLease() != 7 {
			t.Fatalf("want one Have and the Done behind it, got %v", events)
		}
		h := events[0].GetHave()
		if len(h.GetRuns()) != 2 || h.GetRuns()[0].GetCount() != 2 || h.GetFirstLink() != 1 || len(h.GetLinks()) != 64 || !h.GetSealed() {
			t.Fatalf("merged into %v", h)
		}
	})
}

// A scheduler ends the stream of a node that tells more in one message, or more
// runs of a blob, than there can be.
func TestManyBlobsAreToldInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, st, _ := attend(t, idly)
		const blobs = 5000
		for range 2 {
			for i := range blobs {
				c.Tell(control.Have{Digest: blob.FromBytes([]byte{byte(i), byte(i >> 8)}), Size: 1, Runs: []blob.Run{{Count: 1}}})
			}
		}
		for got := 0; got < 2*blobs; {
			m := <-st.up
			if len(m.GetEvents()) > 4096 {
				t.Fatalf("%d events in one message", len(m.GetEvents()))
			}
			got += len(m.GetEvents())
		}
	})
}

func TestPieceToldTwiceIsNoSecondRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, st, _ := attend(t, idly)
		one := control.Have{Digest: blob.FromBytes(nil), Size: 1, Runs: []blob.Run{{Count: 1}}}
		for range 4 {
			c.Tell(one)
		}
		for got := 0; got < 4; {
			for _, e := range (<-st.up).GetEvents() {
				if n := len(e.GetHave().GetRuns()); n != 1 {
					t.Fatalf("%d runs of a blob of one piece", n)
				}
				got++
			}
		}
	})
}

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
		if got := r.take(); len(got) != 2 || !joined(got[0]) || !c.Answering() {
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

func TestAnsweringSchedulerIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, st, r := attend(t, busily)
		for range 50 {
			n := (<-st.up).GetEvents()[0].GetPing().GetNumber()
			st.decide(pong(n))
		}
		if got := r.take(); len(got) != 0 || !c.Answering() {
			t.Fatalf("the handler heard %v", got)
		}
	})
}

func TestBrokenStreamIsOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, st, r := attend(t, idly)
		close(st.down)
		next := <-s.streams
		if got := r.take(); len(got) != 1 || !lost(got[0]) {
			t.Fatalf("the handler heard %v", got)
		}
		c.Tell(control.Drop{}) // told to nobody: the handler tells everything again
		<-next.up
		next.decide(welcome)
		next.decide(lease(9, blob.FromBytes(nil)))
		synctest.Wait()
		c.Tell(control.Done{Lease: of[control.Lease](r)[0].ID})
		if e := (<-next.up).GetEvents(); len(e) != 1 || e[0].GetDone().GetLease() != 9 {
			t.Fatalf("the new stream carried %v", e)
		}
	})
}

func TestMalformedDecisionsAreDropped(t *testing.T) {
	d := blob.FromBytes(nil).String()
	origin := &damselflyv1.Origin{Registry: "r", Repository: "a"}
	bad := map[string]*damselflyv1.Lease{
		"digest":        {Digest: "sha256:zz", Size: 1, Run: &damselflyv1.Run{Count: 1}, Origin: origin},
		"size":          {Digest: d, Size: 1 << 63, Run: &damselflyv1.Run{Count: 1}, Origin: origin},
		"run":           {Digest: d, Size: 1, Run: &damselflyv1.Run{First: 1<<32 - 1, Count: 1<<32 - 1}, Origin: origin},
		"no run":        {Digest: d, Size: 1, Origin: origin},
		"no source":     {Digest: d, Size: 1, Run: &damselflyv1.Run{Count: 1}},
		"two sources":   {Digest: d, Size: 1, Run: &damselflyv1.Run{Count: 1}, Origin: origin, Holder: &damselflyv1.Holder{}},
		"too many link": {Digest: d, Size: 1, Run: &damselflyv1.Run{Count: 1}, Origin: origin, Links: make([]byte, 64)},
		"link number":   {Digest: d, Size: 1, Run: &damselflyv1.Run{Count: 1}, Origin: origin, FirstLink: 1<<32 - 1},
	}
	for name, l := range bad {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, _, st, r := attend(t, idly)
				good := &damselflyv1.Lease{Id: 5, Digest: d, Size: 1, Run: &damselflyv1.Run{Count: 1}, Origin: origin}
				st.decide(
					&damselflyv1.Decision{Decision: &damselflyv1.Decision_Lease{Lease: l}},
					&damselflyv1.Decision{Decision: &damselflyv1.Decision_Lease{Lease: good}},
				)
				synctest.Wait()
				got := r.take()
				if len(got) != 1 || got[0].(control.Lease).ID != 1 {
					t.Fatalf("the handler heard %v, want only the good lease", got)
				}
			})
		})
	}
}
