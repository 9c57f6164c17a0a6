package core

// tally counts, piece by piece, what the members of a swarm in one place hold
// and could serve. A swarm has one for its nodes, one for each region, zone and
// rack that they name, and one for its seeds and who reads the origin.
//
// Members that hold every piece are counted in full and fullSpare, all others
// piece by piece; so copies of piece p are copies[p]+full.
type tally struct {
	copies, spare   counts // held or in flight; held with a free upload slot
	known, avail    bitset // where these are above zero
	full, fullSpare int
	spares          []*member // counted holders with a free upload slot
	seats           bitset    // theirs
	sites           []*site   // whose receivers look here
}

func newTally(n int) *tally {
	return &tally{copies: newCounts(n), spare: newCounts(n), known: newBitset(n), avail: newBitset(n)}
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

// addCopies counts one more holder of the pieces x of word w, or one more lease for
// them.
func (m *member) addCopies(w int, x uint64) {
	for _, t := range m.tallies {
		t.copies.add(w, x)
		t.known[w] |= x
	}
}

// dropCopies takes one away. A place that has no copy left may fetch the piece from
// farther away again.
func (s *State) dropCopies(m *member, w int, x uint64) {
	for _, t := range m.tallies {
		t.copies.sub(w, x)
		left := t.copies.some(w)
		if lost := t.known[w] &^ left; lost != 0 && t.full == 0 {
			s.news(m.b, t, w, lost)
		}
		t.known[w] = left
	}
}

// gainSpare counts one more member that could serve the pieces x of word w now.
func (s *State) gainSpare(m *member, w int, x uint64) {
	for _, t := range m.tallies {
		t.spare.add(w, x)
		if gained := x &^ t.avail[w]; gained != 0 {
			t.avail[w] |= x
			if t.fullSpare == 0 {
				s.news(m.b, t, w, gained)
			}
		}
	}
}

func (m *member) loseSpare(w int, x uint64) {
	for _, t := range m.tallies {
		t.spare.sub(w, x)
		t.avail[w] = t.spare.some(w)
	}
}

// gainFullSpare counts one more member that could serve every piece.
func (s *State) gainFullSpare(m *member) {
	for _, t := range m.tallies {
		if t.fullSpare++; t.fullSpare > 1 {
			continue
		}
		for w := range t.avail {
			s.news(m.b, t, w, ones(w, m.b.n)&^t.avail[w])
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
		for w := range t.known {
			s.news(m.b, t, w, ones(w, m.b.n)&^t.known[w])
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
		t.seats.put(m.seat)
	}
	if m.full {
		s.gainFullSpare(m)
		return
	}
	for w, x := range m.have {
		if x != 0 {
			s.gainSpare(m, w, x)
		}
	}
}

func (s *State) withdraw(m *member) {
	if !m.offered {
		return
	}
	m.offered = false
	for i, t := range m.tallies {
		t.seats.cut(m.seat)
		t.spares = cutAt(t.spares, m.atSpare[i], func(o *member, at int32) { o.atSpare[i] = at })
		if m.full {
			t.fullSpare--
		}
	}
	if m.full {
		return
	}
	for w, x := range m.have {
		if x != 0 {
			m.loseSpare(w, x)
		}
	}
}

// count adds what the member holds to the tallies, if it counts.
func (s *State) count(m *member) {
	b := m.b
	if m.counted || b.active == nil || m.n.barred || m.held == 0 || m.hushed > 0 {
		return
	}
	m.counted = true
	m.atServing = int32(len(m.n.serving))
	m.n.serving = append(m.n.serving, m)
	if m.full {
		m.addFull()
	} else {
		for w, x := range m.have {
			if x != 0 {
				b.hold.add(w, x)
				b.held[w] |= x
				m.addCopies(w, x)
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
			if x != 0 {
				s.release(m, w, x)
			}
		}
	}
	// Somebody may now need the origin for what this member held.
	s.touch(m.b)
}

// release takes the pieces x of word w out of the counts of what m holds.
func (s *State) release(m *member, w int, x uint64) {
	b := m.b
	s.dropCopies(m, w, x)
	b.hold.sub(w, x)
	b.held[w] = b.hold.some(w)
}
