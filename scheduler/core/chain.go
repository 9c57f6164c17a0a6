package core

import "github.com/damselfly-p2p/damselfly/pkg/blob"

// Who says links, and what becomes of them when they lie. A wrong link wastes
// time and never delivers a wrong blob: the last piece is proved by the digest.

// mixed is the publisher when several nodes said the links.
const mixed = ^uint64(0)

// maxAsks is how many holders in a row are asked for links until the origin is
// read again.
const maxAsks = 3

// forgetLinks starts the chain anew: link 0 is known, which proves the piece of
// a blob that has only one.
func (b *swarm) forgetLinks() {
	b.chain = blob.NewChain(b.digest, b.layout)
	clear(b.proved)
	b.front = 0
	b.publisher = 0
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
	if b.publisher == 0 {
		b.publisher = m.n.serial
	} else if b.publisher != m.n.serial {
		b.publisher = mixed
	}
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
	if b.asks >= maxAsks || !b.holdsUnproved() {
		return false
	}
	for _, m := range b.members {
		if !m.counted || m.asked || !m.holdsUnproved() {
			continue
		}
		m.asked, m.publishes = true, true
		b.asks++
		b.asked, b.askedSince, b.askedUntil = m, s.now, s.now+s.cfg.TellTime
		s.wakeSwarm(b, b.askedUntil)
		s.decide(Decision{Kind: Tell, To: m.n.id, Digest: b.digest})
		return true
	}
	return false
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
		var a *avoided
		b.unfit, a = s.avoid(b.unfit, m.n, 60*Second, 60*Second)
		s.wakeSwarm(b, a.until)
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
	if p := b.publisher; p != 0 && p != mixed && p != reporter.n.serial {
		for _, m := range b.members {
			if m.n.serial == p {
				m.sealed = false
				s.strike(m.n, reporter.n.id)
			}
		}
	}
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
	var a *avoided
	b.unfit, a = s.avoid(b.unfit, reporter.n, 60*Second, 60*Second)
	s.wakeSwarm(b, a.until)
	b.bad++
	if b.bad > 1 {
		b.bad = 0
		for len(b.wanters) > 0 {
			s.refuse(b.wanters[len(b.wanters)-1], "the bytes of the origin do not have this digest")
		}
	}
}
