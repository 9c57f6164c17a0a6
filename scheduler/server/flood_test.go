package server

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// Runs that overlap, repeat and stand in any order are the same pieces once, in order; runs
// as honest nodes send them stay as they are.
func TestRunsAreMerged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const pieces = 64
		var runs []blob.Run
		want := blob.NewBitmap(pieces)
		for range rapid.IntRange(0, 40).Draw(t, "runs") {
			first := rapid.IntRange(0, pieces-1).Draw(t, "first")
			r := blob.Run{First: first, Count: rapid.IntRange(1, pieces-first).Draw(t, "count")}
			runs = append(runs, r)
			want.SetRun(r)
		}
		got := blob.NewBitmap(pieces)
		end := 0
		for _, r := range merged(runs) {
			if r.First < end || r.Count < 1 {
				t.Fatalf("%v begins before %d", r, end)
			}
			end = r.End()
			got.SetRun(r)
		}
		for i := range pieces {
			if got.Has(i) != want.Has(i) {
				t.Fatalf("piece %d: %v", i, got.Has(i))
			}
		}
		honest := want.Runs()
		if again := merged(want.Runs()); len(again) != len(honest) {
			t.Fatalf("%d runs of a node became %d", len(honest), len(again))
		}
	})
}

// The largest message that overlaps costs the owner what its blob has pieces, and the trace
// what they are in words.
func TestOverlappingRunsCostNoMore(t *testing.T) {
	const pieces = 1 << 19
	l, err := blob.NewLayout(blob.MaxSize)
	if err != nil {
		t.Fatal(err)
	}
	wire := make([]*damselflyv1.Run, 0, pieces)
	for i := range min(pieces, l.Pieces()) {
		wire = append(wire, &damselflyv1.Run{First: uint32(i / 2), Count: uint32(l.Pieces() - i/2)})
	}
	got, err := readRuns("want.runs", l, wire)
	if err != nil || len(got) != 1 {
		t.Errorf("%d runs, %v", len(got), err)
	}
}

// Wants of blobs of many pieces count for what they cost: few are taken at once.
func TestLargeWantsCountForMore(t *testing.T) {
	large, small := []core.Event{}, []core.Event{}
	for range 500 {
		large = append(large, &core.Want{Size: 1 << 40}, &core.Unwant{})
		small = append(small, &core.Want{Size: 1 << 30}, &core.Unwant{})
	}
	if n, cost := fits(large); n != 1 || cost < 1000 {
		t.Errorf("%d wants of 1 TiB at once, counted as %d", n, cost)
	}
	if n, cost := fits(small); n < 5 || cost > eventsAtOnce {
		t.Errorf("%d events of 1 GiB at once, counted as %d", n, cost)
	}
	if n, cost := fits(nil); n != 0 || cost != 1 {
		t.Errorf("nothing is %d events, counted as %d", n, cost)
	}
}

// A node that says more than any honest one is held back on its own stream, and its long
// messages reach the owner in parts.
func TestOneNodeIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{inbox: newInbox(), epoch: time.Now()}
		st := newStream("flood", &s.senders, func(*damselflyv1.SchedulerMessage) error { return errors.New("over") })
		most, said := 0, 0
		over := make(chan struct{})
		go func() {
			defer close(over)
			for range 30 {
				events := make([]core.Event, maxEvent)
				for i := range events {
					events[i] = &core.Ending{Node: "flood", Lease: uint64(i)}
				}
				s.hand(st, message{events: events})
			}
			s.inbox.add(envelope{left: true})
		}()
		begun := time.Now()
		for left := false; !left; {
			<-s.inbox.wake
			for _, e := range s.inbox.take(nil) {
				left = left || e.left
				most, said = max(most, len(e.message.events)), said+len(e.message.events)
				if !e.left {
					st.taken()
				}
			}
		}
		<-over
		took := time.Since(begun)
		if said != 30*maxEvent || most >= eventsAtOnce {
			t.Errorf("%d events came, %d at once", said, most)
		}
		if least := time.Duration(said-eventBurst) * time.Second / eventRate; took < least || took > least+2*time.Second {
			t.Errorf("%d events took %s, want about %s", said, took, least)
		}
	})
}
