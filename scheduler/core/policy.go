package core

import (
	"math/bits"
	"slices"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// The policy: who is served next, with which pieces, by which holder. All else
// in this package is bookkeeping that lets these three questions be answered
// from counts. It may be replaced as long as it keeps the promise of serve.

// serve starts at most one lease from a holder in swarm b, for the receiver
// that misses most. It tells false only when no waiting receiver can get any
// piece from anybody; that nobody is stuck rests on this.
//
// What was available before the event at hand, and to whom, was tried then. So
// only fresh pieces are tried for everybody, and all pieces for those about
// whom something changed (retry).
func (s *State) serve(b *swarm) bool {
	if b.active == nil {
		return false
	}
	if b.cursor == nil {
		b.cursor = b.queue.first()
	}
	for !b.stale && b.cursor != nil {
		if !b.anyFresh() {
			b.stale = true
			break
		}
		m := b.cursor
		b.cursor = b.queue.after(m)
		if b.cursor == nil {
			b.stale = true // everybody has been tried for what was fresh
		}
		if b.canUseFresh(m) && s.leaseTo(m) {
			if m.rx.queued {
				s.again(m)
			}
			return true
		}
	}
	for len(b.retry) > 0 {
		m := b.retry[len(b.retry)-1]
		b.retry = b.retry[:len(b.retry)-1]
		if m.rx == nil {
			continue
		}
		m.rx.retry = false
		if m.rx.queued && s.leaseTo(m) {
			if m.rx.queued {
				s.again(m)
			}
			return true
		}
	}
	return false
}

func (b *swarm) anyFresh() bool {
	for w, x := range b.fresh {
		if x != 0 && x&b.available(w)&b.needed[w] != 0 {
			return true
		}
	}
	return false
}

func (b *swarm) canUseFresh(m *member) bool {
	for w, x := range b.fresh {
		if x != 0 && x&b.available(w)&m.missingWord(w) != 0 {
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
		return false
	}
	p := s.choosePiece(m, cand)
	h := s.chooseHolder(m, p)
	if h == nil {
		return false
	}
	run := s.chooseRun(m, h, cand, p)
	l := s.start(m, run)
	if l == nil {
		return false
	}
	l.holder = h.n
	l.atUp = int32(len(h.n.up))
	h.n.up = append(h.n.up, l)
	s.respare(h.n)
	span := s.span(h.n, m.n, b.layout.Bytes(run))
	l.deadline = s.now + span
	s.decide(Decision{
		Kind: Lease, To: m.n.id, Digest: b.digest, ID: l.id, Size: b.layout.Size(), Run: run,
		Holder: Peer{h.n.id, h.n.address}, Deadline: span,
		FirstLink: run.First, Links: b.chain.Links(run.First, run.Count+1),
	})
	return true
}

// candidates collects the pieces that m could get now. It tells false when
// there is none.
func (s *State) candidates(m *member, cand bitset) bool {
	b := m.b
	var any uint64
	if !s.avoiding(m) {
		for w := range cand {
			cand[w] = b.available(w) & m.missingWord(w)
			any |= cand[w]
		}
		return any != 0
	}
	clear(cand)
	for _, h := range b.spares {
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
	for w := range cand {
		cand[w] &= b.proved[w] & m.missingWord(w)
		any |= cand[w]
	}
	return any != 0
}

// avoiding tells whether m leaves out any holder now, and forgets those whose
// time is long over.
func (s *State) avoiding(m *member) bool {
	any := false
	keep := m.rx.avoids[:0]
	for _, a := range m.rx.avoids {
		if s.now < a.until+120*Second {
			keep = append(keep, a)
			any = any || s.now < a.until
		}
	}
	m.rx.avoids = keep
	s.setPicky(m, any)
	return any
}

// choosePiece picks the candidate with fewest copies, ties at random: ties by
// index would make everybody fetch the same piece. When nothing is rare, or
// nobody else wants the blob, it picks inside a window behind the first piece
// that m misses, so that its client gets the prefix soon.
func (s *State) choosePiece(m *member, cand bitset) int {
	b := m.b
	fewest, ties := b.fewest(cand, 0, b.n)
	from, end := 0, b.n
	if len(b.wanters) == 1 {
		return cand.next(0)
	}
	if int(fewest)+b.full >= s.cfg.RareCopies {
		from = cand.next(0)
		end = min(from+s.cfg.Window, b.n)
		fewest, ties = b.fewest(cand, from, end)
	}
	skip := s.rng.IntN(ties)
	for w := from >> 6; w < words(end); w++ {
		for x := cand[w] & after(w, from) &^ after(w, end); x != 0; x &= x - 1 {
			p := w<<6 + bits.TrailingZeros64(x)
			if b.copies[p] != fewest {
				continue
			}
			if skip == 0 {
				return p
			}
			skip--
		}
	}
	return cand.next(0)
}

// fewest is the lowest count of copies among the candidates in [from, end), and
// how many have it.
func (b *swarm) fewest(cand bitset, from, end int) (fewest int32, ties int) {
	fewest = 1<<31 - 1
	for w := from >> 6; w < words(end); w++ {
		for x := cand[w] & after(w, from) &^ after(w, end); x != 0; x &= x - 1 {
			switch c := b.copies[w<<6+bits.TrailingZeros64(x)]; {
			case c < fewest:
				fewest, ties = c, 1
			case c == fewest:
				ties++
			}
		}
	}
	return fewest, max(ties, 1)
}

// chooseHolder picks who serves piece p to m: the nearest, then a node before
// a seed, then the one with most free slots, then the least complete. It
// compares a bounded number, from a random place on.
func (s *State) chooseHolder(m *member, p int) *member {
	b := m.b
	var best *member
	var bestRank rank
	found, enough := 0, s.cfg.HolderSample
	if m.n.region != "" || m.n.zone != "" || m.n.rack != "" {
		enough *= 8
	}
	start := 0
	if len(b.spares) > 1 {
		start = s.rng.IntN(len(b.spares))
	}
	for i := range b.spares {
		at := start + i
		if at >= len(b.spares) {
			at -= len(b.spares)
		}
		h := b.spares[at]
		if !h.has(p) || h == m || len(m.rx.avoids) > 0 && s.avoids(m.rx.avoids, h.n) {
			continue
		}
		if r := s.rank(m.n, h); best == nil || r.before(bestRank) {
			best, bestRank = h, r
		}
		if found++; found >= enough || found >= s.cfg.HolderSample && bestRank.far == 0 {
			break
		}
	}
	return best
}

// rank orders holders; lower is better, fields before others.
type rank struct{ far, seed, busy, held int }

func (r rank) before(o rank) bool {
	switch {
	case r.far != o.far:
		return r.far < o.far
	case r.seed != o.seed:
		return r.seed < o.seed
	case r.busy != o.busy:
		return r.busy < o.busy
	}
	return r.held < o.held
}

func (s *State) rank(n *node, h *member) rank {
	r := rank{far: distance(n, h.n), busy: len(h.n.up) - h.n.upEnding - s.uploads(h.n), held: h.held}
	if h.n.seed {
		r.seed = 1
	}
	return r
}

// distance is 0 in the same rack, 1 in the same zone, 2 in the same region, 3
// elsewhere or where nothing is known. Names of racks count within their zone,
// those of zones within their region.
func distance(a, b *node) int {
	switch {
	case a.region != b.region || a.region == "" && a.zone == "" && a.rack == "":
		return 3
	case a.zone != b.zone || a.zone == "" && a.rack == "":
		return 2
	case a.rack != b.rack || a.rack == "":
		return 1
	}
	return 0
}

// chooseRun extends piece p to a run of consecutive candidates that h holds.
func (s *State) chooseRun(m *member, h *member, cand bitset, p int) blob.Run {
	b := m.b
	most := min(int(s.cfg.LeaseBytes/b.layout.PieceLength()), s.cfg.LeasePieces)
	if len(b.wanters) > 4 {
		most = min(most, b.n/s.cfg.SwarmLeases)
	}
	if m.n.expiries > 0 {
		most = 1
	}
	most = max(most, 1)
	group := p - p%most
	first, end := p, p+1
	for first > group && cand.has(first-1) && h.has(first-1) {
		first--
	}
	for end < min(group+most, b.n) && cand.has(end) && h.has(end) {
		end++
	}
	return blob.Run{First: first, Count: end - first}
}

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
		if b.full > 0 {
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
		// One node that says so may lie; two show that the links do.
		b := m.b
		if !slices.Contains(b.doubts, m.n.id) {
			b.doubts = append(b.doubts, m.n.id)
		}
		if len(b.doubts) > 1 {
			s.revoke(b, m)
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
