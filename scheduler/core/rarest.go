package core

// rarestPolicy is the default: the piece with fewest copies, from the nearest and
// idlest holder. DESIGN.md has the figures.
type rarestPolicy struct{}

// piece picks, ties at random because ties by index would make everybody fetch the
// same:
//   - where some nodes are whole, or nobody else wants the blob, the rarest in a
//     window behind the first piece that m misses: the client gets its prefix sooner,
//     and that costs nothing any more;
//   - else, where a seed sends nothing, what only seeds have: they are the way in;
//   - else what most have, since the slots of its many holders are of use only to
//     the few who lack it;
//   - else the rarest of all, so that what has just come spreads.
func (rarestPolicy) piece(s *State, m *member, cand bitset) int {
	b := m.b
	if len(b.wanters) == 1 {
		return cand.next(0)
	}
	if b.nodes.full >= s.cfg.RareCopies {
		from := cand.next(0)
		return s.rarest(b, cand, from, min(from+s.cfg.Window, b.n))
	}
	if m.fedBySeed() {
		cand = s.fromNodes(b, cand)
	}
	if p := s.unseen(b, cand); p >= 0 && m.n.downRate > s.usualRate/2 {
		return p
	}
	if p := s.common(b, cand); p >= 0 {
		return p
	}
	return s.rarest(b, cand, 0, b.n)
}

// unseen picks one of the candidates that no node has or is about to get; -1 when
// there is none.
func (s *State) unseen(b *swarm, cand bitset) int {
	if !b.scarce || !b.idleSeed() {
		return -1
	}
	for w, x := range cand {
		s.set[w] = x &^ b.nodes.taken(w)
	}
	return s.pick(s.set[:len(cand)])
}

// idleSeed tells whether a seed, or who reads the origin, sends nothing now.
func (b *swarm) idleSeed() bool {
	for _, m := range b.seeds.spares {
		if len(m.n.up) == m.n.upFree {
			return true
		}
	}
	return false
}

// common picks one of the candidates that most of those who want the blob have, or
// are about to get; -1 when there is none.
func (s *State) common(b *swarm, cand bitset) int {
	if len(b.wanters) < commonCrowd {
		return -1
	}
	most := len(b.wanters) * commonPercent / 100
	var any uint64
	for w, x := range cand {
		if x != 0 {
			x &= b.nodes.copies.atLeast(w, most)
		}
		s.set[w] = x
		any |= x
	}
	if any == 0 {
		return -1
	}
	return s.pick(s.set[:len(cand)])
}

// fedBySeed tells whether a seed sends m something now. Who is behind is served first,
// and would else get all of its leases from the seed, which has the rarest and whose
// line is the one most shared: it stayed behind.
func (m *member) fedBySeed() bool {
	for _, l := range m.n.down {
		if l.m == m && l.holder != nil && (l.holder.seed || m.b.reader != nil && l.holder == m.b.reader.n) {
			return true
		}
	}
	return false
}

// fromNodes is those of the candidates that nodes can serve now; all where none can.
func (s *State) fromNodes(b *swarm, cand bitset) bitset {
	out := s.alt[:len(cand)]
	var any uint64
	for w := range cand {
		out[w] = cand[w] & b.nodes.available(w)
		any |= out[w]
	}
	if any == 0 {
		return cand
	}
	return out
}

// commonPercent of a crowd of commonCrowd at least is most of it.
const (
	commonPercent = 60
	commonCrowd   = 12
)

// rarest picks the candidate in [from, end) with fewest copies.
func (s *State) rarest(b *swarm, cand bitset, from, end int) int {
	set := s.set[:len(cand)]
	copy(set, cand)
	b.nodes.copies.fewest(set, from, end)
	return s.pick(set)
}

// holder picks who serves piece p to m among those in the nearest place that can,
// then seeds, then laggards: it compares a bounded number, from a random place on.
func (rarestPolicy) holder(s *State, m *member, p int) *member {
	st := m.site
	for i := len(st.levels) - 1; i >= 0; i-- {
		if h := s.sample(m, st.levels[i], p); h != nil {
			return h
		}
	}
	if h := s.sample(m, m.b.seeds, p); h != nil {
		return h
	}
	return s.sample(m, m.b.laggards, p)
}

// fewSpares are looked at one by one, more by masks.
const fewSpares = 32

// sample picks the best of some of the holders of piece p in a place: the one with
// most free slots, then the most complete, which leaves the others to those whom only
// they can serve. It is nil when there is none that m does not avoid.
func (s *State) sample(m *member, t *tally, p int) *member {
	spares := t.spares
	if !t.has(p) {
		return nil
	}
	if len(spares) > fewSpares {
		return s.sampleSeats(m, t, p)
	}
	var best *member
	var bestRank rank
	found, start := 0, 0
	if len(spares) > 1 {
		start = s.rng.IntN(len(spares))
	}
	for i := range spares {
		at := start + i
		if at >= len(spares) {
			at -= len(spares)
		}
		h := spares[at]
		if !h.has(p) || h == m || len(m.rx.avoids) > 0 && s.avoids(m.rx.avoids, h.n) {
			continue
		}
		if r := s.rank(&m.b.seats.seats[h.seat]); best == nil || r.before(bestRank) {
			best, bestRank = h, r
		}
		if found++; found >= s.cfg.HolderSample {
			break
		}
	}
	return best
}

// rank orders holders; lower is better, fields before others.
type rank struct{ load, held int32 }

func (r rank) before(o rank) bool {
	if r.load != o.load {
		return r.load < o.load
	}
	return r.held > o.held
}

func (s *State) rank(h *seat) rank { return rank{load: s.loads[h.node], held: h.held} }
