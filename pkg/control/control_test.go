package control_test

import (
	"bytes"
	"testing"
	"testing/synctest"

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

func spoke(d control.Decision) bool {
	s, ok := d.(control.Spoke)
	return ok && s.Concerns(blob.FromBytes(nil))
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
