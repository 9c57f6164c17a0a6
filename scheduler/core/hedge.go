package core

import "github.com/damselfly-p2p/damselfly/pkg/blob"

// Leases that take too long, and those that need no slot.

// ending frees the slots of a lease whose rest is on its way.
func (s *State) ending(e *Ending) {
	l := s.leases.find(e.Lease, s.byID[e.Node])
	if l == nil || l.holder == nil {
		return
	}
	couldRun := l.m.n.canRun()
	s.freeSlots(l, true, true)
	s.respare(l.holder)
	if !couldRun {
		s.freed(l.m.n)
	}
}

// freeSlots lets a lease run without taking a slot at one end or at both. An end
// has as many of those as it has slots at most: a node could say that all its
// leases are ending, and take more than its share of a holder.
func (s *State) freeSlots(l *lease, up, down bool) {
	n, h := l.m.n, l.holder
	if up && !l.freeUp && h.upFree < h.upSlots {
		l.freeUp = true
		h.upFree++
	}
	if down && !l.freeDown && n.downFree < n.downSlots {
		l.freeDown = true
		n.downFree++
	}
}

// freeTrickle looks whether the two ends of a new lease are of different speed: at
// the fast one it takes no slot, because it does not fill one.
func (s *State) freeTrickle(l *lease) {
	n, h := l.m.n, l.holder
	if n.downRate == 0 || h.upRate == 0 {
		return
	}
	s.freeSlots(l, n.downRate < h.upRate/slower, h.upRate < n.downRate/slower)
}

// slower is how many times slower than the other an end must be.
const slower = 4

// hedgeTime is when the pieces of a lease are asked for elsewhere too: after four
// times what its receiver usually needs.
func (s *State) hedgeTime(n *node, bytes int64) Time {
	if n.downRate == 0 {
		return s.cfg.LeaseTime / 2
	}
	return max(s.cfg.HedgeTime, 4*seconds(bytes, n.downRate))
}

// sweep hedges leases that are late, and takes back those that are past their
// deadline.
func (s *State) sweep() {
	s.swept = s.now
	for _, l := range s.leases.slots {
		switch {
		case l.id == 0:
		case l.host != nil:
			s.sweepOrigin(l)
		case s.now >= l.deadline:
			// A holder that nobody has got anything from is the likelier cause, and
			// several that hang must not add up to hours.
			n, could := l.m.n, l.m.n.canRun()
			if h := l.holder; h == nil || h.upRate > 0 {
				n.expiries = min(n.expiries+1, 255-1)
			}
			s.holderFailed(l, Unreachable, true)
			s.rerun(n, could)
		case l.holder != nil && !l.late && s.hangs(l):
			s.hung(l)
		case l.hedge > 0 && s.now >= l.hedge && !l.late && l.holder != nil:
			s.late(l)
		case l.holder != nil && l.m.n.downRate == 0:
			s.suspect(l)
		}
	}
}

// suspect takes a node that is still at its first lease, from a holder near by, long after others would have
// ended it, for as slow as that is: what is on its way to it counts as nowhere, and it
// holds no slot of a fast holder.
func (s *State) suspect(l *lease) {
	n, h := l.m.n, l.holder
	bytes, age := l.m.b.layout.Bytes(l.run), s.now-l.since
	if n.place != h.place || s.usualRate == 0 || h.upRate < s.usualRate/2 || age < suspicious*seconds(bytes, s.usualRate) {
		return
	}
	n.downRate = max(int64(float64(bytes)/float64(age)*float64(Second)), 1)
	s.classify(n)
	s.freeSlots(l, true, false)
	s.respare(h)
}

// suspicious is how many times longer than usual a first lease must take.
const suspicious = 3

// late lets the pieces of a slow lease be leased from somebody else while it runs
// on. What comes first wins; see cancelBeaten.
func (s *State) late(l *lease) {
	m := l.m
	if m.wanting() && m.b.elsewhere(m, l.run) {
		s.overtake(l)
	}
}

// overtake lets the pieces of a lease come from elsewhere while it runs on.
func (s *State) overtake(l *lease) {
	m, n := l.m, l.m.n
	if !m.wanting() {
		return
	}
	couldRun := n.canRun()
	s.freeSlots(l, false, true)
	if !l.freeDown {
		return
	}
	l.late = true
	m.rx.late++
	var a *avoided
	m.rx.avoids, a = s.avoid(m.rx.avoids, l.holder, s.cfg.AvoidTime, 60*Second)
	m.rx.picky = true
	s.wakeMember(m, a.until)
	s.stats.hedged++
	if s.unbook(m, l.run) {
		s.enqueue(m, true)
	}
	s.touch(m.b)
	if !couldRun {
		s.freed(n)
	}
}

// elsewhere tells whether somebody beside the one who sends it now holds a piece of
// the run that m has not got.
func (b *swarm) elsewhere(m *member, run blob.Run) bool {
	for p := run.First; p < run.End(); p++ {
		if !m.has(p) && b.hold.of(p)+b.whole() > 1 {
			return true
		}
	}
	return false
}

// cancelBeaten ends the leases of m that have nothing left to bring because another
// for the same pieces was faster.
func (s *State) cancelBeaten(m *member) {
	if m.rx == nil || m.rx.late == 0 {
		return
	}
	down := m.n.down
	for i := len(down) - 1; i >= 0; i-- {
		if i >= len(m.n.down) {
			continue
		}
		if l := m.n.down[i]; l.m == m && l.host == nil && m.hasAll(l) && (l.late || s.hedges(l)) {
			s.end(l, true)
		}
	}
}

// hedges tells whether l was given because another lease for the same is late.
func (s *State) hedges(l *lease) bool {
	for _, o := range l.m.n.down {
		if o.m == l.m && o.late && o.run.First < l.run.End() && l.run.First < o.run.End() {
			return true
		}
	}
	return false
}

func (m *member) hasAll(l *lease) bool {
	for p := l.run.First; p < l.run.End(); p++ {
		if !m.has(p) {
			return false
		}
	}
	return true
}

// trials is how many leases it takes to call a node a laggard. The first may be slow
// for the sake of a new connection, and to a laggard nobody goes to learn better.
const trials = 4

// classify looks whether n is a laggard, far slower than most: it is not worth a slot
// while somebody else can serve, and what is on its way to it is as good as nowhere.
func (s *State) classify(n *node) {
	if n.seed {
		return
	}
	least := s.usualRate / slower
	if n.lags {
		least *= 2 // no to and fro
	}
	lags := n.downSeen == trials && n.downRate < least || n.upSeen == trials && n.upRate < least
	if lags == n.lags {
		return
	}
	n.lags = lags
	for _, m := range n.members {
		if m.b.active == nil {
			continue
		}
		s.resettle(m)
	}
}

// resettle has m counted where it belongs now.
func (s *State) resettle(m *member) {
	counted := m.counted
	s.uncount(m)
	from := m.tallies
	m.b.settle(m)
	if m.rx != nil {
		s.recount(m, from)
	}
	if counted {
		s.count(m)
	}
}

// recount moves what is on its way to m from the tallies where it was counted.
func (s *State) recount(m *member, from []*tally) {
	to := m.tallies
	for w, x := range m.rx.pend {
		if x == 0 {
			continue
		}
		m.addCopies(w, x)
		m.tallies = from
		s.dropCopies(m, w, x)
		m.tallies = to
	}
}
