package sim

import "github.com/damselfly-p2p/damselfly/scheduler/core"

// maxPlaces is the sender's link, two lines between racks, the receiver's link.
const maxPlaces = 4

// flow is the part of a lease that the links know.
type flow struct {
	places [maxPlaces]*place // nil where there is none
	at     [maxPlaces]int32
	left   float64 // bytes of the piece that have not come, jitter included
	rate   float64 // bytes per second, 0 while it does not run
	since  core.Time
	next   core.Time // when something is to be done
	end    core.Time // of the piece
	heap   int32     // place in flows, -1 when not there

	touched bool // its rate may have changed
}

// open lets a lease's bytes flow.
func (w *world) open(l *lease) {
	l.since = w.now
	for i, p := range l.places {
		if p != nil {
			p.add(l, i)
		}
	}
	w.flows.push(l)
	w.reshare(l)
}

// shut stops them.
func (w *world) shut(l *lease) {
	if l.heap < 0 {
		return
	}
	w.flows.remove(l)
	for i, p := range l.places {
		if p != nil {
			p.remove(l, i)
		}
	}
	l.rate = 0
	w.reshare(l)
}

// pace sets a flow's rate: the least of the levels that it meets.
func (w *world) pace(l *lease) {
	rate := l.least(nil, nil)
	if rate == l.rate {
		return
	}
	l.left -= l.rate * float64(w.now-l.since) / float64(core.Second)
	l.since, l.rate = w.now, rate
	w.aim(l)
}

// aim says when something is to be done for a flow.
func (w *world) aim(l *lease) {
	left := max(l.left, 0)
	l.end = w.now + core.Time(left/l.rate*float64(core.Second)) + 1
	l.next = l.end
	if l.mayEnd && l.piece == l.run.End()-1 {
		l.next = max(l.end-w.roundTrip(), w.now)
	}
	w.flows.fix(l)
}

// flowHeap is the running flows, the next instant first.
type flowHeap []*lease

func (h flowHeap) less(i, j int) bool {
	a, b := h[i], h[j]
	return a.next < b.next || a.next == b.next && a.number < b.number
}

func (h flowHeap) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heap, h[j].heap = int32(i), int32(j)
}

func (h *flowHeap) push(l *lease) {
	l.next = 1<<63 - 1
	l.heap = int32(len(*h))
	*h = append(*h, l)
}

func (h *flowHeap) remove(l *lease) {
	i, last := int(l.heap), len(*h)-1
	h.swap(i, last)
	(*h)[last] = nil
	*h = (*h)[:last]
	l.heap = -1
	if i < last {
		h.fix((*h)[i])
	}
}

func (h flowHeap) fix(l *lease) {
	i := int(l.heap)
	for i > 0 {
		up := (i - 1) / 2
		if !h.less(i, up) {
			break
		}
		h.swap(i, up)
		i = up
	}
	for {
		down := 2*i + 1
		if down >= len(h) {
			return
		}
		if down+1 < len(h) && h.less(down+1, down) {
			down++
		}
		if !h.less(down, i) {
			return
		}
		h.swap(i, down)
		i = down
	}
}
