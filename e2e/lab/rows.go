package main

import (
	"fmt"
	"math"
)

// bar is one thing that a row demands of its result.
type bar struct {
	what  string // such as "ratio <= 1.15"
	value func(Result) float64
	most  float64
}

// measured is what the result has of it.
func (b bar) measured(r Result) float64 { return round(b.value(r)) }

func (b bar) holds(r Result) bool { return b.measured(r) <= b.most }

// row is one run of the table.
type row struct {
	name     string
	scenario string
	nodes    int
	blob     string // "" where the scenario says the layers
	rate     string // of each link; "" is the usual one
	bars     []bar
	short    bool // it is in the short table, and not in the full one
}

// args are the flags of the run that a row is.
func (r row) args() []string {
	args := []string{"--scenario", r.scenario, "--nodes", fmt.Sprint(r.nodes)}
	if r.blob != "" {
		args = append(args, "--blob", r.blob)
	}
	if r.rate != "" {
		args = append(args, "--rate", r.rate)
	}
	return append(args, "--json")
}

func most(what string, most float64, value func(Result) float64) bar {
	return bar{fmt.Sprintf("%s <= %.4g", what, most), value, most}
}

func ratio(n float64) bar { return most("ratio", n, func(r Result) float64 { return r.Ratio }) }

func originRatio(n float64) bar {
	return most("origin_ratio", n, func(r Result) float64 { return r.OriginRatio })
}

func nobodyFails() bar {
	return bar{"failed = 0", func(r Result) float64 { return float64(r.Failed) }, 0}
}

// medianRatio is the median node time over the bound.
func medianRatio(what string, n float64) bar {
	return most(what, n, func(r Result) float64 { return over(r.SecondsP50, r.BoundSeconds) })
}

func requests(what string, n int) bar {
	return bar{fmt.Sprintf("origin_requests <= %d (%s)", n, what), func(r Result) float64 { return float64(r.OriginRequests) }, float64(n)}
}

// figure is a bar on what only one scenario measures; it does not hold where that has
// measured nothing.
func figure(name string, n float64) bar {
	return most(name, n, func(r Result) float64 {
		if got, ok := r.Figures[name]; ok {
			return got
		}
		return math.Inf(1)
	})
}

func nothingWrong() bar {
	return bar{"wrong_bytes = 0", func(r Result) float64 { return float64(r.WrongBytes) }, 0}
}

// smallRequests is one for each blob and manifest, and each node's HEAD of the tag.
func smallRequests() bar {
	return requests("20 layers, config, index, manifest, 8 HEADs", 20+1+2+8)
}

// sharedRatio is the ratio that a machine with other work to do must hold.
const sharedRatio = 2.5

