package origin

import (
	"io"
	"sync"
	"time"
)

// blockSize is the grain of the memory that segments wait in.
const blockSize = 128 << 10

// block is memory of a segment. A reader may write beyond used while others read what
// lies before.
type block struct {
	bytes []byte
	used  int
	lent  bool // to a reader that was given up and may still write to it
}

// segment is a part of the content that one stream brings. Its fields are guarded by the
// mu of s. It covers [start, end); [start, pos) has come.
type segment struct {
	s    *streams
	from *reader // nil: not yet made
	room *sync.Cond

	// open: the stream may go on past end, since its request did. whole: its reader has
	// all tries of a single one, so that its error is the read's.
	open, whole bool
	proven      bool // the origin has begun to send what it was asked for
	done        bool // no more comes
	handed      bool // the reader is left for Read to read directly
	hand        bool // do so
	cut         bool // bring no more
	rescued     int
	rescuer     *reader // asks for the rest, because from is too slow
	err         error   // why no more comes; io.EOF: all is here

	start, pos, end int64
	blocks          []*block
	skip            int   // bytes of the first block that were delivered
	most            int   // bytes that may wait here, where it is open
	waiting         int   // that do
	held            int64 // bytes of the budget
	place           bool  // it holds a stream's place of the budget

	began   time.Time // when it was asked for, then when the first byte came
	mark    time.Time // rate is measured since
	marked  int64     // pos at mark
	rate    float64   // bytes a second lately; 0: not known
	quietly time.Time // since when it has been too slow
}

// pump brings what from reads, until g is complete or another reader took its place.
func (g *segment) pump(from *reader) {
	defer g.s.running.Done()
	if g.ask(from) {
		for g.step(from) {
		}
	}
	g.s.mu.Lock()
	kept := g.handed && g.from == from
	g.s.mu.Unlock()
	if !kept {
		_ = from.Close()
	}
}

// ask waits until the origin has answered.
func (g *segment) ask(from *reader) bool {
	err := from.begin()
	s := g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case g.from != from || g.cut:
		return false
	case err != nil:
		g.stop(err)
		return false
	case !g.proven:
		g.proven = true
		g.began, g.mark, g.marked = time.Now(), time.Now(), g.pos
	}
	return true
}

// step brings some bytes. It tells whether there may be more.
func (g *segment) step(from *reader) bool {
	b, to := g.space(from)
	if to == nil {
		return false
	}
	n, err := from.Read(to)
	s := g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.from != from || g.cut {
		return false
	}
	if b != nil {
		b.used += n
		g.add(n)
	}
	if err != nil {
		g.stop(err)
		return false
	}
	return true
}

// add notes that n bytes more have come. The caller holds mu.
func (g *segment) add(n int) {
	s := g.s
	g.pos += int64(n)
	g.waiting += n
	s.ctl.received += int64(n)
	if g.start <= s.pos {
		s.data.Signal()
	}
}

// space is where the next bytes may be put; nil when no more are wanted. At the end of
// the content there is no block: its reader looks whether there is more.
func (g *segment) space(from *reader) (*block, []byte) {
	s := g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.err != nil || s.ctx.Err() != nil || g.from != from || g.cut:
			return nil, nil
		case g.pos == g.end && g.open && g.extend():
			continue
		case g.pos == g.end && g.end == s.end && g.err == nil:
			return nil, make([]byte, 1)
		case g.pos == g.end:
			g.stop(io.EOF)
			return nil, nil
		case g.hand:
			g.handed = true
			s.data.Signal()
			return nil, nil
		case g.open && g.waiting >= g.most:
			g.room.Wait()
			continue
		}
		last := len(g.blocks) - 1
		if last < 0 || g.blocks[last].used == blockSize || g.blocks[last].lent {
			g.blocks = append(g.blocks, s.budget.block())
			last++
		}
		b := g.blocks[last]
		return b, b.bytes[b.used:min(blockSize, int64(b.used)+g.end-g.pos)]
	}
}

// extend takes over what lies behind an open segment up to a stream that the origin has
// answered: one that it has not must not cost the stream that runs. The caller holds mu.
func (g *segment) extend() bool {
	s := g.s
	for i, other := range s.segs {
		if other != g {
			continue
		}
		for len(s.segs) > i+1 && !s.segs[i+1].proven {
			s.drop(s.segs[i+1])
		}
		next := s.nextStart(i + 1)
		if next == g.end {
			return false
		}
		g.end = next
		return true
	}
	return false
}

// stop ends g because of err, which is io.EOF when all is here. The caller holds mu.
func (g *segment) stop(err error) {
	s := g.s
	if g.done || g.cut {
		return
	}
	g.done, g.err = true, err
	g.quitRescue()
	if g.place {
		g.place = false
		s.budget.leave(0)
	}
	if err != io.EOF && !g.whole && g.pos < s.end {
		s.failed(g, err)
	} else if err == io.EOF && g.pos-g.start >= leastChunk/2 {
		s.ctl.finished(float64(g.pos-g.start) / max(time.Since(g.began), time.Millisecond).Seconds())
	}
	s.data.Signal()
	s.ctl.hurry()
}

// failed leaves what a helper did not bring to others. The caller holds mu.
func (s *streams) failed(g *segment, err error) {
	s.ctl.blame(s, err)
	g.end, g.err = g.pos, io.EOF
	if g.pos == g.start {
		s.drop(g)
	}
}

// drop forgets a segment of which nothing is wanted. The caller holds mu.
func (s *streams) drop(g *segment) {
	for i, other := range s.segs {
		if other == g {
			s.segs = append(s.segs[:i:i], s.segs[i+1:]...)
			break
		}
	}
	g.cut = true
	g.quitRescue()
	if g.from != nil {
		g.from.cancel()
	}
	g.leave()
	g.room.Broadcast()
}

// leave gives back what g holds of the budget. The caller holds mu.
func (g *segment) leave() {
	if g.place {
		g.s.budget.leave(g.held)
	} else if g.held > 0 {
		g.s.budget.free(g.held)
	}
	g.place, g.held = false, 0
	g.s.ctl.hurry()
}

// take delivers bytes that have come to p. The caller holds mu.
func (g *segment) take(p []byte) int {
	n := 0
	for len(p) > n && len(g.blocks) > 0 {
		b := g.blocks[0]
		m := copy(p[n:], b.bytes[g.skip:b.used])
		n += m
		g.skip += m
		if g.skip < b.used {
			break
		}
		if len(g.blocks) == 1 && !g.done && b.used < blockSize && !b.lent {
			break // more may come into it
		}
		g.blocks[0] = nil
		g.blocks = g.blocks[1:]
		g.skip = 0
		if !b.lent {
			g.s.budget.recycle(b)
		}
		if part := min(g.held, blockSize); part > 0 && !g.open {
			g.held -= part
			g.s.budget.free(part)
			g.s.ctl.hurry()
		}
	}
	g.waiting -= n
	g.s.pos += int64(n)
	if g.open && n > 0 {
		g.room.Signal()
	}
	return n
}
