package control_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/ring"
)

// three attends three schedulers, of which the node was told one.
func three(t *testing.T) (*cluster, *control.Set, *recorder, map[string]*attended) {
	t.Helper()
	c := newCluster("a", "b", "c")
	s, r := newSet(t, c, busily, "a:1")
	at := map[string]*attended{"a": c.at("a").accept(t, who("a", "b", "c"))}
	for _, id := range []string{"b", "c"} {
		at[id] = c.at(id).accept(t, who("a", "b", "c"))
	}
	settle()
	r.take()
	return c, s, r, at
}

// settle lets the moment pass in which blobs that have moved are wanted nowhere new.
func settle() {
	<-time.After(201 * time.Millisecond)
	synctest.Wait()
}

func TestEventsGoToTheOwnerOfTheirBlob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, _, at := three(t)
		for id, a := range at {
			d := owned(0, id, "a", "b", "c")
			s.Tell(control.Want{Digest: d, Size: 1})
			s.Tell(control.Have{Digest: d, Size: 1, Runs: []blob.Run{{Count: 1}}})
			s.Tell(control.Unwant{Digest: d})
			wants(t, id, a, "want "+d.String(), "have "+d.String(), "unwant "+d.String())
		}
		d := owned(1, "b", "a", "b", "c")
		s.Tell(control.Drop{Digest: d})
		for id, a := range at { // each may have been told of it once
			wants(t, id, a, "drop "+d.String())
		}
	})
}

func TestLeasesOfTwoSchedulersMayHaveOneID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, r, at := three(t)
		da, db := owned(0, "a", "a", "b", "c"), owned(0, "b", "a", "b", "c")
		at["a"].decide(lease(7, da))
		at["b"].decide(lease(7, db))
		got := of[control.Lease](r)
		if len(got) != 2 || got[0].ID == got[1].ID {
			t.Fatalf("the handler got %v", got)
		}
		at["b"].decide(cancel(7))
		if c := of[control.Cancel](r); len(c) != 1 || c[0].Lease != got[1].ID {
			t.Fatalf("cancelled %v, want %d", c, got[1].ID)
		}
		s.Tell(control.Ending{Lease: got[0].ID})
		s.Tell(control.Ending{Lease: got[0].ID})
		s.Tell(control.Done{Lease: got[0].ID})
		s.Tell(control.Done{Lease: got[0].ID})
		s.Tell(control.Failed{Lease: got[1].ID})
		wants(t, "a", at["a"], "ending 7", "done 7")
		wants(t, "b", at["b"], "failed 7 REASON_UNSPECIFIED")
		wants(t, "c", at["c"])
	})
}

func TestBlobsOfADeadSchedulerMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, r, at := three(t)
		dead, other := owned(0, "c", "a", "b", "c"), owned(0, "a", "a", "b", "c")
		s.Tell(control.Want{Digest: dead, Size: 1})
		s.Tell(control.Want{Digest: other, Size: 1})
		wants(t, "before", at["c"], "want "+dead.String())
		at["c"].decide(lease(1, dead))
		running := of[control.Lease](r)[0].ID
		died := time.Now()
		c.kill("c", true)
		close(at["c"].down)
		synctest.Wait()
		if l := of[control.Lost](r); len(l) != 1 || !l[0].Concerns(dead) || l[0].Concerns(other) {
			t.Fatalf("the handler heard %v", l)
		}
		if !s.Joined(dead) || !s.Joined(other) {
			t.Fatal("a blob whose owner has just died has nobody to move to")
		}
		s.Tell(control.Done{Lease: running}) // nobody hears it
		at["a"].decide(who("a", "b"))
		if j := of[control.Joined](r); len(j) != 0 {
			t.Fatal("one of two moved the blobs")
		}
		at["b"].decide(who("a", "b"))
		j := of[control.Joined](r)
		if len(j) != 1 || !j[0].Concerns(dead) || j[0].Concerns(other) {
			t.Fatalf("the handler heard %v", j)
		}
		heir := at[ring.Owner(dead.String(), []string{"a", "b"})]
		heir.told()
		s.Tell(control.Have{Digest: dead, Size: 1})
		s.Tell(control.Want{Digest: dead, Size: 1})
		wants(t, "the heir, before it has heard of others that hold it", heir, "have "+dead.String())
		settle()
		wants(t, "the heir", heir, "want "+dead.String())
		if took := time.Since(died); took > 2*time.Second {
			t.Errorf("the heir knew after %v", took)
		}
	})
}

