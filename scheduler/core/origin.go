package core

import (
	"slices"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/ring"
)

// sourcing is how a swarm gets what no node holds.
type sourcing struct {
	reader   *member  // the one that reads the origin
	origins  []*lease // its origin leases
	running  int      // leases of the swarm, from holders too
	after    Time     // no origin lease before
	attempts int      // origin leases that failed in a row, bringing nothing
	unfit    []avoided
	refusals []refusal
	dripping []drip
	silences int  // readers that were silent in a row
	forSlot  bool // it waits, among others, for a download slot of who wants it
	adopted  bool // its nodes had pieces before any lease of ours

	asked      *member // asked for links
	askedSince Time
	askedUntil Time
	asks       int      // in a row, bringing none
	bad        int      // times that the links led to a wrong digest
	doubts     []string // machines for which the origin did not match the links
	doubtedAt  Time     // when the last of these found it
	accused    *accusation
	idleSince  Time
	idleWake   Time // when a timer looks whether it is still idle
}

// refusal counts the readers that an origin turned away.
type refusal struct {
	origin Origin
	seeds  int
	count  int
}

// maxRefusals bounds how many origins of one blob are remembered.
const maxRefusals = 64

// provedRun bounds an origin lease whose links all travel with it.
const provedRun = 4096

// seek looks for pieces of an active swarm that somebody needs and no node can
// serve, and has them read from the origin: the unproved ones in one run from
// the chain's front, the others, where holders were lost, run by run.
func (s *State) seek(b *swarm) {
	if len(b.wanters) == 0 {
		s.rest(b)
		return
	}
	blocked := false
	if end := b.unproved(); end > 0 && !s.ask(b) {
		blocked = !s.read(b, blob.Run{First: b.front, Count: end - b.front}, true)
	}
	for from := 0; !blocked; {
		run := b.hole(from)
		if run.Count == 0 {
			break
		}
		blocked = !s.read(b, run, false)
		from = run.End()
	}
	switch {
	case !blocked || b.active == nil:
		s.forgetParked(b)
	case !b.parked:
		b.parked = true
		s.parked = append(s.parked, b)
	}
}

func (s *State) forgetParked(b *swarm) {
	if b.parked {
		b.parked = false
		s.parked = slices.DeleteFunc(s.parked, func(o *swarm) bool { return o == b })
	}
}

// unproved is the end of what is needed and has no links yet; 0 when there is
// nothing, or when the reader is at it.
func (b *swarm) unproved() int {
	for _, l := range b.origins {
		if l.ahead {
			return 0
		}
	}
	for w := len(b.needed) - 1; w >= 0; w-- {
		if x := b.needed[w] &^ b.proved[w]; x != 0 {
			return bitset{x}.last() + w<<6 + 1
		}
	}
	return 0
}

// hole is the first run of pieces from place from on that are needed and
// proved, but that nobody holds or reads.
func (b *swarm) hole(from int) blob.Run {
	if b.whole() > 0 {
		return blob.Run{}
	}
	lost := func(p int) bool {
		return b.needed.has(p) && b.proved.has(p) && !b.held.has(p) && !b.reading.has(p)
	}
	for w := from >> 6; w < len(b.needed); w++ {
		x := b.needed[w] & b.proved[w] &^ b.held[w] &^ b.reading[w] & after(w, from)
		if x == 0 {
			continue
		}
		first := bitset{x}.next(0) + w<<6
		run := blob.Run{First: first}
		for p := first; p < b.n && run.Count < provedRun && lost(p); p++ {
			run.Count++
		}
		return run
	}
	return blob.Run{}
}

// adopt has a swarm that came here half way, from a scheduler that is gone, wait until
// its nodes have said what they hold: the origin was read for that before. Where this
// scheduler has just begun, they first have to come.
func (s *State) adopt(b *swarm) {
	if b.adopted || s.now > b.appeared+adoptTime {
		return
	}
	b.adopted = true
	b.after = max(b.after, s.now+s.cfg.TellTime, s.begun+s.cfg.ReturnTime)
	s.wakeSwarm(b, b.after)
	s.endReader(b)
}

// adoptTime is how long after a swarm became known nodes may come with parts of it.
const adoptTime = 3 * Second

