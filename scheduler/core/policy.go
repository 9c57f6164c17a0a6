package core

import (
	"math/bits"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// policy chooses what a receiver gets next and from whom. What it may choose from,
// whose turn it is and how long a lease is, is not its affair; so whatever it
// chooses, nobody is stuck. It keeps no state but that of the State it is asked by.
type policy interface {
	// piece picks one of the candidates, of which there is one at least: pieces
	// that m misses and that somebody within its reach could send now.
	piece(s *State, m *member, cand bitset) int
	// holder picks who sends piece p to m, nil when there is nobody that m does not
	// avoid.
	holder(s *State, m *member, p int) *member
}

// Policies names those that there are, the default first.
func Policies() []string { return []string{"rarest", "random", "inorder"} }

func policyNamed(name string) policy {
	switch name {
	case "random":
		return randomPolicy{}
	case "inorder":
		return inorderPolicy{}
	}
	return rarestPolicy{}
}

// serve starts at most one lease from a holder in swarm b, for the receiver that
// is served first. It tells false only when no waiting receiver can get any piece
// from anybody; that nobody is stuck rests on this.
func (s *State) serve(b *swarm) bool {
	if b.active == nil {
		return false
	}
	s.ration(b)
	for len(b.live) > 0 {
		at := b.foremost()
		st := b.live[at]
		if s.serveSite(st) {
			return true
		}
		st.rest()
		last := len(b.live) - 1
		b.live[at] = b.live[last]
		b.live[last] = nil
		b.live = b.live[:last]
	}
	return false
}

// foremost is the place of the live site whose first receiver goes before those of
// all others.
func (b *swarm) foremost() int {
	best := 0
	if len(b.live) == 1 {
		return best
	}
	var first *member
	for i, st := range b.live {
		m := st.queue.first()
		if m != nil && (first == nil || m.rx.urgency < first.rx.urgency ||
			m.rx.urgency == first.rx.urgency && m.rx.missing > first.rx.missing) {
			best, first = i, m
		}
	}
	return best
}

// urgency is that of the most urgent receiver that may be served.
func (b *swarm) urgency() urgency {
	u := urgencies
	if b.active == nil {
		return u
	}
	for _, st := range b.live {
		if m := st.queue.first(); m != nil {
			u = min(u, m.rx.urgency)
		}
	}
	return u
}

// serveSite is serve for the receivers of one site.
//
// What was within reach before the event at hand, and of whom, was tried then. So
// only fresh pieces are tried for everybody, and all pieces for those about whom
// something changed (retry).
func (s *State) serveSite(st *site) bool {
	if st.cursor == nil {
		st.cursor = st.queue.first()
	}
	if s.pace.factor > 1 && !st.stale {
		st.keepWhole(s.runLength(st.b))
	}
	for steps := 0; !st.stale && st.cursor != nil && st.anyFresh(); steps++ {
		m := st.cursor
		if steps >= nearSteps && st.queue.length > nearSteps {
			if m = st.lacking(m); m == nil {
				break
			}
		}
		st.cursor = st.queue.after(m)
		useful := st.canUseFresh(m)
		if st.cursor == nil {
			clear(st.fresh) // everybody has been tried for it
			st.stale = true
		}
		if useful && s.leaseTo(m) {
			return true
		}
	}
	if !st.stale {
		clear(st.fresh)
		st.stale = true
	}
	for len(st.retry) > 0 {
		m := st.retry[len(st.retry)-1]
		st.retry = st.retry[:len(st.retry)-1]
		if m.rx == nil {
			continue
		}
		m.rx.retry = false
		if m.rx.queued && s.leaseTo(m) {
			return true
		}
	}
	return false
}

// nearSteps is how far from its front a queue is walked through before its members
// are looked at by masks.
const nearSteps = 8

func (st *site) anyFresh() bool {
	needed := st.b.needed
	for w, x := range st.fresh {
		if x != 0 && x&needed[w]&st.reach(w) != 0 {
			return true
		}
	}
	return false
}

func (st *site) canUseFresh(m *member) bool {
	for w, x := range st.fresh {
		if x == 0 {
			continue
		}
		if x &= m.missingWord(w); x != 0 && x&st.reach(w) != 0 {
			return true
		}
	}
	return false
}

// leaseTo starts a lease for m if anybody can serve it.
func (s *State) leaseTo(m *member) bool {
	b := m.b
	cand := s.cand[:words(b.n)]
	if !s.candidates(m, cand) {
		s.rescue(m)
		if s.pace.factor > 1 && m.rx.leases == 0 {
			s.thirst(m, s.cfg.NearTime) // torn groups come within reach unannounced
		}
		return false
	}
	length := s.runLength(b)
	if s.pace.factor > 1 && !s.wholeGroups(m, cand, length) {
		return false
	}
	p := m.urgentPiece(cand)
	if p < 0 {
		p = s.policy.piece(s, m, cand)
	}
	h := s.policy.holder(s, m, p)
	if h == nil {
		return false
	}
	run := s.chooseRun(m, h, cand, p, length)
	l := s.start(m, run)
	if l == nil {
		return false
	}
	if s.pace.count(s.now) {
		s.turn()
	}
	l.holder = h.n
	l.atUp = int32(len(h.n.up))
	h.n.up = append(h.n.up, l)
	couldRun := m.n.canRun()
	s.freeTrickle(l)
	s.respare(h.n)
	bytes := b.layout.Bytes(run)
	span := s.span(h.n, m.n, bytes)
	l.deadline = s.now + span
	if hedge := s.hedgeTime(m.n, bytes); hedge < span {
		l.hedge = s.now + hedge
	}
	s.decide(Decision{
		Kind: Lease, To: m.n.id, Digest: b.digest, ID: l.id, Size: b.layout.Size(), Run: run,
		Holder: Peer{h.n.id, h.n.address}, Deadline: span,
		FirstLink: run.First, Links: b.chain.Links(run.First, run.Count+1),
	})
	switch {
	case !couldRun:
		s.freed(m.n)
	case m.rx.queued:
		s.again(m)
	}
	return true
}

// candidates collects the pieces that m could get now. It tells false when there
// is none.
func (s *State) candidates(m *member, cand bitset) bool {
	var any uint64
	if s.avoiding(m) {
		any = s.picked(m, cand)
		if any == 0 && s.now >= m.rx.poll {
			m.rx.poll = s.now + pollTime
			s.wakeMember(m, m.rx.poll)
		}
		return any != 0
	}
	st := m.site
	yields := m.n.lags && m.b.scarce && m.b.others()
	for w := range cand {
		cand[w] = st.reach(w) & m.missingWord(w)
		if yields { // it would be long until anybody has from it what nobody else has
			cand[w] &= m.b.nodes.taken(w)
		}
		any |= cand[w]
	}
	if any != 0 || len(st.levels) == 1 && !m.b.scarce || m.rx.leases > 0 {
		return any != 0
	}
	// What it misses is to be had from a seed or far away, and is near by but busy,
	// or on its way there.
	if s.now < m.rx.thirst {
		return false
	}
	if m.rx.thirst > 0 {
		for w := range cand {
			cand[w] = m.b.anywhere(w) & m.missingWord(w)
			any |= cand[w]
		}
	}
	if any == 0 {
		wait := s.cfg.NearTime
		if len(st.levels) == 1 {
			wait *= 10 // only seeds have it to spare, and they have better to do
		}
		s.thirst(m, wait)
	}
	return any != 0
}

// others tells whether somebody who is no laggard wants b from nodes; it asks a few.
func (b *swarm) others() bool {
	for _, w := range b.wanters[:min(len(b.wanters), 16)] {
		if !w.n.lags && w != b.reader {
			return true
		}
	}
	return false
}

// thirst has m, which has nothing to do but waits for better, looked at after a
// while: then it takes what there is.
func (s *State) thirst(m *member, wait Time) {
	if s.now >= m.rx.thirst {
		m.rx.thirst = s.now + wait
		s.wakeMember(m, m.rx.thirst)
	}
}

// pollTime is how often a receiver that avoids some holders is looked at: that
// somebody else has a piece too is no news to its site.
const pollTime = 50 * Millisecond

// picked collects the pieces that m can get from those that it does not avoid.
func (s *State) picked(m *member, cand bitset) (any uint64) {
	b := m.b
	clear(cand)
	for _, spares := range [...][]*member{b.nodes.spares, b.seeds.spares, b.laggards.spares} {
		for _, h := range spares {
			if s.avoids(m.rx.avoids, h.n) {
				continue
			}
			for w := range cand {
				if h.full {
					cand[w] = ^uint64(0)
				} else {
					cand[w] |= h.have[w]
				}
			}
		}
	}
	for w := range cand {
		cand[w] &= b.proved[w] & m.missingWord(w)
		any |= cand[w]
	}
	return any
}

// avoiding tells whether m leaves out any holder now, and forgets those whose
// time is long over.
func (s *State) avoiding(m *member) bool {
	if !m.rx.picky {
		return false
	}
	any := false
	keep := m.rx.avoids[:0]
	for _, a := range m.rx.avoids {
		if s.now < a.until+120*Second {
			keep = append(keep, a)
			any = any || a.holds(s.now)
		}
	}
	m.rx.avoids = keep
	m.rx.picky = len(keep) > 0
	return any
}

// chooseRun extends piece p to a run of consecutive candidates that h holds, inside
// an aligned group of so many pieces.
func (s *State) chooseRun(m *member, h *member, cand bitset, p, most int) blob.Run {
	if m.n.expiries > 0 {
		most = 1
	}
	group := p - p%most
	first, end := p, p+1
	for first > group && cand.has(first-1) && h.has(first-1) {
		first--
	}
	for end < min(group+most, m.b.n) && cand.has(end) && h.has(end) {
		end++
	}
	return blob.Run{First: first, Count: end - first}
}

// urgentPiece is the first candidate that a client of m reads just here, or -1.
func (m *member) urgentPiece(cand bitset) int {
	for w, x := range m.rx.urgent {
		if x &= cand[w]; x != 0 {
			return w<<6 + bits.TrailingZeros64(x)
		}
	}
	return -1
}

// Runs are tripsLong round trips long at least, while a blob makes coarsest leases:
// with fewer, the ramp of a crowd costs more than their round trips.
const (
	tripsLong = 16
	coarsest  = 128
)

// takes is how long a lease of so many pieces usually takes.
func (s *State) takes(pieces int, b *swarm) Time {
	if s.usualRate == 0 {
		return Second
	}
	return seconds(int64(pieces)*b.layout.PieceLength(), s.usualRate)
}

// runLength is how many pieces a lease of b may have now, a power of two.
func (s *State) runLength(b *swarm) int {
	most := min(int(s.cfg.LeaseBytes/b.layout.PieceLength()), s.cfg.LeasePieces)
	if len(b.wanters) > 4 {
		fine := max(b.n/s.cfg.SwarmLeases, 1)
		// Each lease costs a part of a round trip, which finer ones have more of.
		for 2*fine <= b.n/coarsest && s.takes(fine, b) < tripsLong*s.usualTrip {
			fine *= 2
		}
		most = min(most, fine)
	}
	most = max(most, 1) * s.pace.factor
	return 1 << (bits.Len(uint(most)) - 1)
}
