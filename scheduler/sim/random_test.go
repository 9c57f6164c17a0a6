package sim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// random draws a small scenario in which everything may go wrong at once.
func random(seed uint64) Scenario {
	r := rand.New(rand.NewPCG(seed, 7))
	some := func(p, most float64) float64 {
		if r.Float64() < p {
			return r.Float64() * most
		}
		return 0
	}
	s := Scenario{
		Random: seed + 1, Nodes: 2 + r.IntN(39), Seeds: r.IntN(4), Schedulers: 1 + r.IntN(3), Rate: lab,
		OriginRate: lab * (0.2 + 3*r.Float64()), Latency: core.Time(r.IntN(5)) * core.Millisecond,
		UploadSlots: 1 + r.IntN(3), DownloadSlots: 1 + r.IntN(3), Warm: r.IntN(4) == 0, NoEnding: r.IntN(4) == 0, Parallel: r.IntN(3),
		Slow: some(0.3, 0.5), SlowFactor: 0.05 + 0.5*r.Float64(), Oversubscribed: 1 + 4*r.Float64(),
		Core: core.Config{LeaseRate: 50 << r.IntN(12)},
	}
	if s.Seeds == 0 {
		s.Seeds = -1
	}
	for range 1 + r.IntN(3) {
		s.Blobs = append(s.Blobs, Blob{Size: 1 + r.Int64N(40*256<<10)})
	}
	if r.IntN(3) == 0 {
		s.Racks = 1 + r.IntN(min(s.Nodes, 5))
	}
	switch r.IntN(3) {
	case 1:
		s.Arrivals, s.Span = "staggered", core.Time(1+r.IntN(2000))*core.Millisecond
	case 2:
		s.Arrivals, s.Span = "poisson", core.Time(1+r.IntN(100))*core.Millisecond
	}
	s.Faults = Faults{
		Die: some(0.3, 0.4), Lie: some(0.3, 0.2), Hang: some(0.3, 0.2), Trickle: some(0.2, 0.2), Evict: some(0.3, 0.3),
		SeedDies: some(0.3, 1), SchedulerDies: some(0.3, 1), SchedulerJoins: some(0.3, 1),
		Detect: core.Time(1+r.IntN(2000)) * core.Millisecond, OriginBusy: r.IntN(3), RetryAfter: core.Time(r.IntN(3)) * core.Second,
		OriginFails: some(0.2, 0.2),
	}
	return s
}

// In every world nobody is stuck, no slot is over its limit,
// and the same seed makes the same decisions.
func TestRandomWorlds(t *testing.T) {
	worlds := uint64(100)
	if os.Getenv("DAMSELFLY_SIM") != "" {
		worlds = 1000
	}
	for seed := range worlds {
		s := random(seed)
		r, err := Run(s, nil)
		if err != nil {
			t.Fatalf("world %d: %v", seed, err)
		}
		if r.Stuck > 0 || r.OverLimit > 0 {
			t.Errorf("world %d: %d of %d nodes stuck, %d times over a limit\n%+v", seed, r.Stuck, r.Nodes, r.OverLimit, s)
		}
		again, err := Run(s, nil)
		if err != nil || again.DecisionsHash != r.DecisionsHash {
			t.Errorf("world %d: decisions differ: %s, then %s (%v)", seed, r.DecisionsHash, again.DecisionsHash, err)
		}
	}
	if !t.Failed() {
		fmt.Printf("%d random worlds with faults: nobody stuck, no limit passed, every world twice the same\n", worlds)
	}
}
