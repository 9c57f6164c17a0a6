package core

import "github.com/damselfly-p2p/damselfly/pkg/blob"

// A promise without progress: nobody's silence keeps others from the origin, or from
// another holder, for longer than it takes to notice.

const (
	// silenceRate is what the first piece of a lease comes at, at least, in bytes per
	// second, where no rate is known: so much time is added to Config.SilenceTime.
	silenceRate = 1 << 20
	// talkTime is how long who reads an origin and says that it waits for the origin may
	// bring nothing, before somebody else tries. Origins that take longer to answer are
	// asked twice, and have sent nothing by then.
	talkTime = 5 * Second
	// hushTime is how long a silent reader or holder is left out of a swarm at first.
	hushTime = 4 * Second
)

// quiet is how long who shall bring or send a piece of b may show nothing.
func (s *State) quiet(b *swarm) Time {
	return s.cfg.SilenceTime + seconds(b.layout.PieceLength(), silenceRate)
}

// heard notes that m, which reads the origin of its blob, is at it.
func (s *State) heard(m *member) {
	for _, l := range m.n.down {
		if l.m == m && l.host != nil {
			l.said = s.now
		}
	}
}

// silent tells whether the reader of an origin lease has shown no progress while others
// wait, and another could read. Each that is silent gives the next more time: slow
// readers and origins come to an end too.
func (s *State) silent(l *lease) bool {
	b := l.m.b
	most := s.originSpan(b)
	said := l.said+min(s.quiet(b)<<min(b.silences, 16), most) > s.now
	talks := l.brought || l.given+min(talkTime<<min(b.silences, 16), most) > s.now
	return !(said && talks) && !l.rescue && s.substitute(b, l.m.n)
}

// hushReader gives the origin to another reader.
func (s *State) hushReader(b *swarm) {
	b.silences++
	s.unfit(b, b.reader.n, hushTime)
	s.endReader(b)
	s.touch(b)
}

// unfit leaves n out when a reader of b's origin is looked for, for a time that doubles
// with each time in a row.
func (s *State) unfit(b *swarm, n *node, first Time) {
	var a *avoided
	b.unfit, a = s.avoid(b.unfit, n, first, 60*Second)
	s.wakeSwarm(b, a.until)
}

// substitute tells whether somebody but n could read b's origin: one who waits and
// names one, or a seed for that one.
func (s *State) substitute(b *swarm, n *node) bool {
	named := false
	for _, w := range b.wanters {
		if w.rx.origin == nil || s.now < w.rx.host.until {
			continue
		}
		named = true
		if w.n != n && !w.n.barred && !s.avoids(b.unfit, w.n) {
			return true
		}
	}
	for _, seed := range s.seeds {
		if named && seed != n && !seed.barred && !s.avoids(b.unfit, seed) && s.mayEnter(seed, b) {
			return true
		}
	}
	return false
}

// credit notes that what m says it has got came from the holders of its leases.
func (s *State) credit(m *member, e *Have) {
	for _, l := range m.n.down {
		if l.m != m || l.holder == nil || !e.Sealed && !touches(e.Runs, l.run) {
			continue
		}
		l.moved, l.holder.gave = s.now, s.now
		if o := s.members[pair{l.holder.handle, m.b.handle}]; o != nil && o.hushed > 0 {
			o.hushedTimes = 0
			s.unhush(o)
		}
	}
}

// touches tells whether one of the first runs has a piece of run. A Have of pieces that
// have just come has few.
func touches(runs []blob.Run, run blob.Run) bool {
	for _, r := range runs[:min(len(runs), 16)] {
		if r.First < run.End() && run.First < r.End() {
			return true
		}
	}
	return false
}

// hangs tells whether a holder sends nobody anything, the receiver of l among others,
// for longer than its line and the receiver's explain.
func (s *State) hangs(l *lease) bool {
	h, b := l.holder, l.m.b
	quiet := s.quiet(b)
	for _, rate := range [...]int64{l.m.n.downRate, h.upRate} {
		if rate > 0 {
			quiet = max(quiet, 4*seconds(b.layout.PieceLength(), rate))
		}
	}
	return !l.hung && s.now >= max(l.since, l.moved, h.gave)+quiet && s.substitute(b, h)
}

// hung lets the receiver of a lease that hangs help itself, by the origin if need be; the
// lease may still bring its pieces. Where receivers on two machines say so, the holder is
// hushed: one may want to see it so.
func (s *State) hung(l *lease) {
	m, h, by := l.m, l.holder, l.m.n.machine
	l.hung = true
	s.fresh(by)
	by.hung = voice(by.hung, h.id)
	o := s.members[pair{h.handle, m.b.handle}]
	switch {
	case o == nil || o.hushed > 0 || len(by.hung) >= s.cfg.Reports && len(by.hung) > len(by.served):
	case o.hungBy == "" || o.hungBy == by.name || s.now > o.hungAt+hushTime:
		o.hungBy, o.hungAt = by.name, s.now
	default:
		s.hush(o)
	}
	s.overtake(l)
	for i := range m.rx.avoids {
		if a := &m.rx.avoids[i]; a.node == h {
			a.hard = true
		}
	}
	s.enqueue(m, true)
}

// hush counts what o says it has as nowhere for a while: what it alone holds is read from
// the origin, by one for all.
func (s *State) hush(o *member) {
	o.hushed = s.now + hushTime<<min(o.hushedTimes, 4)
	o.hushedTimes = min(o.hushedTimes+1, 16)
	s.uncount(o)
	s.wakeMember(o, o.hushed)
	s.unfit(o.b, o.n, hushTime)
	if o.b.reader == o {
		s.endReader(o.b)
	}
}

// unhush counts again what m holds.
func (s *State) unhush(m *member) {
	m.hushed = 0
	s.count(m)
	s.touch(m.b)
}
