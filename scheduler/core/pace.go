package core

// pace keeps decisions from running away: while leases come faster than the limit,
// runs are stretched.
type pace struct {
	most    int // leases in a window
	started Time
	leases  int
	factor  int
}

// paceWindow is how long leases are counted until the stretch is thought over.
const paceWindow = 50 * Millisecond

// maxStretch bounds how many times longer runs get.
const maxStretch = 64

// stretch counts a lease and tells how many times longer than usual its run may be.
func (p *pace) stretch(now Time) int {
	if now >= p.started+paceWindow {
		switch {
		case now >= p.started+2*paceWindow:
			p.factor = 1 // hardly any came
		case p.leases > p.most:
			p.factor = min(2*p.factor, maxStretch)
		case p.leases < p.most/4:
			p.factor = max(p.factor/2, 1)
		}
		p.started, p.leases = now, 0
	}
	p.leases++
	return p.factor
}
