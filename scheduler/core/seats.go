package core

import "math/bits"

// seats number the members of an active swarm and keep, the other way round, what
// members keep for themselves: of a piece, who has it. So those few among many
// thousands who have a rare piece, or who still miss a common one, are found by masks
// of 64 members a word, and compared without a look at them.
type seats struct {
	seats   []seat
	free    []int32
	holders []bitset // of each piece, the seats that hold it; those that hold all may be missing
	pending []bitset // of each piece, the seats that a running lease will bring it to
	wholes  bitset   // the seats that hold every piece
}

// seat is what is compared of a member.
type seat struct {
	*member        // nil where free
	node    int32  // its node's handle
	held    int32  // pieces
	rank    uint64 // while it waits in a queue, its place there: lower is served sooner
}

// sit gives m a seat.
func (b *swarm) sit(m *member) {
	if k := len(b.free); k > 0 {
		m.seat = b.free[k-1]
		b.free = b.free[:k-1]
	} else {
		m.seat = int32(len(b.seats.seats))
		b.seats.seats = append(b.seats.seats, seat{})
	}
	b.seats.seats[m.seat] = seat{member: m, node: m.n.handle}
	b.reseat(m)
}

// rise takes m's seat away; it neither holds nor waits for anything any more.
func (b *swarm) rise(m *member) {
	b.seats.seats[m.seat] = seat{}
	b.free = append(b.free, m.seat)
}

// reseat notes anew what m holds.
func (b *swarm) reseat(m *member) {
	b.seats.seats[m.seat].held = int32(m.held)
	if m.full {
		b.wholes.put(m.seat)
		return
	}
	b.wholes.cut(m.seat)
	for p := range b.n {
		if m.have != nil && m.have.has(p) {
			b.holders[p].put(m.seat)
		} else {
			b.holders[p].cut(m.seat)
		}
	}
}

// put and cut are set and clear for a set that grows with what is put into it.
func (b *bitset) put(i int32) {
	for len(*b) <= int(i>>6) {
		*b = append(*b, 0)
	}
	(*b)[i>>6] |= 1 << (i & 63)
}

func (b bitset) cut(i int32) {
	if int(i>>6) < len(b) {
		b[i>>6] &^= 1 << (i & 63)
	}
}

// word is word w, of a set that may be shorter.
func (b bitset) word(w int) uint64 {
	if w < len(b) {
		return b[w]
	}
	return 0
}

// lacking finds who of those that wait in st, from one on, is served first and misses
// one of the site's fresh pieces; nil when there is nobody.
func (st *site) lacking(from *member) *member {
	b := st.b
	all := b.seats.seats
	best, least := ^uint64(0), all[from.seat].rank
	var first *member
	for w, x := range st.fresh {
		if x != 0 {
			x &= b.needed[w] & st.reach(w)
		}
		for ; x != 0; x &= x - 1 {
			p := w<<6 + bits.TrailingZeros64(x)
			holders, pending := b.holders[p], b.pending[p]
			for i, y := range st.queue.waiting {
				if y != 0 {
					y &^= holders.word(i) | pending.word(i)
				}
				for ; y != 0; y &= y - 1 {
					if c := &all[i<<6+bits.TrailingZeros64(y)]; c.rank >= least && c.rank < best && c.rx.wants(p) {
						first, best = c.member, c.rank
					}
				}
			}
		}
	}
	return first
}

// sampleSeats is sample among all of a place that have a free upload slot and hold
// piece p, from a random seat on.
func (s *State) sampleSeats(m *member, t *tally, p int) *member {
	b := m.b
	all, holders, last := b.seats.seats, b.holders[p], len(t.seats)
	from := s.rng.IntN(last << 6)
	var best *seat
	var bestRank rank
	found := 0
	for i := 0; i <= last; i++ {
		w, edge := from>>6+i, ^uint64(0)
		switch {
		case i == 0:
			edge <<= from & 63
		case i == last:
			edge = 1<<(from&63) - 1
		}
		if w >= last {
			w -= last
		}
		x := t.seats[w] & edge
		if x != 0 {
			x &= holders.word(w) | b.wholes.word(w)
		}
		for ; x != 0; x &= x - 1 {
			h := &all[w<<6+bits.TrailingZeros64(x)]
			if len(m.rx.avoids) > 0 && s.avoids(m.rx.avoids, h.n) {
				continue
			}
			if r := s.rank(h); best == nil || r.before(bestRank) {
				best, bestRank = h, r
			}
			if found++; found >= s.cfg.HolderSample {
				return best.member
			}
		}
	}
	if best == nil {
		return nil
	}
	return best.member
}
