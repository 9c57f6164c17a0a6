package core

import "math/bits"

// tally counts, piece by piece, what the members of a swarm in one place hold
// and could serve. A swarm has one for its nodes, one for each region, zone and
// rack that they name, and one for its seeds.
//
// Members that hold every piece are counted in full and fullSpare, all others
// piece by piece; so copies of piece p are copies[p]+full.
type tally struct {
	copies, spare   []int32 // held or in flight; held with a free upload slot
	known, avail    bitset  // where these are above zero
	full, fullSpare int
	spares          []*member // counted holders with a free upload slot
	sites           []*site   // whose receivers look here
}

func newTally(n int) *tally {
	counts := make([]int32, 2*n)
	sets := make(bitset, 2*words(n))
	return &tally{
		copies: counts[:n:n], spare: counts[n:],
		known: sets[:words(n):words(n)], avail: sets[words(n):],
	}
}

// available is word w of the pieces that somebody in the place with a free upload
// slot holds.
func (t *tally) available(w int) uint64 {
	if t.fullSpare > 0 {
		return ^uint64(0)
	}
	return t.avail[w]
}

// taken is word w of the pieces that the place has or is about to get.
func (t *tally) taken(w int) uint64 {
	if t.full > 0 {
		return ^uint64(0)
	}
	return t.known[w]
}

func (t *tally) has(p int) bool { return t.fullSpare > 0 || t.avail.has(p) }

// addCopy counts one more holder of piece p, or one more lease for it.
func (m *member) addCopy(p int) {
	for _, t := range m.tallies {
		if t.copies[p]++; t.copies[p] == 1 {
			t.known.set(p)
		}
	}
}

// dropCopy takes one away. A place that has no copy left may fetch the piece from
// farther away again.
func (s *State) dropCopy(m *member, p int) {
	for _, t := range m.tallies {
		if t.copies[p]--; t.copies[p] > 0 {
			continue
		}
		t.known.clear(p)
		if t.full == 0 {
			s.news(m.b, t, p)
		}
	}
}

// gainSpare counts one more member that could serve piece p now.
func (s *State) gainSpare(m *member, p int) {
	for _, t := range m.tallies {
		if t.spare[p]++; t.spare[p] > 1 {
			continue
		}
		t.avail.set(p)
		if t.fullSpare == 0 {
			s.news(m.b, t, p)
		}
	}
}

func (m *member) loseSpare(p int) {
	for _, t := range m.tallies {
		if t.spare[p]--; t.spare[p] == 0 {
			t.avail.clear(p)
		}
	}
}

// gainFullSpare counts one more member that could serve every piece.
func (s *State) gainFullSpare(m *member) {
	for _, t := range m.tallies {
		if t.fullSpare++; t.fullSpare > 1 {
			continue
		}
		for _, at := range t.sites {
			for w := range at.fresh {
				at.fresh[w] |= ones(w, m.b.n) &^ t.avail[w]
			}
			s.stir(at)
		}
	}
}

// addFull and dropFull count members that hold every piece.
func (m *member) addFull() {
	for _, t := range m.tallies {
		t.full++
	}
}

func (s *State) dropFull(m *member) {
	for _, t := range m.tallies {
		if t.full--; t.full > 0 {
			continue
		}
		for _, at := range t.sites {
			for w := range at.fresh {
				at.fresh[w] |= ones(w, m.b.n) &^ t.known[w]
			}
			s.stir(at)
		}
	}
}

// offer makes the counted member's pieces available: its node has a free
// upload slot.
func (s *State) offer(m *member) {
	if m.offered || !m.counted {
		return
	}
	m.offered = true
	for i, t := range m.tallies {
		m.atSpare[i] = int32(len(t.spares))
		t.spares = append(t.spares, m)
	}
	if m.full {
		s.gainFullSpare(m)
		return
	}
	for w, x := range m.have {
		for ; x != 0; x &= x - 1 {
			s.gainSpare(m, w<<6+bits.TrailingZeros64(x))
		}
	}
}

func (s *State) withdraw(m *member) {
	if !m.offered {
		return
	}
	m.offered = false
	for i, t := range m.tallies {
		t.spares = cutAt(t.spares, m.atSpare[i], func(o *member, at int32) { o.atSpare[i] = at })
		if m.full {
			t.fullSpare--
		}
	}
	if m.full {
		return
	}
	for w, x := range m.have {
		for ; x != 0; x &= x - 1 {
			m.loseSpare(w<<6 + bits.TrailingZeros64(x))
		}
	}
}

// count adds what the member holds to the tallies, if it counts.
func (s *State) count(m *member) {
	b := m.b
	if m.counted || b.active == nil || m.n.barred || m.held == 0 {
		return
	}
	m.counted = true
	m.atServing = int32(len(m.n.serving))
	m.n.serving = append(m.n.serving, m)
	if m.full {
		m.addFull()
	} else {
		for w, x := range m.have {
			b.held[w] |= x
			for ; x != 0; x &= x - 1 {
				p := w<<6 + bits.TrailingZeros64(x)
				b.hold[p]++
				m.addCopy(p)
			}
		}
	}
	if m.n.spare {
		s.offer(m)
	}
}

// uncount takes it out again.
func (s *State) uncount(m *member) {
	if !m.counted {
		return
	}
	s.withdraw(m)
	m.counted = false
	m.n.serving = cutAt(m.n.serving, m.atServing, func(o *member, i int32) { o.atServing = i })
	m.atServing = -1
	if m.full {
		s.dropFull(m)
	} else {
		for w, x := range m.have {
			for ; x != 0; x &= x - 1 {
				s.release(m, w<<6+bits.TrailingZeros64(x))
			}
		}
	}
	// Somebody may now need the origin for what this member held.
	s.touch(m.b)
}

// release takes piece p out of the counts of what m holds.
func (s *State) release(m *member, p int) {
	b := m.b
	s.dropCopy(m, p)
	if b.hold[p]--; b.hold[p] == 0 {
		b.held.clear(p)
	}
}