// One that falls silent keeps its stream: what its leases come to waits for it there.
func TestBlobsOfASilentSchedulerMoveAndComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, r, at := three(t)
		d, other := owned(0, "c", "a", "b", "c"), owned(0, "a", "a", "b", "c")
		s.Tell(control.Want{Digest: d, Size: 1})
		wants(t, "before", at["c"], "want "+d.String())
		at["c"].decide(lease(1, d))
		running := of[control.Lease](r)[0].ID
		at["c"].late(5 * time.Second)
		<-time.After(time.Second)
		if l := of[control.Lost](r); len(l) != 1 || !l[0].Concerns(d) || l[0].Concerns(other) {
			t.Fatalf("the handler heard %v", l)
		}
		<-time.After(2 * time.Second)
		if j := of[control.Joined](r); len(j) != 1 || !j[0].Concerns(d) || j[0].Concerns(other) {
			t.Fatalf("the handler heard %v", j)
		}
		s.Tell(control.Want{Digest: d, Size: 1})
		s.Tell(control.Done{Lease: running})
		settle()
		wants(t, "the silent one", at["c"], "unwant "+d.String(), "done 1")
		heir := at[ring.Owner(d.String(), []string{"a", "b"})]
		wants(t, "the heir", heir, "want "+d.String())
		at["c"].late(0)
		at["c"].decide(who("a", "b", "c"))
		if j := of[control.Joined](r); len(j) != 1 || !j[0].Concerns(d) || j[0].Concerns(other) {
			t.Fatalf("when it spoke again the handler heard %v", j)
		}
		s.Tell(control.Want{Digest: d, Size: 1})
		settle()
		wants(t, "the heir, afterwards", heir, "unwant "+d.String())
		wants(t, "the one that came back", at["c"], "want "+d.String())
	})
}

// Where the others never notice, the node moves by itself.
func TestSchedulerThatThisNodeCannotReachIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, r, at := three(t)
		d := owned(0, "c", "a", "b", "c")
		s.Tell(control.Want{Digest: d, Size: 1})
		c.kill("c", true)
		close(at["c"].down)
		<-time.After(1700 * time.Millisecond)
		synctest.Wait()
		if j := of[control.Joined](r); len(j) != 1 || !j[0].Concerns(d) {
			t.Fatalf("the handler heard %v", j)
		}
		s.Tell(control.Want{Digest: d, Size: 1})
		settle()
		if a, b := at["a"].told(), at["b"].told(); len(a)+len(b) != 1 {
			t.Fatalf("told %q and %q", a, b)
		}
		c.kill("c", false) // and it gets them back
		back := c.at("c").accept(t, who("a", "b", "c"))
		if j := of[control.Joined](r); len(j) != 1 || !j[0].Concerns(d) {
			t.Fatalf("the handler heard %v", j)
		}
		s.Tell(control.Want{Digest: d, Size: 1})
		if a, b := at["a"].told(), at["b"].told(); len(a)+len(b) != 0 {
			t.Fatalf("its heir was told %q and %q before c had heard of anything", a, b)
		}
		settle()
		wants(t, "c again", back, "want "+d.String())
		if a, b := at["a"].told(), at["b"].told(); len(a)+len(b) != 1 {
			t.Fatalf("its heir was told %q and %q, want one Unwant", a, b)
		}
	})
}

func TestNewSchedulerTakesItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b")
		s, r := newSet(t, c, busily, "a:1")
		a := c.at("a").accept(t)
		moves, stays := owned(0, "b", "a", "b"), owned(0, "a", "a", "b")
		for _, d := range []blob.Digest{moves, stays} {
			s.Tell(control.Want{Digest: d, Size: 1})
		}
		a.decide(lease(3, moves))
		running := of[control.Lease](r)[0].ID
		a.told()
		a.decide(who("a", "b"))
		b := c.at("b").accept(t, who("a", "b"))
		wants(t, "the old owner", a)
		if j := of[control.Joined](r); len(j) != 1 || !j[0].Concerns(moves) || j[0].Concerns(stays) {
			t.Fatalf("the handler heard %v", j)
		}
		s.Tell(control.Want{Digest: moves, Size: 1})
		s.Tell(control.Have{Digest: moves, Size: 1, Runs: []blob.Run{{Count: 1}}})
		s.Tell(control.Done{Lease: running})
		wants(t, "the new owner", b, "have "+moves.String())
		wants(t, "the old owner, of its lease", a, "have "+moves.String(), "done 3")
		settle()
		wants(t, "the new owner, a moment later", b, "want "+moves.String())
		wants(t, "the old owner, then", a, "unwant "+moves.String())
		a.decide(who("a")) // one word of two is not enough
		synctest.Wait()
		if b.ctx.Err() != nil {
			t.Fatal("a scheduler that knows of itself alone made the node leave the other")
		}
		b.decide(who("a"))
		if b.ctx.Err() == nil {
			t.Fatal("a scheduler that left the set is still attended")
		}
	})
}