// rows are the table: what Damselfly promises of real processes on real links. A row
// whose scenario is not there is left out.
func rows() []row {
	const large, quick = "256MiB", "64MiB"
	all := []row{
		{name: "flash, N = 8", scenario: "flash", nodes: 8, blob: large, bars: []bar{ratio(1.15), originRatio(1.01)}},
		{name: "flash, N = 16", scenario: "flash", nodes: 16, blob: large, bars: []bar{ratio(1.15), originRatio(1.01)}},
		{name: "flash, N = 24", scenario: "flash", nodes: 24, blob: large, bars: []bar{ratio(1.15), originRatio(1.01)}},
		// Slower links tell what the rows above owe to the machine: 24 nodes at 100 Mbit/s
		// are all that two cores can do.
		{name: "flash, N = 16, links of 50 Mbit/s", scenario: "flash", nodes: 16, blob: "128MiB", rate: "50mbit", bars: []bar{ratio(1.15), originRatio(1.01)}},
		{name: "flash, N = 24, links of 30 Mbit/s", scenario: "flash", nodes: 24, blob: "80MiB", rate: "30mbit", bars: []bar{ratio(1.15), originRatio(1.01)}},
		{name: "flash, N = 16, F = 50 MiB", scenario: "flash", nodes: 16, blob: "50MiB", bars: []bar{ratio(1.20)}},
		{name: "flash without a seed, N = 8", scenario: "no-seed", nodes: 8, blob: large, bars: []bar{ratio(1.20), originRatio(1.01)}},
		{name: "staggered over F/u, N = 16", scenario: "staggered", nodes: 16, blob: large,
			bars: []bar{medianRatio("p50 / (F/u)", 1.10)}},
		{name: "20 layers of 1 MiB, N = 8", scenario: "small", nodes: 8, bars: []bar{ratio(1.5), smallRequests()}},
		{name: "scheduler killed half way, back after 5 s", scenario: "scheduler-killed", nodes: 16, blob: large,
			bars: []bar{ratio(1.4), originRatio(1.05)}},
		{name: "all schedulers gone, one node whole", scenario: "schedulers-gone", nodes: 16, blob: large},
		{name: "scheduler hangs", scenario: "scheduler-hangs", nodes: 16, blob: large, bars: []bar{figure("longer_seconds", 2)}},
		{name: "scheduler stopped for 3 s", scenario: "scheduler-pauses", nodes: 16, blob: large, bars: []bar{ratio(1.4), originRatio(1.01)}},
		{name: "everything stopped for 3 s", scenario: "all-pause", nodes: 16, blob: large, bars: []bar{ratio(1.5), originRatio(1.01)}},
		{name: "seed killed half way", scenario: "seed-killed", nodes: 16, blob: large, bars: []bar{ratio(1.4), originRatio(1.05)}},
		{name: "30 % of nodes killed half way", scenario: "nodes-killed", nodes: 16, blob: large, bars: []bar{ratio(1.5)}},
		{name: "2 of 16 nodes send wrong bytes", scenario: "wrong-bytes", nodes: 16, blob: large,
			bars: []bar{nothingWrong(), ratio(1.5), originRatio(1.05)}},
		{name: "1 of 16 nodes says nothing, no seed", scenario: "hostile-silent-no-seed", nodes: 16, blob: large, bars: []bar{nothingWrong(), ratio(1.5), originRatio(1.10)}},
		{name: "1 of 16 nodes forges links, no seed", scenario: "hostile-forge-no-seed", nodes: 16, blob: large, bars: []bar{nothingWrong(), ratio(1.5), originRatio(1.10)}},
		{name: "1 of 16 nodes accuses all", scenario: "hostile-accuse", nodes: 16, blob: large, bars: []bar{nothingWrong(), ratio(1.5), originRatio(1.10)}},
		{name: "1 of 16 nodes hoards slots", scenario: "hostile-hoard", nodes: 16, blob: large, bars: []bar{nothingWrong(), ratio(1.5), originRatio(1.10)}},
		{name: "origin answers 429 for 5 s", scenario: "origin-429", nodes: 16, blob: large, bars: []bar{
			// A layer and its config are asked for at once, and both are refused once.
			figure("refused_requests", 2), figure("requests_after_pause", 2), figure("seconds_beyond_pause", 3)}},
		{name: "origin answers everything 429 for 5 s", scenario: "origin-429-all", nodes: 16, blob: large, bars: []bar{
			// Each node asks what the tag means, and is refused once.
			figure("refused_requests", 16), figure("seconds_beyond_pause", 3)}},
		{name: "disk full on 2 of 16 nodes", scenario: "full-disk", nodes: 16, blob: large, bars: []bar{nothingWrong(), ratio(1.25)}},
		{name: "late joiner, N = 8", scenario: "late", nodes: 8, blob: quick, bars: []bar{figure("late_ratio", 1.05)}},
		{name: "two images at once, N = 8", scenario: "two", nodes: 8, blob: large, bars: []bar{ratio(1.25), originRatio(1.01)}},
		{name: "a quarter of 8 nodes slow", scenario: "slow", nodes: 8, blob: quick,
			bars: []bar{figure("fast_ratio", 1.30), most("node_ratio", 1.30, func(r Result) float64 { return r.NodeRatio })}},
		{name: "racks of 4, uplinks 2:1, N = 16", scenario: "racks", nodes: 16, blob: large,
			bars: []bar{ratio(1.25), figure("uplink_ratio", 1.25)}},
		{name: "40 layers, N = 8", scenario: "mixed", nodes: 8, blob: large, bars: []bar{ratio(1.30), originRatio(1.01)}},
		// The short table is part of the tests, on machines that do other work too: its
		// ratios only tell that nothing waits for what will not come.
		{name: "flash, N = 8, F = 64 MiB", scenario: "flash", nodes: 8, blob: quick, short: true,
			bars: []bar{ratio(sharedRatio), originRatio(1.01)}},
		{name: "20 layers of 1 MiB, N = 8, shared machine", scenario: "small", nodes: 8, short: true, bars: []bar{ratio(2 * sharedRatio), smallRequests()}},
		{name: "scheduler killed half way, F = 64 MiB", scenario: "scheduler-killed", nodes: 8, blob: quick, short: true,
			bars: []bar{ratio(sharedRatio), originRatio(1.10)}},
		{name: "30 % of nodes killed half way, F = 64 MiB", scenario: "nodes-killed", nodes: 8, blob: quick, short: true,
			bars: []bar{ratio(sharedRatio)}},
		{name: "2 of 8 nodes send wrong bytes, F = 64 MiB", scenario: "wrong-bytes", nodes: 8, blob: quick, short: true,
			bars: []bar{nothingWrong(), ratio(sharedRatio), originRatio(1.10)}},
	}
	var there []row
	for _, r := range all {
		if _, ok := findScenario(r.scenario); ok {
			r.bars = append([]bar{nobodyFails()}, r.bars...)
			there = append(there, r)
		}
	}
	return there
}
