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

// count notes a lease. It tells whether runs were short until now and are not any
// more, or the other way round.
func (p *pace) count(now Time) (turned bool) {
	if now >= p.started+paceWindow {
		was := p.factor
		switch {
		case now >= p.started+2*paceWindow:
			p.factor = 1 // hardly any came
		case p.leases > p.most:
			p.factor = min(2*p.factor, maxStretch)
		case p.leases < p.most/4:
			p.factor = max(p.factor/2, 1)
		}
		p.started, p.leases = now, 0
		turned = (was == 1) != (p.factor == 1)
	}
	p.leases++
	return turned
}

// turn looks at all who wait when runs begin or cease to be long. While they are, what
// comes within reach is no news where its group is torn: so who has nothing to do is
// looked at after a while, and everybody when it is over.
func (s *State) turn() {
	for _, b := range s.swarms {
		if b == nil || b.active == nil {
			continue
		}
		for _, st := range b.seeds.sites { // all of them, in order
			for m := st.queue.first(); m != nil; m = st.queue.after(m) {
				switch {
				case s.pace.factor == 1:
					s.again(m)
				case m.rx.leases == 0:
					s.thirst(m, s.cfg.NearTime)
				}
			}
		}
	}
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
	var any uint64
	for w := range cand {
		if cand[w] != 0 {
			cand[w] &^= groups(m.missingWord(w)&^cand[w], length)
			any |= cand[w]
		}
	}
	if any == 0 && m.rx.leases == 0 {
		s.thirst(m, s.cfg.NearTime)
	}
	return any != 0
}

// keepWhole leaves of what came within reach of a site the pieces whose whole group
// is: a receiver that has some of the group already is served by its own doing.
func (st *site) keepWhole(length int) {
	for w, x := range st.fresh {
		if x != 0 {
			st.fresh[w] &^= groups(ones(w, st.b.n)&^st.reach(w), length)
		}
	}
}

// groups is all pieces of a word that are in one aligned group with a piece of x.
func groups(x uint64, length int) uint64 {
	for i, by := 0, 1; by < min(length, 64); i, by = i+1, 2*by {
		x |= x>>by&lowHalf(i) | x&lowHalf(i)<<by
	}
	return x
}

// lowHalf masks the lower halves of aligned groups of 2, 4, … 64 bits.
func lowHalf(i int) uint64 { return ^uint64(0) / (1<<(1<<i) + 1) }
