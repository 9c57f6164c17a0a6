package sim

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// row is a scenario and what must hold in it, in each of the random seeds 1 to runs; of
// rows whose bars are of the worst, only in the first without DAMSELFLY_SIM=1.
type row struct {
	name   string
	s      Scenario
	runs   int
	median bool // bars are of the median, because one seed of a small crowd is noise
	long   bool // only with DAMSELFLY_SIM=1, as make sim sets it
	bars   []bar
}

// bar is the most that a figure may be.
type bar struct {
	name string
	most float64
	of   func(*Result) float64
}

// makespan is the time from the first want until the last live honest node has
// everything, over Scenario.Bound.
func makespan(most float64) bar {
	return bar{"makespan", most, func(r *Result) float64 { return r.MakespanRatio }}
}

// mean is the time that a node takes from its own want, the mean of all, over
// Scenario.Bound: F/u, where links are equal.
func mean(most float64) bar {
	return bar{"mean", most, func(r *Result) float64 { return r.MeanRatio }}
}

// fast is the makespan of the nodes that are not slow, over the bound that they would
// have if nobody were.
func fast(most float64) bar {
	return bar{"fast nodes' makespan", most, func(r *Result) float64 { return r.FastRatio }}
}

// cross is the bytes that pass between racks, over racks times F.
func cross(most float64) bar {
	return bar{"cross-rack bytes", most, func(r *Result) float64 { return r.CrossRatio }}
}

// origin is the bytes that the origin sends, over those of the blobs.
func origin(most float64) bar {
	return bar{"origin bytes", most, func(r *Result) float64 { return r.OriginRatio }}
}

// pure is the world of the theory, in which policies are compared: links are equal,
// the seed holds the blob, messages take no time, and nobody counts decisions.
func pure(nodes, pieces int) Scenario {
	return Scenario{
		Nodes: nodes, Blobs: []Blob{{Pieces: pieces}}, Rate: lab, Warm: true, Latency: -1, Core: core.Config{LeaseRate: 1 << 30},
	}
}

// cold is the world of users: the seed reads the origin while it serves, and
// messages take half a millisecond.
func cold(nodes, pieces int) Scenario {
	s := pure(nodes, pieces)
	s.Warm, s.Latency = false, 500*core.Microsecond
	return s
}

// lab is 100 Mbit/s, as the links of the lab.
const lab = 12.5e6

func with(s Scenario, change func(*Scenario)) Scenario {
	change(&s)
	return s
}

// layers40 are 40 layers of 10 KB to 2 GB, evenly in the logarithm of the size.
func layers40() []Blob {
	sizes := []int64{
		10e3, 14e3, 19e3, 26e3, 35e3, 48e3, 65e3, 89e3, 121e3, 165e3, 225e3, 307e3, 420e3, 573e3, 782e3, 1067e3, 1457e3,
		1989e3, 2715e3, 3706e3, 5060e3, 6907e3, 9429e3, 12.87e6, 17.57e6, 23.99e6, 32.75e6, 44.71e6, 61.03e6, 83.32e6,
		113.7e6, 155.3e6, 212e6, 289.4e6, 395e6, 539.3e6, 736.2e6, 1005e6, 1372e6, 2000e6,
	}
	blobs := make([]Blob, len(sizes))
	for i, size := range sizes {
		blobs[i] = Blob{Size: size}
	}
	return blobs
}

