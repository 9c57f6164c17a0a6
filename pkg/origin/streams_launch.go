package origin

import (
	"io"
	"slices"
	"time"
)

const (
	// aheadSpan is how far before the first stream the second begins, so that the trial is
	// over when the first has come there: time at the first's rate, and 3/2 of what the
	// first took to begin.
	aheadSpan = 300 * time.Millisecond
	mostAhead = 16 << 20
	// chunkSpan is how long a stream needs for a chunk at least, where memory allows.
	chunkSpan = 500 * time.Millisecond
	// slowShare of what others bring: who brings less while Read waits for it is asked
	// around, after slowSpan, at most rescues times.
	slowShare = 4
	slowSpan  = 500 * time.Millisecond
	rescues   = 2
)

// fill starts streams where there are too few. The caller holds mu.
func (s *streams) fill(now time.Time) {
	if t := s.ctl.trial; t != nil && t.from == 1 {
		return // who is judged is not to be cut
	}
	for s.active() < s.ctl.target {
		if s.launch(now, s.ctl.target == 1) == nil {
			return
		}
	}
}

// launch starts a helper at the first byte that no stream is to bring; nil: it cannot.
// An open one may go on to the end. The caller holds mu.
func (s *streams) launch(now time.Time, open bool) *segment {
	i, at, end := s.hole()
	if i == 0 || at == end || end-at < leastChunk && end == s.end && s.segs[i-1].open && s.segs[i-1].end == s.end {
		return nil // what comes next is Read's own to ask for, or not worth a stream
	}
	n := s.chunk(end-at, s.end-at)
	held := n
	open = open && end == s.end
	if open {
		n, held = end-at, min(max(mostChunk, at-s.pos), mostAhead, s.budget.mostBytes)
	}
	if s.ctl.off || !s.budget.enter(s.places(), held) {
		return nil
	}
	if before := s.segs[i-1]; before.open {
		before.end = min(before.end, at)
	}
	g := s.newSegment(at, at+n, now)
	g.open, g.most, g.held, g.place = open, int(held), held, true
	bound := g.end
	if open {
		bound = s.end
	}
	g.from = s.fork(at, bound, true)
	s.segs = slices.Insert(s.segs, i, g)
	s.running.Add(1)
	go g.pump(g.from)
	return g
}

// hole is the first part that no stream is to bring, or else may be taken from an open
// one, and where a segment for it belongs. The caller holds mu.
func (s *streams) hole() (i int, at, end int64) {
	at = s.pos
	for i, g := range s.segs {
		if g.start > at {
			return i, at, g.start
		}
		at = g.end
	}
	i = len(s.segs)
	if i == 0 || at < s.end || !s.segs[i-1].open || s.segs[i-1].done {
		return i, at, s.end
	}
	last := s.segs[i-1]
	rest := s.end - last.pos
	ahead := s.chunk(rest, rest)
	if s.ctl.target == 2 && last.start <= s.pos {
		ahead = int64(s.ctl.single * (aheadSpan + min(time.Second, s.ctl.opened*3/2)).Seconds())
		ahead = min(max(leastChunk, ahead), rest/3)
	} else if last.start > s.pos {
		ahead = max(leastChunk, last.start+ahead-last.pos)
	}
	return i, min(last.pos+ahead, s.end), s.end
}

// chunk is how much a stream is asked for of a hole, when so much is left in all. Less
// towards the end has all streams end together. The caller holds mu.
func (s *streams) chunk(hole, rest int64) int64 {
	c := &s.ctl
	n := 2 * rest / int64(3*max(1, c.target))
	if rate := median(c.rates); rate > 0 {
		n = min(n, int64(rate*chunkSpan.Seconds()))
	} else {
		n = min(n, int64(c.single*chunkSpan.Seconds()))
	}
	n = min(max(n, leastChunk/2), mostChunk)
	if hole-n < leastChunk/4 {
		n = hole
	}
	return min(n, hole)
}

// places counts what the read has of the budget's. The caller holds mu.
func (s *streams) places() (n int) {
	for _, g := range s.segs {
		if g.place {
			n++
		}
	}
	return n
}

// rescue asks again for the rest of what Read waits for, where its stream is far slower
// than the others. The caller holds mu.
func (s *streams) rescue(now time.Time) {
	g := s.front()
	if g == nil || g.done || g.pos > s.pos || g.rescuer != nil || g.rescued >= rescues || s.ctl.off {
		return
	}
	if usual := s.usual(g); s.ctl.waits.IsZero() || usual == 0 || g.rate*slowShare >= usual || now.Sub(g.began) < slowSpan {
		g.quietly = time.Time{}
		return
	}
	if g.quietly.IsZero() {
		g.quietly = now
	}
	if now.Sub(g.quietly) < slowSpan {
		return
	}
	g.rescued++
	g.rescuer = s.fork(g.pos, g.end, true)
	s.running.Add(1)
	go g.replace(g.rescuer)
}

// usual is the rate of the other streams, or else of those that were. The caller holds
// mu.
func (s *streams) usual(than *segment) float64 {
	var rates []float64
	for _, g := range s.segs {
		if g != than && !g.done && g.proven && g.rate > 0 {
			rates = append(rates, g.rate)
		}
	}
	if len(rates) == 0 {
		rates = s.ctl.rates
	}
	return median(rates)
}

// replace has r bring the rest of g, unless who brings it now ends before r begins.
func (g *segment) replace(r *reader) {
	defer g.s.running.Done()
	at := r.pos
	first := g.s.budget.block()
	n, err := r.Read(first.bytes)
	if !g.takeOver(r, first, at, n, err) {
		_ = r.Close()
		return
	}
	g.s.mu.Lock()
	late := g.pos - at - int64(n)
	g.s.mu.Unlock()
	if late > 0 { // what has come meanwhile
		if _, err := io.CopyN(io.Discard, r, late); err != nil {
			g.s.mu.Lock()
			g.stop(whole(err))
			g.s.mu.Unlock()
			_ = r.Close()
			return
		}
	}
	g.s.running.Add(1)
	g.pump(r)
}

// takeOver makes r the reader of g, whose first n bytes, from at on, are in first.
func (g *segment) takeOver(r *reader, first *block, at int64, n int, err error) bool {
	s := g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.rescuer != r {
		return false // over
	}
	g.rescuer = nil
	if err != nil || g.done || g.cut || s.err != nil {
		return false
	}
	g.from.cancel()
	g.from, g.open, g.whole, g.proven = r, false, false, true
	g.end = min(g.end, r.end)
	if len(g.blocks) > 0 {
		g.blocks[len(g.blocks)-1].lent = true
	}
	if fresh := int64(n) - (g.pos - at); fresh > 0 {
		copy(first.bytes, first.bytes[int64(n)-fresh:n])
		first.used = int(fresh)
		g.blocks = append(g.blocks, first)
		g.add(int(fresh))
	}
	return true
}

// quitRescue ends the reader that asks for the rest of g, which is not needed any more.
// The caller holds mu.
func (g *segment) quitRescue() {
	if g.rescuer != nil {
		g.rescuer.cancel()
		g.rescuer = nil
	}
}

// median is the middle one of rates, 0 of none.
func median(rates []float64) float64 {
	if len(rates) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(rates))
	return sorted[len(sorted)/2]
}
