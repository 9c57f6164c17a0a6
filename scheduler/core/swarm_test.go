package core

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
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

// recorded is an event of a run, to be applied again. What most are stands by itself:
// a scheduler applies them fresh from the wire, not from all over the memory.
type recorded struct {
	at     Time
	node   string
	digest blob.Digest
	size   int64
	run    blob.Run // of a Have of one run
	lease  uint64   // of a Done, of that many bytes in that time
	bytes  int64
	time   Time
	other  Event
}

func recordOf(at Time, e Event) recorded {
	switch e := e.(type) {
	case *Have:
		if len(e.Runs) == 1 && len(e.Links) == 0 && !e.Sealed {
			return recorded{at: at, node: e.Node, digest: e.Digest, size: e.Size, run: e.Runs[0]}
		}
	case *Done:
		return recorded{at: at, node: e.Node, lease: e.Lease, bytes: e.Bytes, time: e.Time}
	}
	return recorded{at: at, other: e}
}

// again makes the event anew, in place of those before it.
func (r *recorded) again(have *Have, done *Done) Event {
	switch {
	case r.other != nil:
		return r.other
	case r.lease != 0:
		*done = Done{Node: r.node, Lease: r.lease, Bytes: r.bytes, Time: r.time}
		return done
	}
	*have = Have{Node: r.node, Digest: r.digest, Size: r.size, Runs: append(have.Runs[:0], r.run)}
	return have
}

func record(b *testing.B, nodes, pieces int) []recorded {
	var events []recorded
	w := crowd(b, nodes, pieces, Config{LeaseRate: 1 << 30}, 1)
	w.opt.record = func(at Time, e Event) { events = append(events, recordOf(at, e)) }
	w.run(600 * Second)
	b.Logf("%d nodes, %d pieces: makespan %.3f of the bound, %d leases, %d events", nodes, pieces, w.makespan(pieces), w.leased, w.applied)
	return events
}

// BenchmarkApply replays flash crowds: an operation is a whole one. DAMSELFLY_SIM=1
// adds one of 50,000 nodes, which takes minutes.
func BenchmarkApply(b *testing.B) {
	crowds := []struct{ nodes, pieces int }{{100, 256}, {1000, 64}, {1000, 256}, {1000, 1024}, {10000, 256}}
	if os.Getenv("DAMSELFLY_SIM") != "" {
		crowds = append(crowds, struct{ nodes, pieces int }{50000, 256})
	}
	for _, c := range crowds {
		b.Run(fmt.Sprintf("nodes=%d/pieces=%d", c.nodes, c.pieces), func(b *testing.B) {
			events := record(b, c.nodes, c.pieces)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			decisions := 0
			for b.Loop() {
				s := New(Config{LeaseRate: 1 << 30}, 1)
				var out []Decision
				var have Have
				var done Done
				for i := range events {
					out = s.Apply(events[i].at, events[i].again(&have, &done), out[:0])
					decisions += len(out)
				}
			}
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(decisions), "ns/decision")
			b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(decisions), "allocs/decision")
		})
	}
}
