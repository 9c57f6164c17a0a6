package core

// pace keeps decisions from running away: while leases come faster than the limit,
// runs are made longer.
type pace struct {
	most    int // leases in a window
	started Time
	leases  int
	factor  int // how many times longer, a power of two
}

// paceWindow is how long leases are counted until the factor is thought over.
const paceWindow = 50 * Millisecond

// maxStretch bounds how many times longer runs get.
const maxStretch = 64

// count notes a lease.
func (p *pace) count(now Time) {
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
}

// wholeGroups leaves of the candidates those in aligned groups of so many pieces, a
// power of two up to 64, of which m could get now all that it misses: a piece handed
// on alone would be leased alone from then on, and runs would stay short however
// long they may be. It tells whether any is left. Who has nothing to do takes less
// after a while, because the rest of a group may never come.
func (s *State) wholeGroups(m *member, cand bitset, length int) bool {
	if m.rx.leases == 0 && m.rx.thirst > 0 && s.now >= m.rx.thirst {
		return true
	}
	length = min(length, 64)
	var any uint64
	for w := range cand {
		torn := m.missingWord(w) &^ cand[w]
		for i, by := 0, 1; by < length; i, by = i+1, 2*by {
			torn |= torn>>by&lowHalf(i) | torn&lowHalf(i)<<by
		}
		cand[w] &^= torn
		any |= cand[w]
	}
	if any == 0 && m.rx.leases == 0 {
		s.thirst(m, s.cfg.NearTime)
	}
	return any != 0
}

// lowHalf masks the lower halves of aligned groups of 2, 4, … 64 bits.
func lowHalf(i int) uint64 { return ^uint64(0) / (1<<(1<<i) + 1) }
