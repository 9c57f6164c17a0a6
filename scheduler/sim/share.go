package sim

import "math"

// place is where bytes pass: a link one way, or a line between racks. What passes
// shares it as TCP flows do in the long run: max-min fairly. Nobody gets less than
// an equal share but who is held up elsewhere, and others have what that one leaves.
type place struct {
	rate      float64 // bytes per second
	flows     []*lease
	level     float64 // the most that a flow gets here
	unsettled bool
}

// unlimited is the level of a place that holds nobody up.
const unlimited = math.MaxFloat64

func (p *place) add(l *lease, i int) {
	if len(p.flows) == 0 {
		p.level = unlimited
	}
	l.at[i] = int32(len(p.flows))
	p.flows = append(p.flows, l)
}

func (p *place) remove(l *lease, i int) {
	last := len(p.flows) - 1
	moved := p.flows[last]
	p.flows[l.at[i]] = moved
	for k, o := range moved.places {
		if o == p {
			moved.at[k] = l.at[i]
		}
	}
	p.flows[last] = nil
	p.flows = p.flows[:last]
}

// fill is the level at which the flows use all of the place; those that are held up
// elsewhere at less do not need it.
func (p *place) fill() float64 {
	level := 0.0
	left, free := p.rate, len(p.flows)
	for free > 0 {
		next := left / float64(free)
		if next <= level*(1+1e-12) {
			return level
		}
		level, left, free = next, p.rate, 0
		for _, l := range p.flows {
			if elsewhere := l.least(p, nil); elsewhere < level {
				left -= elsewhere
			} else {
				free++
			}
		}
	}
	return unlimited
}

// least is the least level of the flow's places but two, which may be nil.
func (f *flow) least(a, b *place) float64 {
	level := unlimited
	for _, p := range &f.places {
		if p != nil && p != a && p != b {
			level = min(level, p.level)
		}
	}
	return level
}

// mostSteps bounds how far a change is followed. Levels settle after two or three
// steps a place; what remains after so many is below what anybody could measure.
const mostSteps = 10_000

// reshare gives everybody the rate that is theirs after a change at the lease's
// places: it follows the change from place to place until all levels fit.
func (w *world) reshare(l *lease) {
	for _, p := range &l.places {
		w.unsettle(p)
	}
	for i := 0; i < len(w.unsettled); i++ {
		p := w.unsettled[i]
		p.unsettled = false
		if i < mostSteps {
			w.settle(p)
		}
	}
	w.unsettled = w.unsettled[:0]
	for _, o := range w.touched {
		o.touched = false
		if o.heap >= 0 {
			w.pace(o)
		}
	}
	w.touched = w.touched[:0]
}

func (w *world) unsettle(p *place) {
	if p != nil && !p.unsettled {
		p.unsettled = true
		w.unsettled = append(w.unsettled, p)
	}
}

// settle sets a place's level, and has those looked at where it matters.
func (w *world) settle(p *place) {
	before, level := p.level, p.fill()
	if math.Abs(level-before) > 1e-9*p.rate {
		p.level = level
	}
	for _, l := range p.flows {
		if !l.touched {
			l.touched = true
			w.touched = append(w.touched, l)
		}
		if p.level == before {
			continue
		}
		for _, q := range &l.places {
			if q == nil || q == p {
				continue
			}
			others := min(l.least(p, q), q.level)
			if min(before, others) != min(p.level, others) {
				w.unsettle(q)
			}
		}
	}
}
