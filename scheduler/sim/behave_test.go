package sim

import (
	"math"
	"slices"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// A holder takes three times as many leases as it has slots, because those before may be
// ending and it has twice its slots while it reads an origin, and answers the next one BUSY.
func TestAFullHolderIsBusy(t *testing.T) {
	s := plain(4, func(s *Scenario) { s.Nodes, s.UploadSlots = 8, 2 })
	s.setDefaults()
	w, err := newWorld(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	seed := w.nodes[8]
	for i := range 8 {
		l := &lease{state: w.states[0], node: w.nodes[i], holder: seed, layer: w.layers[0], id: uint64(i + 1), run: blob.Run{Count: 1}}
		l.heap = -1
		w.nodes[i].leases = append(w.nodes[i].leases, l)
		w.begun(l)
		w.asked(l)
	}
	if w.busy != 2 || seed.serving != 6 {
		t.Errorf("%d were told BUSY and %d are served, want 2 and 6", w.busy, seed.serving)
	}
}

// A node that runs more leases than its slots allow is counted.
func TestLeasesOverTheLimitAreCounted(t *testing.T) {
	s := plain(8, func(s *Scenario) { s.DownloadSlots = 2 })
	s.setDefaults()
	w, err := newWorld(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		l := &lease{state: w.states[0], node: w.nodes[0], holder: w.nodes[1], layer: w.layers[0], id: uint64(i + 1), run: blob.Run{First: i, Count: 1}}
		l.heap = -1
		w.decided(&message{kind: toNode, node: l.node, state: l.state, lease: l, order: order{kind: core.Lease}})
	}
	if w.over != 1 {
		t.Errorf("the limit was passed %d times, want once: five leases, two slots, each with one more that is ending", w.over)
	}
}

// Arrivals are as the scenario says, and a node's time counts from its own.
func TestArrivals(t *testing.T) {
	arrivals := func(how string, span core.Time) []core.Time {
		s := plain(1, func(s *Scenario) { s.Nodes, s.Arrivals, s.Span, s.Rate = 400, how, span, 1e9 })
		w := simulated(t, s)
		var at []core.Time
		for _, n := range w.nodes[:400] {
			at = append(at, n.came)
		}
		slices.Sort(at)
		return at
	}
	at := arrivals("staggered", 10*core.Second)
	if at[0] > core.Second || at[200] < 4*core.Second || at[200] > 6*core.Second || at[399] < 9*core.Second || at[399] > 10*core.Second {
		t.Errorf("staggered over 10 s: the first at %d, half at %d, the last at %d", at[0], at[200], at[399])
	}
	at = arrivals("poisson", core.Second)
	var squares float64
	for i := range at[1:] {
		squares += math.Pow(seconds(at[i+1]-at[i]), 2)
	}
	// Of exponential times the mean of the squares is twice the square of the mean.
	if mean := seconds(at[399]) / 399; mean < 0.8 || mean > 1.2 || squares/399 < 1.4 || squares/399 > 2.6 {
		t.Errorf("poisson: a mean of %.3f s apart, want 1; squares %.3f, want 2", mean, squares/399)
	}
	r := run(t, plain(4, func(s *Scenario) { s.Nodes, s.Arrivals, s.Span = 10, "staggered", 100*core.Second }))
	if r.P50 < 0.99 || r.P50 > 1.01 || r.Makespan < 50 {
		t.Errorf("nodes that come far apart take %.3f s, want 1; the last is whole at %.1f s", r.P50, r.Makespan)
	}
}

// Fractions are exact, and nobody does wrong in two ways.
func TestTheCast(t *testing.T) {
	s := Scenario{Nodes: 20, Slow: 0.25, Faults: Faults{Lie: 0.1, Hang: 0.1, Trickle: 0.05, Evict: 0.5}}
	s.setDefaults()
	w, err := newWorld(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, n := range w.nodes {
		wrongs := 0
		for name, is := range map[string]bool{"lies": n.lies, "hangs": n.hangs, "drips": n.drips, "evicts": n.evicts} {
			if is {
				counts[name]++
				wrongs++
			}
		}
		if n.slow {
			counts["slow"]++
		}
		if wrongs > 1 || n.seed && (wrongs > 0 || n.slow) {
			t.Errorf("%+v", n)
		}
	}
	if counts["slow"] != 5 || counts["lies"] != 2 || counts["hangs"] != 2 || counts["drips"] != 1 || counts["evicts"] != 10 {
		t.Errorf("of 20 nodes: %v", counts)
	}
}

func TestBound(t *testing.T) {
	const f = 64 * 256 << 10
	base := Scenario{Nodes: 10, Rate: 100, Blobs: []Blob{{Pieces: 64}}}
	for name, c := range map[string]struct {
		change func(*Scenario)
		want   float64
	}{
		"a link":               {func(*Scenario) {}, f / 100.},
		"a slow seed":          {func(s *Scenario) { s.SeedRate = 50 }, f / 50.},
		"two slow seeds":       {func(s *Scenario) { s.SeedRate, s.Seeds = 60, 2 }, f / 100.},
		"a slow origin":        {func(s *Scenario) { s.OriginRate = 25 }, f / 25.},
		"a slow origin unused": {func(s *Scenario) { s.OriginRate, s.Warm = 25, true }, f / 100.},
		"a slow node":          {func(s *Scenario) { s.Slow = 0.1 }, f / 10.},
		"all uplinks together": {func(s *Scenario) { s.Slow, s.SlowFactor, s.SeedRate, s.Nodes = 0.5, 0.5, 100, 2 }, f / 50.},
		"lines between racks":  {func(s *Scenario) { s.Racks, s.Oversubscribed = 5, 10 }, f / 20.},
		"two blobs":            {func(s *Scenario) { s.Blobs = append(s.Blobs, Blob{Size: 1000}) }, (f + 1000) / 100.},
	} {
		s := base
		c.change(&s)
		if got := seconds(s.Bound()); !near(got, c.want, 1e-6) {
			t.Errorf("%s: %.3f s, want %.3f", name, got, c.want)
		}
	}
}

// A crowd without a seed ends near the bound: the node that reads the registry sends each
// piece once while there are others.
func TestCrowdWithoutASeed(t *testing.T) {
	r := run(t, Scenario{Nodes: 16, Seeds: -1, Blobs: []Blob{{Pieces: 200}}, Core: core.Config{LeaseRate: 1 << 30}})
	if r.MakespanRatio > 1.2 || r.OriginRatio != 1 || r.Busy > 0 {
		t.Errorf("makespan %.3f of the bound, origin %.3f, %d told BUSY; want at most 1.2, 1 and none", r.MakespanRatio, r.OriginRatio, r.Busy)
	}
}
