package control

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// leases are all that this node runs, or will, under IDs of its own: those of two
// schedulers may be equal.
type leases struct {
	last    uint64
	byID    map[uint64]*lease
	waiting []*lease // oldest first
}

// lease is one of them.
type lease struct {
	Lease             // the ID is this node's
	wire       uint64 // the scheduler's ID
	from       *member
	attendance int // of from's, in which it came
	ending     bool
	waits      bool
}

// current tells whether who gave the lease still knows of it.
func (l *lease) current() bool { return l.from.joined && l.from.attendance == l.attendance }

// running is how many have been handed on. The caller holds the set's mutex.
func (ls *leases) running() int { return len(ls.byID) - len(ls.waiting) }

// leased hands a lease on, now or when there is room: one scheduler keeps to the
// slots, and gives more on purpose only; several may give too many at one moment.
// The caller holds turn.
func (s *Set) leased(m *member, d Lease) {
	s.mu.Lock()
	s.leases.last++
	l := &lease{Lease: d, wire: d.ID, from: m, attendance: m.attendance}
	l.ID, l.RoundTrip = s.leases.last, m.client.roundTrip()
	foreign := s.owner(d.Digest) != m.ID
	for _, o := range m.leases {
		foreign = foreign && o.Digest != d.Digest
	}
	if l.waits = s.full() || len(s.leases.waiting) > 0; l.waits {
		s.leases.waiting = append(s.leases.waiting, l)
	}
	s.leases.byID[l.ID], m.leases[l.wire] = l, l
	if s.several() {
		poke(s.slots)
	}
	s.mu.Unlock()
	if foreign { // it has not been told of this blob
		s.answer(m, d.Digest)
	}
	if !l.waits {
		s.handler.Handle(l.Lease)
	}
}

// full tells whether a lease must wait. The caller holds mu.
func (s *Set) full() bool {
	return s.several() && s.leases.running() >= 2*s.budget().Download
}

// startWaiting hands on leases that wait as others end, until ctx ends.
func (s *Set) startWaiting(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.freed:
		}
		for s.startNext() {
		}
	}
}

func (s *Set) startNext() bool {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	if len(s.leases.waiting) == 0 || s.full() {
		s.mu.Unlock()
		return false
	}
	l := s.leases.waiting[0]
	s.leases.waiting = s.leases.waiting[1:]
	l.waits = false
	l.RoundTrip = l.from.client.roundTrip()
	s.mu.Unlock()
	s.handler.Handle(l.Lease)
	return true
}

// cancelled takes one of m's leases back: it returns the ID under which it runs, or
// ends it here where it still waits. The caller holds turn.
func (s *Set) cancelled(m *member, wire uint64) (id uint64, running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := m.leases[wire]
	if l == nil {
		return 0, false
	}
	if l.waits {
		s.recall(func(o *lease) bool { return o == l })
		return 0, false
	}
	return l.ID, true
}

// recall ends leases that still wait. The caller holds mu.
func (s *Set) recall(those func(*lease) bool) {
	var back []*lease
	s.leases.waiting = slices.DeleteFunc(s.leases.waiting, func(l *lease) bool {
		if those(l) {
			back = append(back, l)
			return true
		}
		return false
	})
	for _, l := range back {
		s.ended(l.ID, func(wire uint64) Event { return Failed{Lease: wire, Reason: damselflyv1.Failed_REASON_CANCELLED} })
	}
}

// ended forgets a lease and tells who gave it. The caller holds mu.
func (s *Set) ended(id uint64, e func(wire uint64) Event) {
	l := s.leases.byID[id]
	if l == nil {
		return
	}
	delete(s.leases.byID, id)
	if l.current() {
		delete(l.from.leases, l.wire)
		s.to(l.from.ID, e(l.wire))
	}
	if s.several() {
		poke(s.slots)
	}
	if len(s.leases.waiting) > 0 {
		poke(s.freed)
	}
}

// ending tells who gave a lease that its slots are free, once. The caller holds mu.
func (s *Set) ending(id uint64) {
	l := s.leases.byID[id]
	if l == nil || l.ending {
		return
	}
	l.ending = true
	if l.current() {
		s.to(l.from.ID, Ending{Lease: l.wire})
	}
	if s.several() {
		poke(s.slots)
	}
}

// budget is all slots of this node.
func (s *Set) budget() Slots {
	return Slots{Upload: int(s.cfg.Attend.GetUploadSlots()), Download: int(s.cfg.Attend.GetDownloadSlots())}
}

// tellSlots tells each scheduler what it may lease, when that has changed, until ctx
// ends.
func (s *Set) tellSlots(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C: // the last words are slotsEvery old
		}
		select {
		case <-ctx.Done():
			return
		case <-s.slots:
		}
		s.share()
		timer.Reset(slotsEvery)
	}
}

// share tells the slots once. Each scheduler gets what the leases of the others
// leave, and one at least: with none it could never begin, and two schedulers with
// none each would wait for each other.
func (s *Set) share() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.members)) {
		m := s.members[id]
		if left := s.remaining(m); m.joined && left != m.told {
			m.told = left
			s.to(id, left)
		}
	}
}

// remaining is what the other schedulers leave to m. The caller holds mu.
func (s *Set) remaining(m *member) Slots {
	left := s.budget()
	if !s.several() {
		return left
	}
	for _, l := range s.leases.byID {
		if !l.ending && (l.from != m || !l.current()) {
			left.Download--
		}
	}
	for d, n := range s.uploads {
		if s.owner(d) != m.ID {
			left.Upload -= n
		}
	}
	left.Upload, left.Download = max(left.Upload, 1), max(left.Download, 1)
	return left
}

// Sending notes that another node reads pieces of a blob from this one, until done
// is called.
func (s *Set) Sending(d blob.Digest) (done func()) {
	add := func(n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.uploads[d] += n; s.uploads[d] == 0 {
			delete(s.uploads, d)
		}
		if s.several() {
			poke(s.slots)
		}
	}
	add(1)
	return func() { add(-1) }
}
