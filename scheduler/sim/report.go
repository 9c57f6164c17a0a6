package sim

import (
	"fmt"
	"slices"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// maxPoints bounds Result.Progress.
const maxPoints = 500

func seconds(t core.Time) float64 { return float64(t) / float64(core.Second) }

// result says what came of the run.
func (w *world) result() *Result {
	s := &w.s
	bound := s.Bound()
	r := &Result{
		Nodes: s.Nodes, Random: s.Random, Policy: s.Core.Policy, BlobBytes: s.bytes(), LatencyUs: int64(s.Latency / core.Microsecond),
		Stuck: w.waiting, OverLimit: w.over, Busy: w.busy,
		OriginBytes: w.originBytes, OriginRequests: w.originReads,
		Events: w.tally.events, Decisions: w.decisions, Leases: w.leases, Cancels: w.cancels,
		DecisionsHash: fmt.Sprintf("%016x", w.hash),
	}
	if r.Policy == "" {
		r.Policy = core.Policies()[0]
	}
	for _, l := range w.layers {
		r.Pieces += l.layout.Pieces()
	}
	f := float64(max(r.BlobBytes, 1))
	r.OriginRatio = float64(w.originBytes) / f
	r.SeedRatio = float64(w.seedBytes) / f
	if s.Racks > 0 {
		r.CrossRatio = float64(w.crossBytes) / f / float64(s.Racks)
	}
	r.WasteRatio = float64(w.waste) / float64(max(w.moved, 1))
	r.BoundSeconds = seconds(bound)
	w.times(r, bound)
	return r
}

// times fills in what says how long the nodes took.
func (w *world) times(r *Result, bound core.Time) {
	var whole, took []core.Time
	var fast, came core.Time
	total := core.Time(0)
	for _, n := range w.nodes {
		if !n.counts() || n.whole == 0 {
			continue
		}
		whole = append(whole, n.whole)
		took = append(took, n.whole-n.came)
		came = max(came, n.came)
		total += n.whole - n.came
		if !n.slow {
			fast = max(fast, n.whole)
		}
	}
	r.Whole = len(whole)
	if len(whole) == 0 {
		return
	}
	slices.Sort(whole)
	slices.Sort(took)
	last := whole[len(whole)-1]
	r.Mean = seconds(total) / float64(len(took))
	r.MeanRatio = r.Mean / seconds(bound)
	// Who comes last has its link to fill.
	bound = max(bound, came+core.Time(float64(r.BlobBytes)/w.s.Rate*float64(core.Second)))
	r.BoundSeconds = seconds(bound)
	r.Makespan, r.MakespanRatio = seconds(last), float64(last)/float64(bound)
	r.P50, r.P99 = seconds(took[len(took)/2]), seconds(took[len(took)*99/100])
	r.FastRatio = float64(fast) / float64(w.s.boundOf(0))
	rate := float64(w.s.Seeds) * w.s.SeedRate
	for _, n := range w.nodes {
		if !n.seed {
			rate += n.up.rate
		}
	}
	r.Utilisation = float64(w.moved-w.originBytes) / rate / seconds(last)
	step := max(len(whole)/maxPoints, 1)
	for i := step - 1; i < len(whole); i += step {
		r.Progress = append(r.Progress, Point{seconds(whole[i]), i + 1})
	}
	if r.Progress[len(r.Progress)-1].Whole < len(whole) {
		r.Progress = append(r.Progress, Point{seconds(last), len(whole)})
	}
}