// rows are the scenarios that must hold. In each of them, beside its bars, every live
// honest node has everything in the end and nobody passes a limit of slots. Work
// varies by 20 %; there is one seed of a node's rate unless said; times of the world
// of theory stand with no latency, of all others with half a millisecond one way.
func rows() []row {
	span := func(s Scenario) core.Time { return s.Bound() }
	return []row{
		{name: "flash_32", s: pure(32, 256), runs: 9, median: true, bars: []bar{makespan(1.06)}},
		{name: "flash_1000", s: pure(1000, 256), runs: 3, bars: []bar{makespan(1.10)}},
		{name: "flash_10000", s: pure(10000, 256), runs: 1, long: true, bars: []bar{makespan(1.13)}},
		{name: "flash_1024_pieces", s: pure(1000, 1024), runs: 3, median: true, long: true, bars: []bar{makespan(1.03)}},
		{name: "flash_64_pieces", s: pure(64, 64), runs: 9, median: true, bars: []bar{makespan(1.19)}},
		{name: "cold_1000", s: cold(1000, 256), runs: 3, bars: []bar{makespan(1.12), origin(1.00)}},
		{name: "staggered", s: with(cold(1000, 256), func(s *Scenario) { s.Arrivals, s.Span = "staggered", span(*s) }), runs: 3,
			bars: []bar{mean(1.05), origin(1.00)}},
		{name: "layers_40", s: with(cold(500, 0), func(s *Scenario) { s.Blobs, s.Rate = layers40(), 125e6 }), runs: 1, long: true,
			bars: []bar{makespan(1.15), origin(1.00)}},
		{name: "slow_nodes", s: with(cold(500, 256), func(s *Scenario) { s.Slow = 0.1 }), runs: 3,
			bars: []bar{fast(1.15), origin(1.00)}},
		{name: "racks", s: with(cold(1000, 256), func(s *Scenario) { s.Racks, s.Oversubscribed = 20, 5 }), runs: 3,
			bars: []bar{makespan(1.25), cross(1.3), origin(1.00)}},
		{name: "deaths_and_lies", s: with(cold(500, 256), func(s *Scenario) { s.Faults.Die, s.Faults.Lie = 0.1, 0.05 }), runs: 3,
			bars: []bar{origin(1.02)}},
		{name: "seed_dies", s: with(cold(500, 256), func(s *Scenario) { s.Seeds, s.Faults.SeedDies = 2, 0.5 }), runs: 9, median: true,
			bars: []bar{makespan(1.15), origin(1.02)}},
		{name: "scheduler_dies", s: with(cold(200, 64), func(s *Scenario) {
			s.Blobs[0].Count, s.Schedulers, s.Faults.SchedulerDies = 12, 3, 0.5
		}), runs: 3, bars: []bar{origin(1.02)}},
	}
}

// TestTable is the promise of the scheduler, row by row.
func TestTable(t *testing.T) {
	for _, row := range rows() {
		t.Run(row.name, func(t *testing.T) {
			if os.Getenv("DAMSELFLY_SIM") == "" {
				if row.long {
					t.Logf("%s runs with DAMSELFLY_SIM=1, as make sim sets it", row.name)
					return
				}
				if !row.median {
					row.runs = 1
				}
			}
			figures := make([][]float64, len(row.bars))
			last := &Result{}
			for seed := range uint64(row.runs) {
				row.s.Random = seed + 1
				r, err := Run(row.s, wall)
				if err != nil {
					t.Fatal(err)
				}
				if r.Stuck > 0 || r.OverLimit > 0 {
					t.Errorf("random %d: %d nodes stuck, %d times over a limit", seed+1, r.Stuck, r.OverLimit)
				}
				for i, b := range row.bars {
					figures[i] = append(figures[i], b.of(r))
				}
				last = r
			}
			for i, b := range row.bars {
				slices.Sort(figures[i])
				least, worst := figures[i][0], figures[i][len(figures[i])-1]
				got, which := worst, "worst"
				if row.median {
					got, which = figures[i][len(figures[i])/2], "median"
				}
				verdict := "holds"
				if got > b.most {
					verdict = "MISSED"
					t.Errorf("%s: %.4f, want at most %.2f", b.name, got, b.most)
				}
				fmt.Printf("%-18s %-20s %-6s %.4f  <= %.2f  %-6s  (%.4f to %.4f)\n", row.name, b.name, which, got, b.most, verdict, least, worst)
			}
			fmt.Printf("%-18s %d nodes, %d pieces, latency %d us, random 1-%d; of the last: %d leases, %.0f ns a decision, %.1f s, mean %.3f, seed %.2f F, busy %d, cancels %d, waste %.4f, requests %d\n",
				"", last.Nodes, last.Pieces, last.LatencyUs, row.runs, last.Leases, last.NsPerDecision, last.WallSeconds, last.MeanRatio, last.SeedRatio, last.Busy, last.Cancels, last.WasteRatio, last.OriginRequests)
		})
	}
}
