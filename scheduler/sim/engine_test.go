package sim

import (
	"math"
	"testing"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

const mib = 1 << 20

// plain is a world without chance: one node, one seed that holds the blob, 1 MiB/s,
// one slot each way, nothing varies and messages take no time.
func plain(pieces int, change func(*Scenario)) Scenario {
	s := Scenario{
		Nodes: 1, Blobs: []Blob{{Pieces: pieces}}, Rate: mib, Warm: true, Jitter: -1, Latency: -1, UploadSlots: 1, DownloadSlots: 1,
		Core: core.Config{LeaseRate: 1 << 30},
	}
	if change != nil {
		change(&s)
	}
	return s
}

func run(t *testing.T, s Scenario) *Result {
	t.Helper()
	r, err := Run(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Stuck > 0 || r.OverLimit > 0 {
		t.Errorf("%d stuck, %d over the limit", r.Stuck, r.OverLimit)
	}
	return r
}

func wantSeconds(t *testing.T, got, least, most float64) {
	t.Helper()
	if got < least*(1-1e-6) || got > most*(1+1e-6) {
		t.Errorf("took %.6f s, want %.6f to %.6f", got, least, most)
	}
}

// A piece is 256 KiB, a quarter of a second at 1 MiB/s.
func TestTimesComputedByHand(t *testing.T) {
	const piece, latency = 0.25, 0.010
	for name, c := range map[string]struct {
		s           Scenario
		least, most float64
	}{
		"one piece":                {plain(1, nil), piece, piece},
		"eight pieces":             {plain(8, nil), 8 * piece, 8 * piece},
		"a seed at half the rate":  {plain(8, func(s *Scenario) { s.SeedRate = mib / 2 }), 16 * piece, 16 * piece},
		"a seed at twice the rate": {plain(8, func(s *Scenario) { s.SeedRate = 2 * mib }), 8 * piece, 8 * piece},
		// One after the other or both at half the rate.
		"one piece for two": {plain(1, func(s *Scenario) { s.Nodes = 2 }), 2 * piece, 2 * piece},
		// The first piece has to reach one node before anybody can help the seed: of three
		// piece times, in two the seed and in one a node sends what the second node lacks.
		"two pieces for two": {plain(2, func(s *Scenario) { s.Nodes = 2 }), 3 * piece, 3 * piece},
		// 1 + floor(log2 N)/P of the bound, here one piece in log2(4)+1 rounds.
		"one piece for seven": {plain(1, func(s *Scenario) { s.Nodes = 7 }), 3 * piece, 3 * piece},
		"the origin's rate binds": {plain(8, func(s *Scenario) { s.Warm, s.OriginRate = false, mib/4 }),
			8 * 4 * piece, 9 * 4 * piece},
		"the origin is slow to begin": {plain(1, func(s *Scenario) { s.Warm, s.Seeds, s.OriginLatency, s.OriginRate = false, -1, core.Second, mib }),
			1 + piece, 1 + piece},
		"two origin readers share its rate": {plain(1, func(s *Scenario) {
			s.Warm, s.Seeds, s.OriginRate, s.Blobs[0].Count, s.DownloadSlots = false, -1, mib/2, 2, 2
		}), 4 * piece, 4 * piece},
		// The second rack's line carries a quarter of its one node's rate. The core may
		// wait its NearTime before it sends something across.
		"the line between racks binds": {plain(1, func(s *Scenario) { s.Nodes, s.Racks, s.Oversubscribed, s.UploadSlots = 2, 2, 4, 2 }),
			4 * piece, 4*piece + 0.1},
		"slow links": {plain(4, func(s *Scenario) { s.Slow, s.SlowFactor = 1, 0.5 }), 8 * piece, 8 * piece},
		// Want, lease, request and first byte are four ways, each within a quarter of its
		// latency.
		"messages take time": {plain(1, func(s *Scenario) { s.Latency = core.Time(latency * float64(core.Second)) }),
			piece + 3*latency, piece + 5*latency},
		"an origin that is busy": {plain(1, func(s *Scenario) {
			s.Warm, s.Seeds, s.Faults.OriginBusy, s.Faults.RetryAfter = false, -1, 1, 3*core.Second
		}),
			3 + piece, 3.1 + piece},
	} {
		t.Run(name, func(t *testing.T) { wantSeconds(t, run(t, c.s).Makespan, c.least, c.most) })
	}
}

// What the node says before a lease ends hides the round trip between two.
func TestEndingHidesTheRoundTrip(t *testing.T) {
	took := func(silent bool) float64 {
		return run(t, plain(64, func(s *Scenario) { s.Latency, s.NoEnding = 10*core.Millisecond, silent })).Makespan
	}
	const bound, trips = 16.0, 0.040
	wantSeconds(t, took(false), bound+trips*3/4, bound*1.01+trips*5/4)
	if with, without := took(false), took(true); without < with+10*trips {
		t.Errorf("%.3f s with Ending, %.3f s without: want each of at least 16 leases to cost a round trip of %.3f s without", with, without, trips)
	}
}

// The work of a transfer varies, and its mean does not.
func TestJitter(t *testing.T) {
	r := run(t, plain(1000, func(s *Scenario) { s.Jitter = 0.2 }))
	// The sum of 1000 uniform times has a deviation of 0.2/sqrt(3*1000) = 0.37 %.
	if d := math.Abs(r.MakespanRatio - 1); d == 0 || d > 4*0.0037 {
		t.Errorf("%.5f x the bound, want 1 +- 0.015", r.MakespanRatio)
	}
}

// Bytes are conserved: what nodes get is what the origin, seeds and nodes sent.
func TestBytesAreCounted(t *testing.T) {
	s := pure(40, 64)
	s.Racks, s.Oversubscribed = 4, 2
	w := simulated(t, s)
	f := int64(64 * 256 << 10)
	if w.moved != 40*f || w.got != 40*f || w.waste != 0 || w.originBytes != 0 {
		t.Errorf("moved %d, got %d, wasted %d, of the origin %d; want %d, the same, 0, 0", w.moved, w.got, w.waste, w.originBytes, 40*f)
	}
	if least := 3 * f; w.crossBytes < least || w.crossBytes > 2*least {
		t.Errorf("%d bytes between racks: want %d at least, and not twice that", w.crossBytes, least)
	}
	s.Warm = false
	if w := simulated(t, s); w.originBytes != f || w.moved != 41*f || w.originReads != 1 {
		t.Errorf("cold: moved %d, of the origin %d in %d reads; want %d, %d, 1", w.moved, w.originBytes, w.originReads, 41*f, f)
	}
}

// simulated is a world that has come to its end.
func simulated(t *testing.T, s Scenario) *world {
	t.Helper()
	s.setDefaults()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	s.Limit = 1 << 50
	w, err := newWorld(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.run()
	if w.waiting > 0 {
		t.Errorf("%d nodes are stuck", w.waiting)
	}
	return w
}
