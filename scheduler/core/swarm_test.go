package core

import (
	"fmt"
	"math/bits"
	"testing"
	"time"
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

func TestTemp(t *testing.T) {
	for _, c := range []struct{ n, p int }{{32, 256}, {100, 256}, {1000, 256}, {1000, 1024},{100,64},{1000,64}} {
		for _, f := range []float64{100, 1.0} {
		for _, sl := range []int{1, 256, 1<<20} {
			start := time.Now()
			w := crowd(t, c.n, c.p, Config{SwarmLeases: sl}, f)
			w.run(3600 * Second)
			fmt.Printf("N=%d P=%d origin=%g swarmleases=%d: %.3f (best %.3f) leases %d applied %d wall %v\n", c.n, c.p, f,sl, w.makespan(c.p), 1+float64(bits.Len(uint(c.n))-1)/float64(c.p), w.leased, w.applied, time.Since(start).Round(time.Millisecond))
		}
		}
	}
}
