package core

import (
	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// lease is a decision that runs: m reads run from holder, or from the origin.
type lease struct {
	id     uint64 // 0 while unused
	m      *member
	holder *node // nil when the origin is read, or when the holder has left
	host   *host // of an origin lease
	run    blob.Run
	atUp   int32 // places in node.up, node.down
	atDown int32
	// It takes no slot at an end where it does not fill one: the rest is on its way,
	// or the other end is far slower.
	freeUp, freeDown bool
	hung             bool // nothing has come for too long
	late             bool // past hedge: its pieces may come from elsewhere too
	ahead            bool // reads an origin where links are not known yet
	rescue           bool // reads an origin for m alone, because it can reach no holder

	since    Time
	moved    Time // when it last brought a piece; 0: never
	hedge    Time // a point; 0 when it is not hedged
	deadline Time // a point

	// Origin leases.
	origin  *Origin
	behalf  *member // whose want gave the origin
	pieces  int     // that came since since
	given   Time    // when it began
	said    Time    // when its node was heard of it last
	brought bool    // a piece has come
}

// leases keeps running leases in slots. An ID is the slot below a number that
// starts at random, so that a lease of a scheduler before this one is not taken
// for one of ours.
type leases struct {
	slots   []*lease
	free    []int32
	number  uint64
	running int
}

const slotBits = 24

func newLeases(random uint64) leases {
	return leases{number: random >> (slotBits + 2)}
}

// new returns a fresh lease, nil when all slots are taken.
func (t *leases) new() *lease {
	var slot int32
	if k := len(t.free); k > 0 {
		slot = t.free[k-1]
		t.free = t.free[:k-1]
	} else {
		if len(t.slots) >= 1<<slotBits {
			return nil
		}
		slot = int32(len(t.slots))
		t.slots = append(t.slots, &lease{})
	}
	t.number++
	t.running++
	l := t.slots[slot]
	*l = lease{id: t.number<<slotBits | uint64(slot)}
	return l
}

func (t *leases) drop(l *lease) {
	t.free = append(t.free, int32(l.id&(1<<slotBits-1)))
	t.running--
	*l = lease{}
}

// find returns the lease of that ID if node n runs it.
func (t *leases) find(id uint64, n *node) *lease {
	slot := id & (1<<slotBits - 1)
	if slot >= uint64(len(t.slots)) || n == nil {
		return nil
	}
	l := t.slots[slot]
	if l.id != id || l.id == 0 || l.m.n != n {
		return nil
	}
	return l
}

// start books a lease for m; the caller fills in what is special to its kind
// and decides it. nil means that there is no slot.
func (s *State) start(m *member, run blob.Run) *lease {
	l := s.leases.new()
	if l == nil {
		return nil
	}
	n, b, rx := m.n, m.b, s.receive(m)
	l.m, l.run, l.since, l.given, l.said = m, run, s.now, s.now, s.now
	l.atDown, l.atUp = int32(len(n.down)), -1
	n.down = append(n.down, l)
	rx.leases++
	rx.thirst = 0
	b.running++
	s.served++
	b.served = s.served
	for p := run.First; p < run.End(); p++ {
		if m.has(p) || rx.pend.has(p) {
			continue
		}
		rx.pend.set(p)
		b.pending[p].put(m.seat)
		m.addCopies(p>>6, bit(p))
		if rx.wants(p) {
			rx.lack--
			b.needLess(p>>6, bit(p))
		}
	}
	s.requeue(m)
	if !n.canRun() {
		for _, w := range n.wants {
			s.enqueue(w, false)
		}
	}
	return l
}

// end takes a lease out of every count and tells its node if it should stop.
// What it has not brought may be leased again.
func (s *State) end(l *lease, cancel bool) {
	m, n, b := l.m, l.m.n, l.m.b
	rx := m.rx
	if cancel {
		s.decide(Decision{Kind: Cancel, To: n.id, Digest: b.digest, ID: l.id})
	}
	again := false
	if l.late {
		rx.late--
	} else {
		again = s.unbook(m, l.run)
	}
	rx.leases--
	b.running--
	couldRun := n.canRun()
	n.down = cutAt(n.down, l.atDown, func(o *lease, i int32) { o.atDown = i })
	if l.freeDown {
		n.downFree--
	}
	s.detach(l)
	if l.host != nil {
		s.endOrigin(l)
	}
	s.leases.drop(l)
	s.touch(b)
	if again || rx.leases == 0 && rx.queued {
		s.enqueue(m, true) // with nothing to do, it may look farther
	}
	if !couldRun {
		s.freed(n)
	}
	s.loosen(m)
}

// freed looks at who can use a download slot of n that has become free.
func (s *State) freed(n *node) {
	if !n.canRun() {
		return
	}
	for _, w := range n.wants {
		s.enqueue(w, true)
		if w.b.parked && w.b.forSlot {
			s.touch(w.b)
		}
	}
	s.unpark = s.unpark || n.seed
}

// unbook takes back that leases will bring the pieces of a run, and tells whether
// m still wants any of them.
func (s *State) unbook(m *member, run blob.Run) (again bool) {
	rx := m.rx
	for p := run.First; p < run.End(); p++ {
		if !rx.pend.has(p) {
			continue
		}
		rx.pend.clear(p)
		m.b.pending[p].cut(m.seat)
		s.dropCopies(m, p>>6, bit(p))
		if rx.wants(p) && !m.has(p) {
			rx.lack++
			m.b.needMore(p>>6, bit(p))
			again = true
		}
	}
	return again
}

// detach frees the holder's upload slot.
func (s *State) detach(l *lease) {
	h := l.holder
	if h == nil {
		return
	}
	l.holder = nil
	if l.freeUp {
		h.upFree--
	}
	h.up = cutAt(h.up, l.atUp, func(o *lease, i int32) { o.atUp = i })
	s.respare(h)
}

// enqueue puts m among the waiting receivers of its site, or takes it out, as is
// right now. again has it looked at for every piece, because something about m
// itself has changed.
func (s *State) enqueue(m *member, again bool) {
	rx, st := m.rx, m.site
	if st == nil {
		return
	}
	q := &st.queue
	ready := rx.wanting && rx.lack > 0 && m.n.canRun() && s.now >= rx.until
	u := m.urgency()
	if ready && rx.queued && rx.urgency == u && rx.bucket == q.bucketOf(rx.missing) {
		if again {
			s.again(m)
		}
		return
	}
	again = again || ready && !rx.queued
	if rx.queued {
		if st.cursor == m {
			st.cursor = q.after(m)
		}
		q.remove(m)
	}
	if ready {
		q.push(m, u)
		if again {
			s.again(m)
		}
	}
}

// requeue has m, which has just been served, wait behind its equals.
func (s *State) requeue(m *member) {
	if m.rx.queued {
		if m.site.cursor == m {
			m.site.cursor = m.site.queue.after(m)
		}
		m.site.queue.remove(m)
		m.site.queue.push(m, m.rx.urgency)
	}
	s.enqueue(m, false)
}

// done ends a lease that brought its whole run.
func (s *State) done(e *Done) {
	n := s.byID[e.Node]
	l := s.leases.find(e.Lease, n)
	if l == nil {
		return
	}
	m, run, h := l.m, l.run, l.holder
	m.revoked = false
	could := n.canRun()
	if e.Bytes > 0 && e.Time > 0 && l.host == nil {
		rate := int64(float64(e.Bytes) / float64(e.Time) * float64(Second))
		n.downRate = learn(n.downRate, rate)
		n.downSeen = min(n.downSeen+1, trials)
		s.usualRate += (rate - s.usualRate) / 64
		s.usualTrip += (max(s.now-l.since-e.Time, 0) - s.usualTrip) / 64
		s.classify(n)
		if h != nil {
			h.upRate = learn(h.upRate, rate)
			h.upSeen = min(h.upSeen+1, trials)
			s.classify(h)
		}
	}
	n.expiries = 0
	m.rx.fails, m.rx.pauses = 0, 0
	if h != nil {
		h.gave = s.now
		s.serves(h, n)
		h.unreached, h.goneTimes = h.unreached[:0], 0
		if !h.quarantined {
			s.unbar(h)
		}
		s.pardon(m, h)
	}
	if l.host != nil {
		s.progress(m)
		l.host.strikes = 0
	}
	for p := run.First; p < run.End(); p++ {
		s.gain(m, p)
	}
	if l.ahead && !m.b.proved.has(run.First) {
		// It read, and told no links: the same again would bring the same.
		s.originFailed(l, Unspecified, 0, 0, false)
	} else {
		s.end(l, false)
	}
	s.rerun(n, could)
	s.cancelBeaten(m)
	s.after(m)
}

// learn follows what an end can do: up fast, because a lease can be slow for the
// other end's sake, and down slowly.
func learn(old, rate int64) int64 {
	rate = max(rate, 1)
	switch {
	case old == 0:
		return rate
	case rate > old:
		return old + (rate-old)/2
	}
	return max(old-(old-rate)/8, 1)
}

// span is how long a lease of so many bytes from h to n may take.
func (s *State) span(h, n *node, bytes int64) Time {
	rate := n.downRate
	if h.upRate > 0 && (rate == 0 || h.upRate < rate) {
		rate = h.upRate
	}
	if rate == 0 {
		rate = s.cfg.MinRate
	} else {
		rate = max(rate/4, 1)
	}
	// A receiver slower than all that gets more time with every lease that it
	// let run out, or it would never end one.
	return min((s.cfg.LeaseTime+seconds(bytes, rate))<<min(n.expiries, 8), 3600*Second)
}

// seconds is how long bytes take at rate bytes per second.
func seconds(bytes, rate int64) Time {
	return Time(float64(bytes) / float64(max(rate, 1)) * float64(Second))
}

// failed ends a lease that its node could not finish.
func (s *State) failed(e *Failed) {
	l := s.leases.find(e.Lease, s.byID[e.Node])
	if l != nil {
		l.m.revoked = false
	}
	switch {
	case l == nil:
	case l.host != nil:
		s.originFailed(l, e.Reason, e.Status, e.RetryAfter, false)
	default:
		s.holderFailed(l, e.Reason, false)
	}
}

// holderFailed ends a lease from a holder and draws the conclusion, so that the
// same cannot be decided again at once.
func (s *State) holderFailed(l *lease, reason Reason, cancel bool) {
	m, h, run := l.m, l.holder, l.run
	rx, by := m.rx, m.n
	s.end(l, cancel)
	if reason != Busy {
		rx.fails++
	}
	switch reason {
	case StoreError, Cancelled, Unspecified, OriginError:
		s.pause(m, 50*Millisecond)
	}
	if h != nil {
		s.blameHolder(m, by, h, run, reason, cancel)
	}
	if rx.fails >= s.cfg.Failures {
		s.refuse(m, "too many leases of this blob have failed on this node")
	}
	s.enqueue(m, true)
}

func (s *State) blameHolder(m *member, by, h *node, run blob.Run, reason Reason, hangs bool) {
	rx := m.rx
	var a *avoided
	most := 60 * Second
	switch reason {
	case Busy:
		rx.avoids, a = s.avoid(rx.avoids, h, s.cfg.BusyTime, Second)
		a.hard = a.steps > 8
	case Missing:
		rx.avoids, a = s.avoid(rx.avoids, h, 100*Millisecond, most)
		a.hard = !s.missing(m, h, run)
	case BadPiece, BadDigest:
		rx.avoids, a = s.avoid(rx.avoids, h, s.cfg.Quarantine, s.cfg.Quarantine)
		a.hard, a.bad = true, true
		s.strike(h, by)
	case Unreachable:
		rx.avoids, a = s.avoid(rx.avoids, h, s.cfg.AvoidTime, most)
		a.hard = a.steps > 1 || hangs && h.upRate == 0
		s.missed(h, by)
	default:
		return
	}
	rx.picky = true
	s.wakeMember(m, a.until)
}

// pause keeps m from leases for a time that doubles with each in a row.
func (s *State) pause(m *member, first Time) {
	m.rx.until = s.now + min(first<<min(m.rx.pauses, 16), 10*Second)
	m.rx.pauses = min(m.rx.pauses+1, 254)
	s.wakeMember(m, m.rx.until)
	s.enqueue(m, false)
}
