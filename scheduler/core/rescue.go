package core

import "github.com/damselfly-p2p/damselfly/pkg/blob"

// rescue lets m read from the origin what it can get from no holder: all that
// hold it have failed m repeatedly.
func (s *State) rescue(m *member) {
	rx, b := m.rx, m.b
	if rx.origin == nil || !rx.queued || !s.hardPressed(m) {
		return
	}
	cand := s.cand[:words(b.n)]
	clear(cand)
	for _, h := range b.members {
		if !h.counted || s.avoidsHard(rx.avoids, h.n) {
			continue
		}
		if h.full {
			return
		}
		for w := range cand {
			cand[w] |= h.have[w]
		}
	}
	for w := range cand {
		held := b.held[w]
		if b.whole() > 0 {
			held = ^uint64(0)
		}
		cand[w] = m.missingWord(w) & b.proved[w] & held &^ cand[w]
	}
	first := cand.next(0)
	if first < 0 {
		return
	}
	if s.closed(rx.host) {
		s.wakeMember(m, max(rx.host.until, s.now+250*Millisecond))
		return
	}
	run := blob.Run{First: first, Count: 1}
	most := int(4 * s.cfg.LeaseBytes / b.layout.PieceLength())
	for p := first + 1; p < b.n && run.Count < most && cand.has(p); p++ {
		run.Count++
	}
	if l := s.startOrigin(m, m, run); l != nil {
		l.rescue = true
		s.decideOrigin(l)
	}
}

func (s *State) hardPressed(m *member) bool {
	for _, a := range m.rx.avoids {
		if a.hard && s.now < a.until {
			return true
		}
	}
	return false
}

// rescueFailed ends a lease of rescue: the answer concerns its node alone.
func (s *State) rescueFailed(l *lease, reason Reason, status int, wait Time, cancel bool) {
	m, h := l.m, l.host
	h.refs++
	defer s.unrefHost(h)
	s.end(l, cancel)
	m.rx.fails++
	switch {
	case reason == BadPiece || reason == BadDigest:
		if s.doubt(m.b, m) {
			s.revoke(m.b, m)
		} else {
			s.refuse(m, "the bytes of the origin do not match what the other nodes hold")
		}
	case status == 429 || wait > 0:
		s.pauseHost(h, wait)
	case reason == OriginError && status >= 400 && status < 500 && status != 408, m.rx.fails >= s.cfg.Failures:
		s.refuse(m, "no holder of this blob can be reached, and the origin "+reason.because(status))
	}
	if m.wanting() {
		s.pause(m, 500*Millisecond)
	}
}
