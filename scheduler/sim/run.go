package sim

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// Run carries a scenario out and returns what came of it. clock, which may be nil,
// tells the wall time in nanoseconds; only Result's fields about wall time depend on
// it. An error means that the scenario is not valid.
func Run(s Scenario, clock func() int64) (*Result, error) {
	s.setDefaults()
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if s.Limit == 0 {
		s.Limit = 20*s.Bound() + 120*core.Second + s.arrivalSpan()
	}
	started := int64(0)
	if clock != nil {
		started = clock()
	}
	w, err := newWorld(s, clock)
	if err != nil {
		return nil, err
	}
	w.run()
	r := w.result()
	if clock != nil {
		r.WallSeconds = float64(clock()-started) / 1e9
		r.NsPerDecision = float64(w.applyNs) / float64(max(w.decisions, 1))
		r.NsPerEvent = float64(w.applyNs) / float64(max(w.tally.events, 1))
	}
	return r, nil
}

func orDefault[T int | int64 | uint64 | float64 | core.Time](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// setDefaults fills in what is zero, and makes zero what is below it and means none.
func (s *Scenario) setDefaults() {
	orDefault(&s.Random, 1)
	orDefault(&s.Nodes, 100)
	orDefault(&s.Seeds, 1)
	s.Seeds = max(s.Seeds, 0)
	orDefault(&s.Schedulers, 1)
	orDefault(&s.Rate, 12.5e6)
	orDefault(&s.SeedRate, s.Rate)
	orDefault(&s.OriginRate, 10*s.SeedRate)
	orDefault(&s.Jitter, 0.2)
	orDefault(&s.Latency, 100*core.Microsecond)
	s.Jitter, s.Latency = max(s.Jitter, 0), max(s.Latency, 0)
	orDefault(&s.UploadSlots, 2)
	orDefault(&s.DownloadSlots, 2)
	orDefault(&s.SlowFactor, 0.1)
	orDefault(&s.Oversubscribed, 1)
	orDefault(&s.Faults.Detect, 2*core.Second)
	if s.Arrivals == "" {
		s.Arrivals = "flash"
	}
	if len(s.Blobs) == 0 {
		s.Blobs = []Blob{{}}
	}
	s.Blobs = slices.Clone(s.Blobs)
	for i := range s.Blobs {
		b := &s.Blobs[i]
		orDefault(&b.Count, 1)
		if b.Size == 0 {
			orDefault(&b.Pieces, 256)
			b.Size = sizeOf(b.Pieces)
		}
	}
}

// sizeOf is the least size whose layout has so many pieces, all of full length.
func sizeOf(pieces int) int64 {
	for length := int64(blob.MinPieceLength); length <= blob.MaxPieceLength; length *= 2 {
		if l, err := blob.NewLayout(int64(pieces) * length); err == nil && l.Pieces() == pieces {
			return l.Size()
		}
	}
	return int64(pieces) * blob.MinPieceLength
}

// Validate says what is wrong with the scenario. What is zero counts as its default.
func (s Scenario) Validate() error {
	s.setDefaults()
	var errs []error
	positive := func(name string, v float64) {
		if !(v > 0) || math.IsInf(v, 1) {
			errs = append(errs, fmt.Errorf("%s is %g: must be above zero", name, v))
		}
	}
	fraction := func(name string, v float64) {
		if !(v >= 0 && v <= 1) {
			errs = append(errs, fmt.Errorf("%s is %g: must be from 0 to 1", name, v))
		}
	}
	positive("nodes", float64(s.Nodes))
	positive("schedulers", float64(s.Schedulers))
	positive("rate", s.Rate)
	positive("seedRate", s.SeedRate)
	positive("originRate", s.OriginRate)
	positive("uploadSlots", float64(s.UploadSlots))
	positive("downloadSlots", float64(s.DownloadSlots))
	positive("slowFactor", s.SlowFactor)
	positive("oversubscribed", s.Oversubscribed)
	if s.Parallel < 0 {
		errs = append(errs, fmt.Errorf("parallel is %d: must be 0, for all at once, or how many", s.Parallel))
	}
	fraction("jitter", s.Jitter)
	fraction("slow", s.Slow)
	f := s.Faults
	for name, v := range map[string]float64{
		"die": f.Die, "lie": f.Lie, "hang": f.Hang, "trickle": f.Trickle, "evict": f.Evict, "seedDies": f.SeedDies,
		"schedulerDies": f.SchedulerDies, "schedulerJoins": f.SchedulerJoins, "originFails": f.OriginFails,
	} {
		fraction("faults."+name, v)
	}
	fraction("faults.lie, hang, trickle and evict together", f.Lie+f.Hang+f.Trickle+f.Evict)
	for i, b := range s.Blobs {
		if b.Size < 0 || b.Size > blob.MaxSize || b.Count < 1 || b.Pieces < 0 {
			errs = append(errs, fmt.Errorf("blobs[%d]: %d bytes, %d times: want 1 byte to %d, once at least", i, b.Size, b.Count, int64(blob.MaxSize)))
		}
	}
	if !slices.Contains([]string{"flash", "staggered", "poisson"}, s.Arrivals) {
		errs = append(errs, fmt.Errorf("arrivals is %q: must be flash, staggered or poisson", s.Arrivals))
	} else if s.Arrivals != "flash" && s.Span <= 0 {
		errs = append(errs, fmt.Errorf("arrivals is %s, but span is not set: say over what time the nodes come, or how far apart", s.Arrivals))
	}
	if s.Racks < 0 || s.Racks > s.Nodes {
		errs = append(errs, fmt.Errorf("racks is %d: must be from 0 to the number of nodes", s.Racks))
	}
	if err := s.Core.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("core: %w", err))
	}
	slices.SortFunc(errs, func(a, b error) int { return compareText(a, b) })
	return errors.Join(errs...)
}

