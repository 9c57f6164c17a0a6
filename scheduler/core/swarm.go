package core

import (
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

	appeared  Time // when it became known
	revokedAt Time

	served  uint64 // when it last got a lease
	dirty   bool   // on State.dirty
	touched bool   // on State.touched
	parked  bool   // on State.parked
	*active        // nil while nobody wants it
}

// active is what a swarm needs only while somebody wants it.
type active struct {
	chain  *blob.Chain
	front  int    // pieces before it are proved by links that join to link 0
	proved bitset // pieces whose links are known

	nodes, seeds *tally
	laggards     *tally   // nodes far slower than usual
	ofSeeds      []*tally // seeds alone, and who reads the origin
	ofLaggards   []*tally
	places       map[place]*tally // of nodes that stand in a region, a zone of it, a rack of that
	scarce       bool             // there are pieces that only seeds can bring in, or who reads the origin
	came         Time             // when who reads the origin last brought a piece, or began
	cameWake     Time             // when a timer looks whether more has come
	sites        map[place]*site
	live         []*site // somebody in them may be served

	hold, need   counts // holders; members that want the piece, have not got it, and have no lease for it
	held, needed bitset // where these are above zero
	reading      bitset // pieces that an origin lease will bring

	wanters []*member
	seats

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
	if m := n.recent; m != nil && m.b != nil && m.b.digest == d && m.b.layout.Size() == size {
		return m
	}
	b := s.swarmOf(d, size)
	if b == nil {
		l, err := blob.NewLayout(size)
		if err != nil || l.Pieces() == 0 {
			return nil
		}
		b = &swarm{digest: d, layout: l, n: l.Pieces(), appeared: s.now}
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
	m := &member{n: n, b: b, atNode: int32(len(n.members)), atSwarm: int32(len(b.members)), atServing: -1}
	if b.active != nil {
		b.sit(m)
		b.settle(m)
	}
	n.cost += cost
	n.members = append(n.members, m)
	b.members = append(b.members, m)
	s.members[pair{n.handle, b.handle}] = m
	return m
}

func memberCost(pieces int) int64 { return 256 + int64(pieces)/2 }

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
	if m := n.recent; m != nil && m.b != nil && m.b.digest == d {
		return m
	}
	for b := s.byDigest[d]; b != nil; b = b.sibling {
		if m := s.members[pair{n.handle, b.handle}]; m != nil {
			n.recent = m
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
	sets := make(bitset, 4*words(b.n))
	take := func() (t bitset) { t, sets = sets[:words(b.n):words(b.n)], sets[words(b.n):]; return t }
	b.active = &active{
		nodes: newTally(b.n), seeds: newTally(b.n), laggards: newTally(b.n), places: map[place]*tally{}, sites: map[place]*site{},
		hold: newCounts(b.n), need: newCounts(b.n), seats: seats{holders: make([]bitset, b.n), pending: make([]bitset, b.n)},
		proved: take(), held: take(), needed: take(), reading: take(),
	}
	b.ofSeeds, b.ofLaggards = []*tally{b.seeds}, []*tally{b.laggards}
	b.forgetLinks()
	s.pieces += b.n
	if len(s.cand) < words(b.n) {
		s.cand, s.set, s.alt = newBitset(b.n), newBitset(b.n), newBitset(b.n)
	}
	for _, m := range b.members {
		m.publishes, m.asked = false, false
		b.sit(m)
		b.settle(m)
		s.count(m)
		if m.partial() {
			s.adopt(b)
		}
	}
}

// deactivate forgets the counts and links of a swarm that nobody wants.
func (s *State) deactivate(b *swarm) {
	if b.active == nil {
		return
	}
	for _, m := range b.members {
		s.uncount(m)
		m.site, m.tallies = nil, nil
	}
	s.forgetParked(b)
	s.pieces -= b.n
	b.active = nil
}

// whole is how many members hold every piece.
func (b *swarm) whole() int { return b.nodes.full + b.seeds.full + b.laggards.full }

// needMore and needLess keep the count of those who need the pieces x of word w.
func (b *swarm) needMore(w int, x uint64) {
	b.need.add(w, x)
	b.needed[w] |= x
}

func (b *swarm) needLess(w int, x uint64) {
	b.need.sub(w, x)
	b.needed[w] = b.need.some(w)
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
