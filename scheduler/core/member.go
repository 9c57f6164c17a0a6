package core

import "math/bits"

// member is one node in one swarm: what it holds, and, while it wants or reads
// the blob, its receiving side.
type member struct {
	// What a search for holders looks at, in one cache line.
	have    bitset // pieces that it can serve; nil when none, or all (full)
	held    int
	n       *node
	b       *swarm
	rx      *receiver // nil when it neither wants nor reads
	full    bool      // holds every piece
	offered bool      // its pieces count as available

	sealed    bool // says that the digest is proven
	counted   bool // in the swarm's counts
	loose     bool // on State.loose
	revoked   bool // was told Revoke, and has not shown yet that it knows
	asked     bool // was asked for links
	publishes bool // may say links: it reads the origin, was asked, or came holding the blob
	told      bool // said some of the links that are known

	hushed      Time // what it holds does not count until then, because it sends nothing; 0: it counts
	hushedTimes uint8
	hungBy      string // the machine that last found that it sends nothing, at hungAt
	hungAt      Time
	missedBy    string // a machine that did not get what this says it has

	site    *site    // nil while nobody wants the blob
	tallies []*tally // where it is counted

	atNode, atSwarm int32            // places in node.members, swarm.members
	seat            int32            // in an active swarm
	atServing       int32            // place in node.serving; -1 when not there
	atSpare         [maxLevels]int32 // places in tally.spares of the site's levels, while offered
}

// receiver is the receiving side of a member.
type receiver struct {
	// What every lease touches stands together.
	wanting       bool // a client waits; else it only reads the origin for others
	queued, retry bool
	picky         bool // avoids somebody
	urgency       urgency
	priority      Priority
	pauses        uint8
	leases        int    // running
	late          int    // of these, those whose pieces may come from elsewhere
	missing       int    // wanted and not got
	lack          int    // of these, for which no lease runs
	pend          bitset // pieces that a running lease will bring
	wanted        bitset // nil means all
	urgent        bitset // nil when no client reads just here
	thirst        Time   // when it may look beyond its own rack for what is about to come there; 0 while it has leases
	until         Time   // no lease before
	next, prev    *member
	bucket        int
	avoids        []avoided

	origin *Origin
	host   *host  // of origin
	order  uint64 // of the wants, the first lowest
	direct bool   // a seed was turned away on its behalf: it must ask the origin itself
	fails  int    // leases that failed in a row
	poll   Time   // when it is looked at again because it avoids somebody

	atNode, atSwarm int32 // places in node.wants, swarm.wanters
}

func (m *member) partial() bool { return m.held > 0 && !m.full }

func (m *member) has(p int) bool { return m.full || m.have != nil && m.have.has(p) }

// urgency is how soon m is served.
func (m *member) urgency() urgency {
	for w, x := range m.rx.urgent {
		if x&m.missingWord(w) != 0 {
			return 0
		}
	}
	return urgency(m.rx.priority) + 1
}

func (m *member) wanting() bool { return m.rx != nil && m.rx.wanting }

// missingWord is word w of the pieces that m wants, has not got and has no
// lease for.
func (m *member) missingWord(w int) uint64 {
	if m.full {
		return 0
	}
	x := ones(w, m.b.n) &^ m.rx.pend[w]
	if m.rx.wanted != nil {
		x &= m.rx.wanted[w]
	}
	if m.have != nil {
		x &^= m.have[w]
	}
	return x
}

func (r *receiver) wants(p int) bool { return r.wanting && (r.wanted == nil || r.wanted.has(p)) }

// receive gives m a receiving side if it has none.
func (s *State) receive(m *member) *receiver {
	if m.rx == nil {
		m.rx = &receiver{pend: newBitset(m.b.n), atNode: -1, atSwarm: -1}
	}
	return m.rx
}

// want records a want. It returns the member that waits now, nil when there is
// nothing to wait for.
func (s *State) want(e *Want) *member {
	n := s.byID[e.Node]
	if n == nil {
		return nil
	}
	m := s.enter(n, e.Digest, e.Size)
	if m == nil {
		if e.Size != 0 {
			s.decide(Decision{Kind: Refuse, To: n.id, Digest: e.Digest, Reason: "the scheduler cannot take this blob: its size is out of range, or the node has too many"})
		}
		return nil
	}
	b := m.b
	s.loosen(m)
	if b.active == nil && s.pieces+b.n > s.cfg.MaxPieces || n.wantedPieces+b.n > max(s.cfg.MaxPieces/4, 1) && !m.wanting() {
		s.decide(Decision{Kind: Refuse, To: n.id, Digest: e.Digest, Reason: "the scheduler is at its limit of wanted pieces; ask again later"})
		return nil
	}
	s.activate(b)
	rx := s.receive(m)
	if rx.wanting {
		s.unwish(m)
	} else {
		s.join(m)
	}
	s.setOrigin(rx, e.Origin)
	rx.direct = false
	rx.priority = min(e.Priority, priorities-1)
	rx.urgent = nil
	for p := range pieces(e.Urgent, b.n) {
		if rx.urgent == nil {
			rx.urgent = newBitset(b.n)
		}
		rx.urgent.set(p)
	}
	rx.wanted = nil
	if len(e.Runs) > 0 {
		rx.wanted = newBitset(b.n)
		for p := range pieces(e.Runs, b.n) {
			rx.wanted.set(p)
		}
	}
	s.wish(m)
	s.touch(b)
	if rx.missing == 0 {
		s.fulfil(m)
		return nil
	}
	return m
}

