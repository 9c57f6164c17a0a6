package core

import (
	"fmt"
	"slices"
)

// What follows when an origin lease fails.

// progress notes that m has brought something: its origin leases may go on.
func (s *State) progress(m *member) {
	if m.rx == nil || m.n.reading == 0 {
		return
	}
	for _, l := range m.n.down {
		if l.m == m && l.host != nil {
			l.deadline, l.brought = s.now+s.originSpan(m.b), true
			if !l.rescue {
				m.b.attempts, m.b.silences = 0, 0
			}
		}
	}
}

// originFailed ends an origin lease and has another reader go on.
func (s *State) originFailed(l *lease, reason Reason, status int, wait Time, cancel bool) {
	if l.rescue {
		s.rescueFailed(l, reason, status, wait, cancel)
		return
	}
	m, b, behalf, origin, h := l.m, l.m.b, l.behalf, l.origin, l.host
	h.refs++
	defer s.unrefHost(h)
	s.end(l, cancel)
	s.endReader(b)
	refused := reason == OriginError && status >= 400 && status < 500 && status != 408
	switch {
	case reason == BadDigest || reason == BadPiece:
		if s.doubt(b, m) {
			s.revoke(b, m)
		} else {
			s.unfit(b, m.n, 60*Second) // another looks
		}
		return
	case status == 429 || wait > 0:
		if !s.pauseHost(h, wait) {
			s.refuseNeedy(b, fmt.Sprintf("the origin asks to wait %d s", wait/Second))
			return
		}
		b.attempts++
	case refused:
		s.turnedAway(b, m, behalf, origin, status)
		return
	default:
		b.attempts++
		s.unfit(b, m.n, 2*s.cfg.OriginBackoff)
		b.after = s.now + min(s.cfg.OriginBackoff<<min(b.attempts-1, 16), max(s.cfg.OriginBackoff, s.cfg.OriginBackoffMax))
		s.wakeSwarm(b, b.after)
	}
	if b.attempts >= s.cfg.OriginAttempts {
		b.attempts = 0
		s.refuseNeedy(b, "the origin could not be read: the last of several attempts "+reason.because(status))
	}
}

// because says in words why an origin lease failed.
func (r Reason) because(status int) string {
	switch {
	case status != 0:
		return fmt.Sprintf("was answered with status %d", status)
	case r == StoreError:
		return "failed because the node could not write"
	case r == Cancelled:
		return "was cancelled by the node"
	}
	return "did not get an answer"
}

// endReader takes every origin lease of the swarm back.
func (s *State) endReader(b *swarm) {
	for len(b.origins) > 0 {
		s.end(b.origins[len(b.origins)-1], true)
	}
}

// turnedAway draws the conclusion from a 4xx: who a seed asked for asks itself,
// who asked itself gets the origin's answer.
func (s *State) turnedAway(b *swarm, m, behalf *member, origin *Origin, status int) {
	at := slices.IndexFunc(b.refusals, func(r refusal) bool { return r.origin == *origin })
	if at < 0 {
		at = len(b.refusals)
		b.refusals = append(b.refusals, refusal{origin: *origin})
		if at >= maxRefusals {
			b.refusals = slices.Delete(b.refusals, 0, 1)
			at--
		}
	}
	b.refusals[at].count++
	reason := fmt.Sprintf("the origin answered with status %d", status)
	if behalf != m {
		b.refusals[at].seeds++
		if behalf.wanting() {
			behalf.rx.direct = true
		}
	} else if m.wanting() {
		s.refuse(m, reason)
	}
	if b.refusals[at].count < s.cfg.OriginRefusals || origin.Private {
		return
	}
	for i := len(b.wanters) - 1; i >= 0; i-- {
		if w := b.wanters[i]; w.rx.origin != nil && *w.rx.origin == *origin {
			s.refuse(w, reason)
		}
	}
	b.refusals = slices.Delete(b.refusals, at, at+1)
}

// refuseNeedy refuses every want that needs a piece which no node can serve.
func (s *State) refuseNeedy(b *swarm, reason string) {
	for i := len(b.wanters) - 1; i >= 0; i-- {
		m := b.wanters[i]
		for w := range b.needed {
			served := b.proved[w]
			if b.whole() == 0 {
				served &= b.held[w]
			}
			if m.missingWord(w)&^served != 0 {
				s.refuse(m, reason)
				break
			}
		}
	}
}
