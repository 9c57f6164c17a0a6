package sim

import (
	"math"
	"testing"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// Who is not told where nodes stand sends more between racks.
func TestNoPlaces(t *testing.T) {
	s := cold(100, 64)
	s.Racks, s.Oversubscribed = 5, 5
	told := run(t, s)
	s.NoPlaces = true
	if r := run(t, s); r.CrossRatio < 2*told.CrossRatio {
		t.Errorf("%.2f F a rack without places, %.2f with: want twice that at least", r.CrossRatio, told.CrossRatio)
	}
}

// What has come of a piece counts where it passed, though the piece never ends.
func TestBytesOfABrokenPieceCount(t *testing.T) {
	s := plain(4, func(s *Scenario) { s.Warm, s.OriginRate = false, mib })
	s.setDefaults()
	w, err := newWorld(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.s.Limit = 900 * core.Millisecond // after three pieces and six tenths of one
	for w.step() {
	}
	w.now = w.s.Limit
	w.kill(w.nodes[1])
	if want := 0.9 * mib; math.Abs(float64(w.originBytes)-want) > 8 {
		t.Errorf("the origin sent %d bytes until its reader died, want %.0f", w.originBytes, want)
	}
	var passed, stored int64
	for _, n := range w.nodes {
		stored += int64(n.holds[0].count) * 256 << 10
	}
	passed = w.moved - w.waste
	if passed != stored {
		t.Errorf("%d bytes passed of use, %d are stored", passed, stored)
	}
}

// Reads of the origin that fail are made again, from where they failed.
func TestAnOriginThatFails(t *testing.T) {
	s := cold(10, 64)
	s.Faults.OriginFails = 0.1
	if r := run(t, s); r.OriginRequests < 3 || r.OriginRatio > 1.02 {
		t.Errorf("%d requests, %.3f F: want some to fail, and no byte read twice", r.OriginRequests, r.OriginRatio)
	}
}

// Who comes late cannot be whole before its link had time: the bound counts that.
func TestBoundOfLateNodes(t *testing.T) {
	s := plain(16, func(s *Scenario) { s.Nodes, s.Arrivals, s.Span = 20, "staggered", 60*core.Second })
	r := run(t, s)
	if r.MakespanRatio < 1 || r.MakespanRatio > 1.05 || r.MeanRatio < 1 || r.MeanRatio > 1.05 {
		t.Errorf("makespan %.3f, mean %.3f of the bounds, want about 1 of nodes that come far apart", r.MakespanRatio, r.MeanRatio)
	}
	if f := 4.0; math.Abs(r.Makespan/r.MakespanRatio-r.BoundSeconds) > 1e-6 || r.BoundSeconds < 30+f || r.BoundSeconds > 60+f {
		t.Errorf("a bound of %.3f s, want that of the last arrival and %.0f s", r.BoundSeconds, f)
	}
}

func TestScenariosThatCannotBe(t *testing.T) {
	for name, s := range map[string]Scenario{
		"parallel below zero":   {Parallel: -1},
		"a rate of nothing":     {Rate: -1},
		"a rate that is none":   {Rate: math.NaN()},
		"a rate without end":    {Rate: math.Inf(1)},
		"half a fraction":       {Faults: Faults{Die: math.NaN()}},
		"more than all":         {Faults: Faults{Lie: 0.6, Hang: 0.6}},
		"no span":               {Arrivals: "poisson"},
		"more racks than nodes": {Nodes: 3, Racks: 4},
	} {
		if _, err := Run(s, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
