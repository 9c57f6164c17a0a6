package core

import "github.com/damselfly-p2p/damselfly/pkg/blob"

// What members hold, and how it changes.

// have records pieces and links that a node says it has.
func (s *State) have(e *Have) {
	n := s.byID[e.Node]
	if n == nil {
		return
	}
	known := s.memberOf(n, e.Digest)
	m := s.enter(n, e.Digest, e.Size)
	if m == nil {
		return
	}
	b := m.b
	s.loosen(m)
	if m != known {
		m.publishes = b.active != nil && !s.doubtful(b)
	}
	if m.revoked && !e.Sealed {
		return // said before the node heard that these pieces are void
	}
	m.revoked = false
	before := m.held
	if n.reading > 0 {
		s.heard(m)
	}
	if b.active != nil && before == 0 && !e.Sealed && len(e.Runs) > 0 && (m.rx == nil || m.rx.leases == 0) {
		s.adopt(b)
	}
	news := b.active != nil && s.addLinks(m, e.FirstLink, e.Links)
	if e.Sealed {
		m.sealed = true
		s.gainAll(m)
	} else {
		for p := range pieces(e.Runs, b.n) {
			s.gain(m, p)
		}
	}
	if b.active == nil {
		return
	}
	if m.held > before {
		s.progress(m)
		s.credit(m, e)
	}
	if b.asked == m {
		s.answered(b, news)
	}
	s.cancelBeaten(m)
	s.after(m)
}

// after looks at a member that has gained pieces: its want may be fulfilled,
// its place in the queue another.
func (s *State) after(m *member) {
	s.touch(m.b)
	if m.wanting() && m.rx.missing == 0 {
		s.fulfil(m)
	} else if m.rx != nil {
		s.enqueue(m, false)
	}
}

// gain records that m can serve piece p.
func (s *State) gain(m *member, p int) {
	if m.has(p) {
		return
	}
	b := m.b
	if m.have == nil {
		m.have = newBitset(b.n)
	}
	s.unpend(m, p)
	m.have.set(p)
	m.held++
	if b.active != nil {
		b.seats.seats[m.seat].held++
		b.holders[p].put(m.seat)
		if b.reader == m {
			b.reading.clear(p)
			b.came = s.now
			for _, l := range b.origins {
				l.pieces++
			}
		}
		if m.counted {
			b.hold.add(p>>6, bit(p))
			b.held.set(p)
			m.addCopies(p>>6, bit(p))
			if m.offered {
				s.gainSpare(m, p>>6, bit(p))
			}
		} else {
			s.count(m)
		}
	}
	if m.held == b.n {
		s.fill(m)
	}
}

// unpend books that piece p, which m may want or a lease may bring, is got.
func (s *State) unpend(m *member, p int) {
	rx := m.rx
	if rx == nil {
		return
	}
	pending := rx.pend.has(p)
	if pending {
		rx.pend.clear(p)
		m.b.pending[p].cut(m.seat)
		s.dropCopies(m, p>>6, bit(p))
	}
	if !rx.wants(p) {
		return
	}
	rx.missing--
	if !pending {
		rx.lack--
		m.b.needLess(p>>6, bit(p))
	}
}

// gainAll records that m can serve every piece.
func (s *State) gainAll(m *member) {
	if m.full {
		return
	}
	if m.rx == nil && !m.counted {
		// Most blobs that a node tells of are whole, and nobody wants them now.
		m.full, m.have, m.held = true, nil, m.b.n
		if m.b.active != nil {
			m.b.reseat(m)
		}
		s.count(m)
		return
	}
	for p := range m.b.n {
		s.gain(m, p)
	}
}

// fill turns m's bitmap with every piece into the mark that it is full.
func (s *State) fill(m *member) {
	if m.counted {
		m.addFull()
		if m.offered {
			s.gainFullSpare(m)
		}
		for w := range m.have {
			s.release(m, w, m.have[w])
			if m.offered {
				m.loseSpare(w, m.have[w])
			}
		}
	}
	m.full, m.have = true, nil
	if m.b.active != nil {
		m.b.reseat(m)
	}
}

// lose records that m cannot serve the pieces of r after all.
func (s *State) lose(m *member, r blob.Run) {
	if m.held == 0 {
		return
	}
	s.uncount(m)
	wanting := m.wanting()
	if wanting {
		s.unwish(m)
	}
	if m.full {
		m.have = newBitset(m.b.n)
		m.have.fill(m.b.n)
		m.full, m.sealed = false, false
	}
	for p := r.First; p < r.End(); p++ {
		if m.have.has(p) {
			m.have.clear(p)
			m.held--
		}
	}
	if m.held == 0 {
		m.have = nil
	}
	if m.b.active != nil {
		m.b.reseat(m)
	}
	if wanting {
		s.wish(m)
	}
	s.count(m)
	s.loosen(m)
}

// empty records that m holds nothing any more.
func (s *State) empty(m *member) {
	wanting := m.wanting()
	s.uncount(m)
	if wanting {
		s.unwish(m)
	}
	m.have, m.held, m.full, m.sealed = nil, 0, false, false
	if m.b.active != nil {
		m.b.reseat(m)
	}
	if wanting {
		s.wish(m)
	}
	s.loosen(m)
}

func (s *State) drop(e *Drop) {
	if n := s.byID[e.Node]; n != nil {
		if m := s.memberOf(n, e.Digest); m != nil {
			m.revoked = false
			s.empty(m)
		}
	}
}
