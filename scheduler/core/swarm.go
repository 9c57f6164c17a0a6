package core

import (
	"math/bits"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// swarm is one blob of one size, and everybody who holds, wants or reads it.
// Nodes that say different sizes for a digest are in different swarms, so that
// a wrong size harms only who believes it.
type swarm struct {
	handle  int32
	digest  blob.Digest
	layout  blob.Layout
	n       int    // pieces
	sibling *swarm // the next of the same digest
	members []*member

	revokedAt Time

	served  uint64 // when it last got a lease
	dirty   bool   // on State.dirty
	touched bool   // on State.touched
	parked  bool   // on State.parked
	*active        // nil while nobody wants it
}

// active is what a swarm needs only while somebody wants it.
//
// Members that hold every piece are counted in full and fullSpare, all others
// piece by piece; so copies of piece p are copies[p]+full.
type active struct {
	chain  *blob.Chain
	front  int    // pieces before it are proved by links that join to link 0
	proved bitset // pieces whose links are known

	hold, copies, spare []int32 // holders; holders and in flight; holders with a free upload slot
	need                []int32 // members that want the piece, have not got it, and have no lease for it
	held, avail, needed bitset  // where hold, spare, need are above zero
	full, fullSpare     int
	fresh               bitset // available since the event at hand
	picky               int    // receivers that avoid a holder
	stale               bool   // fresh is empty
	reading             bitset // pieces that an origin lease will bring

	spares  []*member // counted holders with a free upload slot
	wanters []*member
	queue   queue
	retry   []*member // to be looked at for every piece, not only the fresh
	cursor  *member

	sourcing
}

// swarmOf finds a swarm, nil when there is none.
func (s *State) swarmOf(d blob.Digest, size int64) *swarm {
	for b := s.byDigest[d]; b != nil; b = b.sibling {
		if b.layout.Size() == size {
			return b
		}
	}
	return nil
}

// enter finds or makes the swarm and the node's membership in it; nil when the
// size is none, or the node is in too many.
func (s *State) enter(n *node, d blob.Digest, size int64) *member {
	b := s.swarmOf(d, size)
	if b == nil {
		l, err := blob.NewLayout(size)
		if err != nil || l.Pieces() == 0 {
			return nil
		}
		b = &swarm{digest: d, layout: l, n: l.Pieces()}
	}
	if m := s.members[pair{n.handle, b.handle}]; m != nil && m.b == b {
		return m
	}
	cost := memberCost(b.n)
	if n.cost+cost > s.cfg.MaxHoldings {
		return nil
	}
	if b.members == nil {
		s.addSwarm(b)
	}
	// Said anew with another size, a digest leaves its old swarm.
	if old := s.memberOf(n, d); old != nil {
		s.discard(old)
	}
	m := &member{n: n, b: b, atNode: int32(len(n.members)), atSwarm: int32(len(b.members)), atServing: -1, atSpare: -1}
	n.cost += cost
	n.members = append(n.members, m)
	b.members = append(b.members, m)
	s.members[pair{n.handle, b.handle}] = m
	return m
}

func memberCost(pieces int) int64 { return 256 + int64(pieces)/8 }

func (s *State) addSwarm(b *swarm) {
	if k := len(s.freeSwarm); k > 0 {
		b.handle = s.freeSwarm[k-1]
		s.freeSwarm = s.freeSwarm[:k-1]
		s.swarms[b.handle] = b
	} else {
		b.handle = int32(len(s.swarms))
		s.swarms = append(s.swarms, b)
	}
	b.sibling = s.byDigest[b.digest]
	s.byDigest[b.digest] = b
}

func (s *State) removeSwarm(b *swarm) {
	s.deactivate(b)
	if first := s.byDigest[b.digest]; first == b {
		if b.sibling == nil {
			delete(s.byDigest, b.digest)
		} else {
			s.byDigest[b.digest] = b.sibling
		}
	} else {
		for first.sibling != b {
			first = first.sibling
		}
		first.sibling = b.sibling
	}
	s.swarms[b.handle] = nil
	s.freeSwarm = append(s.freeSwarm, b.handle)
}

// memberOf finds the node's membership in whichever swarm of the digest it is.
func (s *State) memberOf(n *node, d blob.Digest) *member {
	for b := s.byDigest[d]; b != nil; b = b.sibling {
		if m := s.members[pair{n.handle, b.handle}]; m != nil {
			return m
		}
	}
	return nil
}

// activate makes room for the counts and counts who is there.
func (s *State) activate(b *swarm) {
	if b.active != nil {
		return
	}
	counts := make([]int32, 4*b.n)
	sets := make(bitset, 6*words(b.n))
	cut := func() (c []int32) { c, counts = counts[:b.n:b.n], counts[b.n:]; return c }
	take := func() (t bitset) { t, sets = sets[:words(b.n):words(b.n)], sets[words(b.n):]; return t }
	b.active = &active{
		hold: cut(), copies: cut(), spare: cut(), need: cut(),
		proved: take(), held: take(), avail: take(), needed: take(), fresh: take(), reading: take(),
		stale: true,
	}
	b.queue.init(b.n)
	b.forgetLinks()
	s.pieces += b.n
	if len(s.cand) < words(b.n) {
		s.cand = newBitset(b.n)
	}
	for _, m := range b.members {
		m.publishes, m.asked = false, false
		s.count(m)
	}
}

// deactivate forgets the counts and links of a swarm that nobody wants.
func (s *State) deactivate(b *swarm) {
	if b.active == nil {
		return
	}
	for _, m := range b.members {
		s.uncount(m)
	}
	s.forgetParked(b)
	s.pieces -= b.n
	b.active = nil
}

// count adds what the member holds to the swarm's counts, if it counts.
func (s *State) count(m *member) {
	b := m.b
	if m.counted || b.active == nil || m.n.barred || m.held == 0 {
		return
	}
	m.counted = true
	m.atServing = int32(len(m.n.serving))
	m.n.serving = append(m.n.serving, m)
	if m.full {
		b.full++
	} else {
		for w, x := range m.have {
			b.held[w] |= x
			for ; x != 0; x &= x - 1 {
				p := w<<6 + bits.TrailingZeros64(x)
				b.hold[p]++
				b.copies[p]++
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
	b := m.b
	if m.full {
		b.full--
	} else {
		for w, x := range m.have {
			for ; x != 0; x &= x - 1 {
				b.release(w<<6 + bits.TrailingZeros64(x))
			}
		}
	}
	// Somebody may now need the origin for what this member held.
	s.touch(b)
}

func (b *swarm) release(p int) {
	b.copies[p]--
	if b.hold[p]--; b.hold[p] == 0 {
		b.held.clear(p)
	}
}

// offer makes the counted member's pieces available: its node has a free
// upload slot.
func (s *State) offer(m *member) {
	if m.offered || !m.counted {
		return
	}
	m.offered = true
	b := m.b
	m.atSpare = int32(len(b.spares))
	b.spares = append(b.spares, m)
	if m.full {
		s.gainFullSpare(b)
		return
	}
	for w, x := range m.have {
		for ; x != 0; x &= x - 1 {
			s.gainSpare(b, w<<6+bits.TrailingZeros64(x))
		}
	}
}

func (s *State) gainSpare(b *swarm, p int) {
	if b.spare[p]++; b.spare[p] == 1 {
		b.avail.set(p)
	}
	// To who avoids the holders so far, every further holder is news.
	if b.fullSpare == 0 && b.spare[p] == 1 || b.picky > 0 {
		b.fresh.set(p)
		b.stale = false
		s.mark(b)
	}
}

// gainFullSpare counts one more holder of everything with a free upload slot.
func (s *State) gainFullSpare(b *swarm) {
	b.fullSpare++
	if b.fullSpare > 1 && b.picky == 0 {
		return
	}
	for w := range b.fresh {
		news := ones(w, b.n)
		if b.picky == 0 {
			news &^= b.avail[w]
		}
		b.fresh[w] |= news
	}
	b.stale = false
	s.mark(b)
}

func (s *State) withdraw(m *member) {
	if !m.offered {
		return
	}
	m.offered = false
	b := m.b
	b.spares = cutAt(b.spares, m.atSpare, func(o *member, i int32) { o.atSpare = i })
	m.atSpare = -1
	if m.full {
		b.fullSpare--
		return
	}
	for w, x := range m.have {
		for ; x != 0; x &= x - 1 {
			b.loseSpare(w<<6 + bits.TrailingZeros64(x))
		}
	}
}

func (b *swarm) loseSpare(p int) {
	if b.spare[p]--; b.spare[p] == 0 {
		b.avail.clear(p)
	}
}

// available is word w of the pieces that somebody with a free upload slot holds
// and whose links are known.
func (b *swarm) available(w int) uint64 {
	if b.fullSpare > 0 {
		return b.proved[w]
	}
	return b.avail[w] & b.proved[w]
}

// needMore and needLess keep the count of those who need piece p.
func (b *swarm) needMore(p int) {
	if b.need[p]++; b.need[p] == 1 {
		b.needed.set(p)
	}
}

func (b *swarm) needLess(p int) {
	if b.need[p]--; b.need[p] == 0 {
		b.needed.clear(p)
	}
}

// cutAt removes the element at i, puts the last into its place and tells its
// new place.
func cutAt[T any](list []T, i int32, moved func(T, int32)) []T {
	last := len(list) - 1
	if int(i) != last {
		list[i] = list[last]
		moved(list[i], i)
	}
	var none T
	list[last] = none
	return list[:last]
}