// read starts an origin lease for run. It tells false when that must wait.
func (s *State) read(b *swarm, run blob.Run, ahead bool) bool {
	if s.now < b.after {
		return false
	}
	var reader *node
	var behalf *member
	if b.reader != nil {
		first := b.origins[0]
		reader, behalf = b.reader.n, first.behalf
		if s.closed(first.host) || !behalf.wanting() || behalf.rx.host != first.host || !reader.canRun() {
			return false
		}
	} else {
		var waits bool
		if reader, behalf, waits = s.choose(b); reader == nil {
			if !waits {
				s.refuseNeedy(b, "no node holds this blob, and there is no origin to read it from")
			}
			return false
		}
	}
	m := s.enter(reader, b.digest, b.layout.Size())
	if m == nil {
		return false
	}
	l := s.startOrigin(m, behalf, run)
	if l == nil {
		return false
	}
	l.ahead = ahead
	s.setReader(b, m)
	b.origins = append(b.origins, l)
	m.publishes = true
	for p := run.First; p < run.End(); p++ {
		if !m.has(p) {
			b.reading.set(p)
		}
	}
	s.decideOrigin(l)
	return true
}

// setReader notes who reads the origin, nil for nobody. Whoever does counts as a seed:
// what it reads is the crowd's only way to new pieces, and not to be sent twice while
// there are others.
func (s *State) setReader(b *swarm, m *member) {
	old := b.reader
	if old == m {
		return
	}
	b.reader, b.came = m, s.now
	for _, o := range [...]*member{old, m} {
		if o != nil && !o.n.seed {
			s.resettle(o)
		}
	}
}

// startOrigin books an origin lease on behalf of a want.
func (s *State) startOrigin(m, behalf *member, run blob.Run) *lease {
	l := s.start(m, run)
	if l == nil {
		return nil
	}
	l.host, l.origin, l.behalf = behalf.rx.host, behalf.rx.origin, behalf
	l.host.refs++
	l.host.running++
	l.deadline = s.now + s.originSpan(m.b)
	if m.n.reading++; m.n.reading == 1 {
		s.readers++
		m.n.feeds = !m.n.seed && s.readers*crowdOfReader <= len(s.byID)
	}
	s.stats.origin++
	s.respare(m.n)
	return l
}

func (s *State) decideOrigin(l *lease) {
	b, links := l.m.b, l.run.Count+1
	if l.ahead {
		links = 1
	}
	d := Decision{
		Kind: Lease, To: l.m.n.id, Digest: b.digest, ID: l.id, Size: b.layout.Size(), Run: l.run, Origin: l.origin,
		Deadline: s.originSpan(b), FirstLink: l.run.First, Links: b.chain.Links(l.run.First, links),
	}
	if l.origin.Private && l.behalf.n != l.m.n {
		d.OnBehalf = Peer{l.behalf.n.id, l.behalf.n.address}
	}
	s.decide(d)
}

func (s *State) originSpan(b *swarm) Time {
	return s.cfg.OriginTime + seconds(b.layout.PieceLength(), s.cfg.OriginRate)
}

// endOrigin takes an origin lease out of the counts that only those have.
func (s *State) endOrigin(l *lease) {
	b, n := l.m.b, l.m.n
	l.host.running--
	s.unrefHost(l.host)
	s.stats.origin--
	if n.reading--; n.reading == 0 {
		s.readers--
		n.feeds = false
	}
	s.respare(n)
	s.unpark = true
	if l.rescue {
		return
	}
	b.origins = slices.DeleteFunc(b.origins, func(o *lease) bool { return o == l })
	if len(b.origins) == 0 {
		s.setReader(b, nil)
	}
	for p := l.run.First; p < l.run.End(); p++ {
		b.reading.clear(p)
	}
}

// choose finds who reads the origin, and on behalf of whose want: for the
// first want that there is, the seed that the ring names among those that can,
// and without a seed the wanting node itself. waits tells that nobody can now,
// but somebody will.
func (s *State) choose(b *swarm) (reader *node, behalf *member, waits bool) {
	seed, seeds := s.chooseSeed(b)
	b.forSlot = false
	for _, w := range b.wanters {
		o := w.rx.origin
		switch {
		case o == nil:
			continue
		case s.closed(w.rx.host):
			waits = true
			continue
		}
		r := w.n
		if seeds && !b.direct(w) {
			r = seed
		} else if r.barred {
			continue
		} else if s.avoids(b.unfit, r) || !r.canRun() {
			r, b.forSlot = nil, true
		}
		if r == nil {
			waits = true
		} else if behalf == nil || b.goesBefore(w, behalf, s.now) {
			reader, behalf = r, w
		}
	}
	return reader, behalf, waits
}

