package main

import (
	"math"
	"slices"
	"time"
)

// duplex is what one link carries, in payload bytes per second each way. 0 is a link
// without a limit.
type duplex struct{ up, down float64 }

// lines are the links of a run, as its bound sees them.
type lines struct {
	origin  duplex
	seeds   []duplex
	nodes   []duplex
	uplinks []duplex // of racks that have neither origin nor seed in them
}

// bound is the fluid bound: no way of sharing brings size bytes to every node sooner
// when the origin sends each byte once. Each byte leaves the origin, and then a seed;
// each node receives all of them; and what all nodes receive, nodes and seeds send.
func (l lines) bound(size int64) time.Duration {
	slowest := time.Duration(0)
	for i := range l.nodes {
		slowest = max(slowest, l.nodeBound(size, i))
	}
	return slowest
}

// nodeBound is the bound of one node: those with a slower link need not have
// everything when it has.
func (l lines) nodeBound(size int64, node int) time.Duration {
	own := l.nodes[node]
	f := float64(size)
	longest := max(f/rate(own.down), f/rate(l.origin.up))
	for _, u := range l.uplinks {
		longest = max(longest, f/rate(u.down))
	}
	asFast := 0
	upload := 0.0
	for _, n := range l.nodes {
		upload += rate(n.up)
		if rate(n.down) >= rate(own.down) {
			asFast++
		}
	}
	if len(l.seeds) == 0 {
		// The origin itself feeds the first.
		asFast--
	} else {
		seedUp, seedDown := 0.0, 0.0
		for _, s := range l.seeds {
			seedUp += rate(s.up)
			seedDown += rate(s.down)
		}
		longest = max(longest, f/seedUp, f/seedDown)
		upload += seedUp
	}
	longest = max(longest, float64(asFast)*f/upload)
	return time.Duration(longest * float64(time.Second))
}

// rate is bytes per second, endless for 0.
func rate(r float64) float64 {
	if r == 0 {
		return math.Inf(1)
	}
	return r
}

// median is the middle of durations, the lower of two; 0 of none.
func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[(len(d)-1)/2]
}

// over is a/b, 0 where b is 0.
func over[N int | int64 | float64 | time.Duration](a, b N) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}