// Where gossip fails, or all start again at once, each scheduler knows itself alone:
// all of them answer, and none is left. What one alone says of others still moves nobody.
func TestSchedulersThatAnswerAreNotLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, r, at := three(t)
		c.all["d:1"] = &scheduler{id: "d", address: "d:1", streams: make(chan *stream)}
		for range 2 { // whoever speaks first
			at["c"].decide(who("c", "d"))
			at["a"].decide(who()) // itself
			at["b"].decide(who("b"))
		}
		for id, a := range at {
			if a.ctx.Err() != nil {
				t.Errorf("%s, which answers, is attended no more", id)
			}
		}
		if !s.Answering() || len(of[control.Lost](r)) != 0 {
			t.Error("the handler heard that a scheduler is lost")
		}
		if got := s.Addresses(); !slices.Equal(got, []string{"a:1", "b:1", "c:1"}) {
			t.Errorf("the schedulers are %v", got)
		}
		at["c"].decide(who("a", "b")) // it leaves
		if at["c"].ctx.Err() == nil {
			t.Error("one that does not count itself in is still attended")
		}
	})
}

// A scheduler that leases what is another's knows nothing of what this node holds.
func TestStrangerIsToldBeforeItsLeaseRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, r, at := three(t)
		d := owned(0, "a", "a", "b", "c")
		have := control.Have{Digest: d, Size: 1, Sealed: true}
		r.on = func(got control.Decision) {
			if _, ok := got.(control.Tell); ok {
				s.Tell(have)
			}
		}
		at["b"].decide(lease(1, d))
		got := r.take()
		if len(got) != 2 || got[0] != (control.Tell{Digest: d}) || got[1].(control.Lease).Digest != d {
			t.Fatalf("the handler heard %v", got)
		}
		for _, id := range []string{"a", "b"} {
			wants(t, id, at[id], "have "+d.String())
		}
		wants(t, "c", at["c"])
	})
}

func TestNextStartingPointIsTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b")
		c.kill("a", true)
		started := time.Now()
		_, r := newSet(t, c, idly, "a:1", "b:1")
		c.at("b").accept(t, who("a", "b"))
		if j := of[control.Joined](r); len(j) != 1 || time.Since(started) > 10*time.Millisecond {
			t.Fatalf("joined %d after %v", len(j), time.Since(started))
		}
	})
}

// One that hangs before its welcome does not keep the node from the others.
func TestHangingStartingPointIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b")
		newSet(t, c, idly, "a:1", "b:1")
		hangs, other := "a", "b"
		var st *stream
		select {
		case st = <-c.at("a").streams:
		case st = <-c.at("b").streams:
			hangs, other = "b", "a"
		}
		<-st.up
		started := time.Now()
		c.at(other).accept(t)
		if took := time.Since(started); took > 1100*time.Millisecond {
			t.Errorf("%s hung the node up for %v", hangs, took)
		}
	})
}

func TestAllGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, r, at := three(t)
		for id, a := range at {
			c.kill(id, true)
			close(a.down)
		}
		synctest.Wait()
		d := owned(0, "a", "a", "b", "c")
		if s.Joined(d) || s.Answering() {
			t.Fatal("joined, with nobody there")
		}
		l := of[control.Lost](r)
		if len(l) != 3 || !l[2].Concerns(d) {
			t.Fatalf("the handler heard %v", l)
		}
		c.kill("b", false) // no starting point: it is known
		b := c.at("b").accept(t)
		if j := of[control.Joined](r); len(j) != 1 || !j[0].Concerns(d) {
			t.Fatalf("the handler heard %v", j)
		}
		s.Tell(control.Want{Digest: d, Size: 1}) // one alone is told at once
		wants(t, "the one that is left", b, "want "+d.String())
	})
}
