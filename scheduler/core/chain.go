package core

import "github.com/damselfly-p2p/damselfly/pkg/blob"

// Who says links, and what becomes of them when they lie. A wrong link wastes
// time and never delivers a wrong blob: the last piece is proved by the digest.

// maxAsks is how many holders in a row are asked for links until the origin is
// read again.
const maxAsks = 3

// forgetLinks starts the chain anew: link 0 is known, which proves the piece of
// a blob that has only one.
func (b *swarm) forgetLinks() {
	b.chain = blob.NewChain(b.digest, b.layout)
	clear(b.proved)
	b.front = 0
	for _, m := range b.members {
		m.told = false
	}
	if b.chain.Proves(0) {
		b.proved.set(0)
		b.front = 1
	}
}

// addLinks records links that m says, if m may say any: it reads the origin,
// was asked, or came holding the blob. While a reader extends the chain, only
// the reader. What differs from known links is not taken. It tells whether a
// link was new.
func (s *State) addLinks(m *member, first int, links []byte) bool {
	b := m.b
	if len(links) == 0 || m.n.barred || m != b.reader && (!m.publishes || b.extending()) {
		return false
	}
	if b.chain.Add(first, links) != nil {
		return false
	}
	news := false
	last := min(first+len(links)/b.digest.LinkSize(), b.n-1)
	for p := max(first-1, 0); p <= last; p++ {
		if !b.proved.has(p) && b.chain.Proves(p) {
			b.proved.set(p)
			s.news(b, b.seeds, p>>6, bit(p))
			news = true
		}
	}
	if !news {
		return false
	}
	b.front = b.chain.Front()
	if !b.chain.Whole() {
		b.front--
	}
	b.asks = 0
	m.told = true
	return true
}

// extending tells whether an origin lease adds links now.
func (b *swarm) extending() bool {
	for _, l := range b.origins {
		if l.ahead {
			return true
		}
	}
	return false
}

// ask has a holder tell the links of pieces that it holds and nobody can prove.
// It tells whether an answer is to be waited for.
func (s *State) ask(b *swarm) bool {
	if b.asked != nil {
		if b.asked.counted && s.now < b.askedUntil {
			return true
		}
		s.mute(b)
	}
	if b.asks >= maxAsks || s.doubtful(b) || !b.holdsUnproved() {
		return false
	}
	var best *member // the first without strikes, else the first
	for _, m := range b.members {
		if !m.counted || m.asked || !m.holdsUnproved() {
			continue
		}
		if best == nil {
			best = m
		}
		if len(m.n.strikes) == 0 {
			best = m
			break
		}
	}
	if best == nil {
		return false
	}
	best.asked, best.publishes = true, true
	b.asks++
	b.asked, b.askedSince, b.askedUntil = best, s.now, s.now+s.cfg.TellTime
	s.wakeSwarm(b, b.askedUntil)
	s.decide(Decision{Kind: Tell, To: best.n.id, Digest: b.digest})
	return true
}

// doubtful tells whether links have led to a wrong digest lately: then only who reads
// the origin is believed, for an honest node may pass on what it was told.
func (s *State) doubtful(b *swarm) bool {
	return b.revokedAt != 0 && s.now < b.revokedAt+s.cfg.IdleTime
}

// answered looks whether the asked node has told enough. An answer may come in
// several parts, but not for ever.
func (s *State) answered(b *swarm, news bool) {
	switch {
	case !b.asked.holdsUnproved():
		b.asked = nil
	case news:
		b.askedUntil = min(s.now+s.cfg.TellTime, b.askedSince+10*s.cfg.TellTime)
		s.wakeSwarm(b, b.askedUntil)
	}
}

// mute notes that the asked node has told nothing that proves what it holds. It
// is no reader for a while, or a node that never tells would read for ever.
func (s *State) mute(b *swarm) {
	m := b.asked
	b.asked = nil
	if m.b == b && m.holdsUnproved() {
		s.unfit(b, m.n, 60*Second)
	}
}

func (b *swarm) holdsUnproved() bool {
	for w := range b.held {
		if b.held[w]&^b.proved[w] != 0 || b.whole() > 0 && b.proved[w] != ones(w, b.n) {
			return true
		}
	}
	return false
}

func (m *member) holdsUnproved() bool {
	for w, known := range m.b.proved {
		if m.full && known != ones(w, m.b.n) || m.have != nil && m.have[w]&^known != 0 {
			return true
		}
	}
	return false
}

// revoke forgets links that led to a wrong digest, as reporter found, and every
// piece that only they vouched for. One more reader tries; if its links lead
// astray too, the origin's bytes are wrong.
//
// What nodes say of the blob until they have heard of it does not count; a node
// shows that it has by a Drop, or by ending a lease that came after.
func (s *State) revoke(b *swarm, reporter *member) {
	for _, m := range b.members {
		s.endLeases(m, true)
	}
	fooled := s.accuse(b, reporter)
	for _, m := range b.members {
		s.decide(Decision{Kind: Revoke, To: m.n.id, Digest: b.digest})
		m.publishes, m.asked = false, false
		if !m.sealed {
			s.empty(m)
			m.revoked = true
			s.wakeMember(m, s.now+s.cfg.IdleTime)
		}
	}
	b.revokedAt = s.now
	b.forgetLinks()
	b.asked, b.asks, b.doubts = nil, 0, nil
	if fooled {
		return // the origin's own bytes have not been seen wrong yet
	}
	s.unfit(b, reporter.n, 60*Second)
	if b.bad++; b.bad > 1 {
		b.bad = 0
		for len(b.wanters) > 0 {
			s.refuse(b.wanters[len(b.wanters)-1], "the bytes of the origin do not have this digest")
		}
	}
}

// accusation is the links of which one node said some that led to a wrong digest.
type accusation struct {
	id      string
	chain   *blob.Chain
	refuted bool // other links have become whole
}

// accuse notes who else than reporter said the links that reporter found wrong, and
// tells whether anybody did: none of them reads the origin of this blob soon. It may
// be that the origin's bytes are wrong: of a single one that shows when the blob is whole.
func (s *State) accuse(b *swarm, reporter *member) bool {
	var liar *member
	liars := 0
	for _, m := range b.members {
		if m.told && m != reporter {
			m.sealed = false
			liar = m
			liars++
			s.unfit(b, m.n, 60*Second)
		}
	}
	if liars == 1 {
		s.strike(liar.n, reporter.n)
		b.accused = &accusation{id: liar.n.id, chain: b.chain}
	}
	return liars > 0
}

// judge has m, whom links that it did not say have led to the digest, be one more
// accuser of who said others.
func (s *State) judge(m *member) {
	b := m.b
	a := b.accused
	if a == nil || m.told || m.n.id == a.id || !b.chain.Whole() {
		return
	}
	a.refuted = a.refuted || b.chain.Contradicts(a.chain)
	if !a.refuted {
		b.accused = nil
	} else if n := s.byID[a.id]; n != nil {
		s.strike(n, m.n)
	}
}
