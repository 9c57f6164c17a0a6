package core

import (
	"fmt"
	"testing"
)

// crowd is a flash crowd: nodes all want one blob at once, a seed holds it or
// reads it. Links are equal, slots share them, transfers vary by 20 %.
func crowd(t testing.TB, nodes, pieces int, cfg Config, originFactor float64) *world {
	const link = 100 << 20
	w := newWorld(t, cfg, 1, worldOptions{rate: link / 2, originRate: link * originFactor, jitter: 0.2, batch: 1})
	b := w.blob("layer", int64(pieces)*testPiece)
	w.attend(w.node(true, 2, 8))
	for range nodes {
		n := w.node(false, 2, 2)
		w.attend(n)
		w.after(0, func() { w.want(n, b, nil) })
	}
	return w
}

// makespan is when the last node was done, over the fluid bound of one link.
func (w *world) makespan(pieces int) float64 {
	var last Time
	for _, n := range w.nodes {
		for _, h := range n.holds {
			last = max(last, h.finished)
		}
	}
	return float64(last) / (float64(pieces) * testPiece / (100 << 20) * float64(Second))
}

// A flash crowd must end near the fluid bound; the best possible with equal
// pieces is 1 + floor(log2 N)/P.
func TestFlashCrowdEndsNearTheBound(t *testing.T) {
	for _, c := range []struct {
		nodes, pieces int
		origin, most  float64
	}{
		{32, 256, 100, 1.10},
		{100, 256, 100, 1.13},
		{100, 256, 1, 1.13},
		{100, 1024, 1, 1.10},
	} {
		w := crowd(t, c.nodes, c.pieces, Config{}, c.origin)
		w.run(600 * Second)
		if got := w.makespan(c.pieces); got > c.most || got < 1 {
			t.Errorf("%d nodes, %d pieces, origin at %g of a link: makespan %.3f of the bound, want at most %.2f",
				c.nodes, c.pieces, c.origin, got, c.most)
		}
		if n := w.originLeases[string(w.blobs[0].digest)]; n != 1 {
			t.Errorf("%d origin leases, want 1", n)
		}
	}
}

// recorded is an event of a run, to be applied again.
type recorded struct {
	at Time
	e  Event
}

func record(b *testing.B, nodes, pieces int) []recorded {
	var events []recorded
	w := crowd(b, nodes, pieces, Config{LeaseRate: 1 << 30}, 1)
	w.opt.record = func(at Time, e Event) { events = append(events, recorded{at, e}) }
	w.run(600 * Second)
	b.Logf("%d nodes, %d pieces: makespan %.3f of the bound, %d leases, %d events", nodes, pieces, w.makespan(pieces), w.leased, w.applied)
	return events
}

// BenchmarkApply replays a flash crowd: an operation is one event.
func BenchmarkApply(b *testing.B) {
	for _, c := range []struct{ nodes, pieces int }{{100, 256}, {1000, 64}, {1000, 256}, {1000, 1024}, {10000, 256}} {
		b.Run(fmt.Sprintf("nodes=%d/pieces=%d", c.nodes, c.pieces), func(b *testing.B) {
			events := record(b, c.nodes, c.pieces)
			b.ReportAllocs()
			decisions, i := 0, 0
			var s *State
			var out []Decision
			for b.Loop() {
				if i == 0 {
					b.StopTimer()
					s = New(Config{LeaseRate: 1 << 30}, 1)
					b.StartTimer()
				}
				out = s.Apply(events[i].at, events[i].e, out[:0])
				decisions += len(out)
				i = (i + 1) % len(events)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(max(decisions, 1)), "ns/decision")
		})
	}
}