// goesBefore tells whether the origin is read on behalf of w rather than of o: the
// first want first, but after those whose origin is faster.
func (b *swarm) goesBefore(w, o *member, now Time) bool {
	if slow, slower := b.drips(w.rx.host, now), b.drips(o.rx.host, now); slow != slower {
		return !slow
	}
	return w.rx.order < o.rx.order
}

// chooseSeed is the seed that reads b now, nil when all are busy; any tells
// whether there is one at all.
func (s *State) chooseSeed(b *swarm) (seed *node, any bool) {
	s.ids = s.ids[:0]
	for _, n := range s.seeds {
		if n.barred || s.avoids(b.unfit, n) || !s.mayEnter(n, b) {
			continue
		}
		any = true
		if n.canRun() {
			s.ids = append(s.ids, n.id)
		}
	}
	return s.byID[ring.Owner(string(b.digest), s.ids)], any
}

// mayEnter tells whether n can be made a member of b: it is one, or has room
// and knows the digest with no other size.
func (s *State) mayEnter(n *node, b *swarm) bool {
	if m := s.memberOf(n, b.digest); m != nil {
		return m.b == b
	}
	return n.cost+memberCost(b.n) <= s.cfg.MaxHoldings
}

// direct tells whether w must read the origin itself: a seed was turned away on
// its behalf, or would ask with no credential what a seed was refused before.
func (b *swarm) direct(w *member) bool {
	if w.rx.direct {
		return true
	}
	if w.rx.origin.Private {
		return false
	}
	for i := range b.refusals {
		if b.refusals[i].seeds > 0 && b.refusals[i].origin == *w.rx.origin {
			return true
		}
	}
	return false
}

// rest stops reading for nobody, unless most is done, and forgets the counts
// of a swarm that nobody has wanted for a while.
func (s *State) rest(b *swarm) {
	for i := len(b.origins) - 1; i >= 0; i-- {
		l := b.origins[i]
		missing := 0
		for p := l.run.First; p < l.run.End(); p++ {
			if !l.m.has(p) {
				missing++
			}
		}
		if missing*5 > l.run.Count {
			s.end(l, true)
		}
	}
	s.forgetParked(b)
	switch {
	case b.running == 0 && s.now >= b.idleSince+s.cfg.IdleTime:
		s.deactivate(b)
	case s.now >= b.idleWake:
		b.idleWake = b.idleSince + s.cfg.IdleTime
		if s.now >= b.idleWake { // leases run still
			b.idleWake = s.now + s.cfg.IdleTime
		}
		s.wakeSwarm(b, b.idleWake)
	}
}

// sweepOrigin gives an origin lease to the next reader when nothing comes, and to
// another origin, where somebody names one, when next to nothing does.
func (s *State) sweepOrigin(l *lease) {
	if s.now >= l.deadline {
		s.originFailed(l, Unreachable, 0, 0, true)
		return
	}
	if s.silent(l) {
		s.hushReader(l.m.b)
		return
	}
	if l.rescue || s.now < l.since+slowOrigin {
		return
	}
	b := l.m.b
	if bytes := int64(l.pieces) * b.layout.PieceLength(); bytes >= s.cfg.OriginRate*int64(slowOrigin/Second) {
		l.since, l.pieces = s.now, 0
		return
	}
	for _, w := range b.wanters {
		if h := w.rx.host; h != nil && h != l.host && !b.drips(h, s.now) && !s.closed(h) {
			b.dripping = append(b.dripping, drip{l.host.name, s.now + s.cfg.Quarantine})
			s.endReader(b)
			s.touch(b)
			return
		}
	}
	l.since, l.pieces = s.now, 0
}

// slowOrigin is the time in which an origin must have sent what Config.OriginRate
// says, where there is another.
const slowOrigin = 10 * Second

// drip is a host that sends next to nothing of a blob.
type drip struct {
	host  string
	until Time
}

// drips tells whether the host was found to send next to nothing of b.
func (b *swarm) drips(h *host, now Time) bool {
	for _, d := range b.dripping {
		if d.host == h.name && now < d.until {
			return true
		}
	}
	return false
}