func compareText(a, b error) int {
	switch x, y := a.Error(), b.Error(); {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// bytes is what one node wants.
func (s *Scenario) bytes() int64 {
	total := int64(0)
	for _, b := range s.Blobs {
		total += b.Size * int64(b.Count)
	}
	return total
}

func (s *Scenario) arrivalSpan() core.Time {
	if s.Arrivals == "poisson" {
		return s.Span * core.Time(s.Nodes)
	}
	return s.Span
}

// Bound is the least time in which all nodes could become whole if they came at
// once, bytes were fluid and nothing went wrong (Kumar and Ross, HotWeb 2006):
//
//	max(F/u_s, F/origin, F/d_min, N F/(u_s + sum u_i))
//
// and, with racks, F over a rack's line: each byte must enter each rack once. With
// pieces, equal links and one seed nobody does better than 1 + floor(log2 N)/P times
// that (Mundinger, Weber and Weiss, Journal of Scheduling 2008). Latency and the
// time until slow nodes are found out are left out; so are liars.
func (s Scenario) Bound() core.Time {
	s.setDefaults()
	return s.boundOf(partOf(s.Slow, s.Nodes))
}

// boundOf is the bound where so many nodes are slow.
func (s *Scenario) boundOf(slow int) core.Time {
	f, n := float64(s.bytes()), float64(s.Nodes)
	down, up := s.Rate, s.Rate*(n-float64(slow)*(1-s.SlowFactor))
	if slow > 0 {
		down = min(down, s.Rate*s.SlowFactor)
	}
	source := float64(s.Seeds) * s.SeedRate
	if s.Seeds == 0 {
		source = min(s.Rate, s.OriginRate) // the node that reads the origin hands it on
	}
	bound := max(f/source, f/down, n*f/(source+up))
	if !s.Warm || s.Seeds == 0 {
		bound = max(bound, f/s.OriginRate)
	}
	if s.Racks > 1 {
		bound = max(bound, f/(n/float64(s.Racks)*s.Rate/s.Oversubscribed))
	}
	return core.Time(bound * float64(core.Second))
}
