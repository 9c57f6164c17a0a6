package control_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/control"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// The two slots of a node are one budget.
func TestEachSchedulerIsToldWhatTheOthersLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, r, at := three(t)
		da, db := owned(0, "a", "a", "b", "c"), owned(0, "b", "a", "b", "c")
		expect := func(what, id string, want ...control.Slots) {
			t.Helper()
			<-time.After(25 * time.Millisecond)
			if got := at[id].slots(); !slices.Equal(got, want) {
				t.Fatalf("%s: %s was told %v, want %v", what, id, got, want)
			}
		}
		expect("nothing runs", "a")
		at["a"].decide(lease(1, da), lease(2, da))
		run := of[control.Lease](r)
		expect("a leases two", "a")
		expect("a leases two", "b", control.Slots{Upload: 2, Download: 1})
		s.Tell(control.Ending{Lease: run[0].ID})
		expect("one is ending", "b") // 2 - 1 is what it has
		s.Tell(control.Ending{Lease: run[1].ID})
		expect("both are", "b", control.Slots{Upload: 2, Download: 2})
		done := s.Sending(db)
		expect("b's blob is sent", "a", control.Slots{Upload: 1, Download: 2})
		expect("b's blob is sent", "b")
		again := s.Sending(db)
		third := s.Sending(db)
		expect("three times", "a") // one is what is always left
		done()
		again()
		third()
		expect("no more", "a", control.Slots{Upload: 2, Download: 2})
	})
}

func TestSlotsAreToldNotTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, _, at := three(t)
		d := owned(0, "b", "a", "b", "c")
		at["a"].slots()
		for range 10 { // it changes every 15 ms
			done := s.Sending(d)
			<-time.After(15 * time.Millisecond)
			done()
			<-time.After(15 * time.Millisecond)
		}
		if n := len(at["a"].slots()); n < 5 || n > 16 {
			t.Errorf("slots were told %d times in 300 ms, want one in 20 ms at most", n)
		}
	})
}

func TestOneSchedulerIsToldNoSlotsAndWaitsForNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a")
		s, r := newSet(t, c, busily, "a:1")
		a := c.at("a").accept(t, who("a"))
		d := owned(0, "a", "a")
		for i := range uint64(10) {
			a.decide(lease(i, d))
		}
		s.Sending(d)
		<-time.After(time.Second)
		synctest.Wait()
		if n := len(of[control.Lease](r)); n != 10 {
			t.Errorf("%d of ten leases run", n)
		}
		if got := a.slots(); len(got) != 0 {
			t.Errorf("told %v", got)
		}
	})
}

// Several schedulers that give too much at one moment fill the node no more than
// twice; what is beyond waits, oldest first, and can be taken back.
func TestLeasesBeyondTwiceTheSlotsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, r, at := three(t)
		d := map[string]int{}
		for i, id := range []string{"a", "b", "c", "a", "b", "c", "a", "b"} {
			at[id].decide(lease(uint64(10+i), owned(0, id, "a", "b", "c")))
			d[id]++
		}
		synctest.Wait()
		run := of[control.Lease](r)
		if len(run) != 4 {
			t.Fatalf("%d leases run, want 4", len(run))
		}
		at["b"].decide(cancel(14)) // one that waits
		wants(t, "of that", at["b"], "failed 14 REASON_CANCELLED")
		s.Tell(control.Done{Lease: run[0].ID})
		synctest.Wait()
		if next := of[control.Lease](r); len(next) != 1 || next[0].Digest != owned(0, "c", "a", "b", "c") {
			t.Fatalf("started %v, want the oldest that waits", next)
		}
		at["a"].decide(&damselflyv1.Decision{Decision: &damselflyv1.Decision_Revoke{Revoke: &damselflyv1.Revoke{Digest: owned(0, "a", "a", "b", "c").String()}}})
		wants(t, "of the revoked", at["a"], "done 10", "failed 16 REASON_CANCELLED")
		// Whatever waits begins when one scheduler is left.
		c.kill("b", true)
		c.kill("c", true)
		close(at["c"].down)
		close(at["b"].down)
		<-time.After(2 * time.Second)
		synctest.Wait()
		if next := of[control.Lease](r); len(next) != 0 {
			t.Errorf("leases of the dead began: %v", next)
		}
	})
}

func TestRoundTripIsMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a")
		_, r := newSet(t, c, busily, "a:1")
		a := c.at("a").accept(t)
		trip := func() time.Duration {
			t.Helper()
			a.decide(lease(1, owned(0, "a", "a")))
			return of[control.Lease](r)[0].RoundTrip
		}
		if got := trip(); got != time.Millisecond {
			t.Errorf("before the first pong it is %v", got)
		}
		a.late(8 * time.Millisecond)
		<-time.After(time.Second)
		if got := trip(); got != 8*time.Millisecond {
			t.Errorf("it is %v, want 8ms", got)
		}
		a.late(16 * time.Millisecond)
		<-time.After(time.Minute)
		if got := trip(); got < 15*time.Millisecond || got > 16*time.Millisecond {
			t.Errorf("it is %v, want about 16ms", got)
		}
	})
}