// join enters m among those who want.
func (s *State) join(m *member) {
	m.rx.wanting = true
	s.wanted++
	m.rx.order = s.wanted
	m.rx.fails, m.rx.pauses, m.rx.until = 0, 0, 0
	m.rx.atNode, m.rx.atSwarm = int32(len(m.n.wants)), int32(len(m.b.wanters))
	m.n.wants = append(m.n.wants, m)
	m.b.wanters = append(m.b.wanters, m)
	m.n.wantedPieces += m.b.n
	s.stats.wants++
}

// fulfil ends m's want; running leases go on.
func (s *State) fulfil(m *member) {
	rx := m.rx
	if rx == nil || !rx.wanting {
		return
	}
	s.judge(m)
	s.unwish(m)
	rx.wanting = false
	rx.wanted, rx.urgent = nil, nil
	s.setOrigin(rx, nil)
	m.n.wants = cutAt(m.n.wants, rx.atNode, func(o *member, i int32) { o.rx.atNode = i })
	m.b.wanters = cutAt(m.b.wanters, rx.atSwarm, func(o *member, i int32) { o.rx.atSwarm = i })
	m.n.wantedPieces -= m.b.n
	s.stats.wants--
	s.enqueue(m, false)
	s.loosen(m)
	s.touch(m.b)
	if len(m.b.wanters) == 0 {
		m.b.idleSince = s.now
	}
}

// wish counts what m wants and has not got; unwish takes it out of the counts
// again, before anything of it changes.
func (s *State) wish(m *member) {
	rx := m.rx
	rx.missing, rx.lack = 0, 0
	for w := range rx.pend {
		x := m.missingWord(w)
		rx.lack += bits.OnesCount64(x)
		pending := rx.pend[w]
		if rx.wanted != nil {
			pending &= rx.wanted[w]
		}
		rx.missing += bits.OnesCount64(x) + bits.OnesCount64(pending)
		if x != 0 {
			m.b.needMore(w, x)
		}
	}
	s.enqueue(m, true)
}

func (s *State) unwish(m *member) {
	for w := range m.rx.pend {
		if x := m.missingWord(w); x != 0 {
			m.b.needLess(w, x)
		}
	}
	m.rx.missing, m.rx.lack = 0, 0
}

// unwant ends a want because the node says so: it has given up its leases.
func (s *State) unwant(e *Unwant) {
	n := s.byID[e.Node]
	if n == nil {
		return
	}
	if m := s.memberOf(n, e.Digest); m != nil && m.wanting() {
		s.withdrawWant(m, false)
	}
}

// withdrawWant ends m's want and its leases.
func (s *State) withdrawWant(m *member, cancel bool) {
	s.fulfil(m)
	s.endLeases(m, cancel)
}

// endLeases ends every lease that m runs; the origin's next reader takes over.
func (s *State) endLeases(m *member, cancel bool) {
	for i := len(m.n.down) - 1; i >= 0; i-- {
		if i < len(m.n.down) && m.n.down[i].m == m {
			s.end(m.n.down[i], cancel)
		}
	}
}

// refuse ends m's want with a reason that its node can show.
func (s *State) refuse(m *member, reason string) {
	if !m.wanting() {
		return
	}
	s.withdrawWant(m, true)
	s.decide(Decision{Kind: Refuse, To: m.n.id, Digest: m.b.digest, Reason: reason})
}

// loosen has m looked at before Apply returns: who neither holds, wants nor
// reads is forgotten.
func (s *State) loosen(m *member) {
	if !m.loose {
		m.loose = true
		s.loose = append(s.loose, m)
	}
}

func (s *State) forgetEmpty() {
	for _, m := range s.loose {
		m.loose = false
		if m.rx != nil && !m.rx.wanting && m.rx.leases == 0 {
			m.rx = nil
		}
		if m.rx == nil && m.held == 0 && !m.revoked && m.b != nil {
			s.removeMember(m)
		}
	}
	s.loose = s.loose[:0]
}

// discard ends everything between a node and a blob.
func (s *State) discard(m *member) {
	if m.wanting() {
		s.fulfil(m)
	}
	s.endLeases(m, false)
	s.empty(m)
}

// removeMember forgets a member that holds, wants and reads nothing.
func (s *State) removeMember(m *member) {
	n, b := m.n, m.b
	n.cost -= memberCost(b.n)
	delete(s.members, pair{n.handle, b.handle})
	if b.active != nil {
		b.rise(m)
	}
	n.members = cutAt(n.members, m.atNode, func(o *member, i int32) { o.atNode = i })
	b.members = cutAt(b.members, m.atSwarm, func(o *member, i int32) { o.atSwarm = i })
	m.b = nil
	if len(b.members) == 0 {
		s.removeSwarm(b)
	}
}
