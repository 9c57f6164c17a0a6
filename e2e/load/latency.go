package main

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// latencies counts spans in buckets of which each is 3 % wide. Safe for concurrent
// use.
type latencies struct {
	counts [64 * 32]atomic.Uint64
	max    atomic.Int64
}

func (l *latencies) add(d time.Duration) {
	us := uint64(max(d.Microseconds(), 0))
	l.counts[bucket(us)].Add(1)
	for {
		old := l.max.Load()
		if int64(d) <= old || l.max.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

// bucket numbers spans: exactly up to 63 microseconds, then 32 buckets for each
// power of two.
func bucket(us uint64) int {
	if us < 64 {
		return int(us)
	}
	shift := bits.Len64(us) - 6
	return 32*shift + int(us>>shift)
}

// upper is the end of a bucket.
func upper(i int) time.Duration {
	if i < 64 {
		return time.Duration(i+1) * time.Microsecond
	}
	shift := i/32 - 1
	return time.Duration((uint64(i%32+32)+1)<<shift) * time.Microsecond
}

func (l *latencies) reset() {
	for i := range l.counts {
		l.counts[i].Store(0)
	}
	l.max.Store(0)
}

// Spread is how long something took, over many times. Spans are in milliseconds.
type Spread struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50_ms"`
	P90   float64 `json:"p90_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p999_ms"`
	Max   float64 `json:"max_ms"`
}

func (l *latencies) spread() Spread {
	var s Spread
	for i := range l.counts {
		s.Count += l.counts[i].Load()
	}
	at := func(share float64) float64 {
		left := uint64(share * float64(s.Count))
		for i := range l.counts {
			n := l.counts[i].Load()
			if n > left {
				return milliseconds(upper(i))
			}
			left -= n
		}
		return milliseconds(time.Duration(l.max.Load()))
	}
	s.P50, s.P90, s.P99, s.P999, s.Max = at(.5), at(.9), at(.99), at(.999), milliseconds(time.Duration(l.max.Load()))
	return s
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
