package core

import (
	"fmt"
	"slices"
)

// failing is what failing and rapid.T have in common here.
type failing interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// checkState counts everything anew, the dumb way, and compares; and it looks
// for receivers that wait although somebody could serve them.
func checkState(t failing, s *State) {
	t.Helper()
	for _, n := range s.nodes {
		if n == nil {
			continue
		}
		up := n.upMost
		if !n.seed { // it may have read an origin when they were given
			up = max(up, min(2*up, readerSlots))
		}
		if len(n.up)-n.upFree > up || len(n.down)-n.downFree > n.downMost || n.upFree > n.upMost || n.downFree > n.downMost {
			t.Fatalf("%s: %d of %d upload and %d of %d download slots", n.id, len(n.up), n.upSlots, len(n.down), n.downSlots)
		}
		if spare := !n.barred && len(n.up)-n.upFree < s.uploads(n); spare != n.spare {
			t.Fatalf("%s: spare %v, want %v", n.id, n.spare, spare)
		}
		reading := 0
		for i, l := range n.down {
			if l.m.n != n || int(l.atDown) != i || l.id == 0 {
				t.Fatalf("%s: lease %d is misplaced", n.id, l.id)
			}
			if l.host != nil {
				reading++
			}
		}
		if reading != n.reading {
			t.Fatalf("%s: reading %d, want %d", n.id, n.reading, reading)
		}
		for i, l := range n.up {
			if l.holder != n || int(l.atUp) != i {
				t.Fatalf("%s: lease %d from it is misplaced", n.id, l.id)
			}
		}
	}
	if len(s.dirty)+len(s.touched)+len(s.loose) > 0 || s.unpark {
		t.Fatal("work is left over")
	}
	for _, b := range s.swarms {
		if b != nil {
			checkSwarm(t, s, b)
		}
	}
	running := 0
	hosts := map[*host]int{}
	for _, l := range s.leases.slots {
		if l.id != 0 {
			running++
			if l.host != nil {
				hosts[l.host]++
			}
		}
	}
	if running != s.leases.running {
		t.Fatalf("%d leases run, counted %d", running, s.leases.running)
	}
	for h, n := range hosts {
		if n != h.running || n > s.cfg.HostLeases || s.hosts[h.name] != h {
			t.Fatalf("host %s: %d origin leases, counted %d, limit %d", h.name, n, h.running, s.cfg.HostLeases)
		}
	}
}

func checkSwarm(t failing, s *State, b *swarm) {
	t.Helper()
	if len(b.members) == 0 {
		t.Fatalf("%s: nobody is in it, yet it is known", b.digest)
	}
	for i, m := range b.members {
		if m.b != b || int(m.atSwarm) != i || s.members[pair{m.n.handle, b.handle}] != m {
			t.Fatalf("%s: %s is misplaced", b.digest, m.n.id)
		}
		if m.rx == nil && m.held == 0 && !m.revoked {
			t.Fatalf("%s: %s neither holds nor wants", b.digest, m.n.id)
		}
		if m.have != nil && m.have.size() != m.held || m.full && m.held != b.n {
			t.Fatalf("%s: %s holds %d, counted %d", b.digest, m.n.id, m.have.size(), m.held)
		}
	}
	if b.active == nil {
		return
	}
	if len(b.wanters) == 0 && b.running == 0 && s.now > b.idleSince+s.cfg.IdleTime+Second && b.idleSince > 0 {
		t.Fatalf("%s: idle for long, yet active", b.digest)
	}
	checkCounts(t, b)
	checkSeats(t, s, b)
	checkWaiting(t, s, b)
}

// checkSeats compares what seats say of members with what these say of themselves.
func checkSeats(t failing, s *State, b *swarm) {
	t.Helper()
	taken := len(b.free)
	for _, m := range b.members {
		taken++
		seat := b.seats.seats[m.seat]
		if seat.member != m || seat.node != m.n.handle || int(seat.held) != m.held {
			t.Fatalf("%s: %s sits wrong", b.digest, m.n.id)
		}
		if load := 4*(len(m.n.up)-m.n.upFree-s.uploads(m.n)) + min(m.n.upFree, 3); int(s.loads[seat.node]) != load {
			t.Fatalf("%s: load %d, counted %d", m.n.id, load, s.loads[seat.node])
		}
		w, bit := int(m.seat>>6), uint64(1)<<(m.seat&63)
		if m.full != (b.wholes.word(w)&bit != 0) {
			t.Fatalf("%s: %s is whole %v", b.digest, m.n.id, m.full)
		}
		if queued := m.rx != nil && m.rx.queued; queued != (m.site.queue.waiting.word(w)&bit != 0) {
			t.Fatalf("%s: %s is queued %v", b.digest, m.n.id, queued)
		}
		for i, tally := range m.tallies {
			if m.offered != (tally.seats.word(w)&bit != 0) {
				t.Fatalf("%s: %s is offered %v in tally %d", b.digest, m.n.id, m.offered, i)
			}
		}
		for p := range b.n {
			if held := b.holders[p].word(w)&bit != 0; held != m.has(p) && !m.full {
				t.Fatalf("%s: %s holds piece %d: %v", b.digest, m.n.id, p, m.has(p))
			}
			if pending := m.rx != nil && m.rx.pend.has(p); pending != (b.pending[p].word(w)&bit != 0) {
				t.Fatalf("%s: piece %d is on its way to %s: %v", b.digest, p, m.n.id, pending)
			}
		}
	}
	if taken != len(b.seats.seats) {
		t.Fatalf("%s: %d seats taken or free of %d", b.digest, taken, len(b.seats.seats))
	}
}

func checkCounts(t failing, b *swarm) {
	t.Helper()
	running := 0
	hold, need := make([]int, b.n), make([]int, b.n)
	for _, m := range b.members {
		if counted := m.held > 0 && !m.n.barred && m.hushed == 0; counted != m.counted || m.offered != (counted && m.n.spare) {
			t.Fatalf("%s: %s counted %v offered %v, want %v %v", b.digest, m.n.id, m.counted, m.offered, counted, counted && m.n.spare)
		}
		missing, lack := 0, 0
		for p := range b.n {
			if m.counted && !m.full && m.has(p) {
				hold[p]++
			}
			if m.rx == nil {
				continue
			}
			if m.rx.pend.has(p) && m.has(p) {
				t.Fatalf("%s: %s has piece %d pending and got", b.digest, m.n.id, p)
			}
			if m.rx.wants(p) && !m.has(p) {
				missing++
				if !m.rx.pend.has(p) {
					lack++
					need[p]++
				}
			}
		}
		if m.rx != nil {
			running += m.rx.leases
			if m.rx.missing != missing || m.rx.lack != lack {
				t.Fatalf("%s: %s misses %d lacks %d, counted %d %d", b.digest, m.n.id, missing, lack, m.rx.missing, m.rx.lack)
			}
			if m.rx.wanting && missing == 0 {
				t.Fatalf("%s: %s wants nothing any more, and waits", b.digest, m.n.id)
			}
		}
	}
	if running != b.running {
		t.Fatalf("%s: running %d, counted %d", b.digest, running, b.running)
	}
	checkTally(t, b, "nodes", b.nodes, func(m *member) bool { return !feeds(m) && !m.n.lags })
	checkTally(t, b, "laggards", b.laggards, func(m *member) bool { return m.n.lags && !feeds(m) })
	checkTally(t, b, "seeds", b.seeds, feeds)
	for at, tally := range b.places {
		checkTally(t, b, fmt.Sprint(at), tally, func(m *member) bool {
			n := m.n
			return !feeds(m) && !n.lags && n.region == at.region && (at.zone == "" || n.zone == at.zone) && (at.rack == "" || n.rack == at.rack)
		})
	}
	for p := range b.n {
		if hold[p] != b.hold.of(p) || need[p] != b.need.of(p) ||
			b.held.has(p) != (hold[p] > 0) || b.needed.has(p) != (need[p] > 0) {
			t.Fatalf("%s piece %d: hold %d need %d, counted %d %d", b.digest, p, hold[p], need[p], b.hold.of(p), b.need.of(p))
		}
		if b.proved.has(p) != b.chain.Proves(p) || p < b.front != (p < b.n && provedUpTo(b, p)) {
			t.Fatalf("%s piece %d: proved %v front %d", b.digest, p, b.proved.has(p), b.front)
		}
	}
}

// feeds tells whether m brings the crowd what no other has.
func feeds(m *member) bool { return m.n.seed || m == m.b.reader }

// checkTally counts a place of a swarm anew.
func checkTally(t failing, b *swarm, name string, counted *tally, within func(*member) bool) {
	t.Helper()
	full, fullSpare, spares := 0, 0, 0
	copies, spare := make([]int, b.n), make([]int, b.n)
	for _, m := range b.members {
		if !within(m) {
			continue
		}
		if m.offered {
			spares++
			if i := slices.Index(m.tallies, counted); i < 0 || counted.spares[m.atSpare[i]] != m {
				t.Fatalf("%s %s: %s is misplaced among those with a free slot", b.digest, name, m.n.id)
			}
		}
		switch {
		case m.counted && m.full:
			full++
			if m.offered {
				fullSpare++
			}
		case m.counted:
			for p := range b.n {
				if m.has(p) {
					copies[p]++
					if m.offered {
						spare[p]++
					}
				}
			}
		}
		for p := range b.n {
			if m.rx != nil && m.rx.pend.has(p) {
				copies[p]++
			}
		}
	}
	if full != counted.full || fullSpare != counted.fullSpare || spares != len(counted.spares) {
		t.Fatalf("%s %s: full %d spare %d of %d, counted %d %d of %d", b.digest, name, full, fullSpare, spares, counted.full, counted.fullSpare, len(counted.spares))
	}
	for p := range b.n {
		if copies[p] != counted.copies.of(p) || spare[p] != counted.spare.of(p) ||
			counted.known.has(p) != (copies[p] > 0) || counted.avail.has(p) != (spare[p] > 0) {
			t.Fatalf("%s %s piece %d: copies %d spare %d, counted %d %d", b.digest, name, p, copies[p], spare[p], counted.copies.of(p), counted.spare.of(p))
		}
	}
}

func provedUpTo(b *swarm, p int) bool {
	for q := range p + 1 {
		if !b.chain.Proves(q) {
			return false
		}
	}
	return true
}

// checkWaiting looks for who waits for nothing.
func checkWaiting(t failing, s *State, b *swarm) {
	t.Helper()
	queued := 0
	for _, st := range b.sites {
		if st.live || !st.stale || len(st.retry) > 0 {
			t.Fatalf("%s: a site has work left over", b.digest)
		}
		for m := st.queue.first(); m != nil; m = st.queue.after(m) {
			if m.site != st {
				t.Fatalf("%s: %s is in the queue of another site", b.digest, m.n.id)
			}
			queued++
			if queued > len(b.members) {
				t.Fatalf("%s: the queue is a circle", b.digest)
			}
		}
	}
	for _, m := range b.members {
		rx := m.rx
		if rx == nil {
			continue
		}
		ready := rx.wanting && rx.lack > 0 && m.n.canRun() && s.now >= rx.until
		if ready != rx.queued && s.now != rx.until {
			t.Fatalf("%s: %s ready %v, queued %v", b.digest, m.n.id, ready, rx.queued)
		}
		if rx.queued {
			queued--
		}
		// Who avoids somebody, or waits for what is about to come near, is woken by a
		// timer or by the end of its own lease.
		if !ready || !rx.queued || rx.picky || rx.thirst > s.now || (len(m.site.levels) > 1 || s.pace.factor > 1 || b.scarce) && rx.leases > 0 {
			continue
		}
		for _, h := range b.members {
			if !h.offered || s.avoids(rx.avoids, h.n) {
				continue
			}
			for p := range b.n {
				if (h.n.lags || m.n.lags && b.scarce) && b.nodes.taken(p>>6)&bit(p) != 0 || m.n.lags && b.scarce {
					continue
				}
				if rx.wants(p) && !m.has(p) && !rx.pend.has(p) && h.has(p) && b.chain.Proves(p) {
					t.Fatalf("%s: %s waits for piece %d, which %s could serve now (scarce %v, leases %d, thirst %d at %d)", b.digest, m.n.id, p, h.n.id, b.scarce, rx.leases, rx.thirst, s.now)
				}
			}
		}
	}
	if queued != 0 {
		t.Fatalf("%s: the queue has %d too many", b.digest, queued)
	}
	for p := range b.n {
		if b.need.of(p) == 0 || b.reading.has(p) || b.holds(p) && b.proved.has(p) {
			continue
		}
		_, timed := s.timers.first()
		if b.reader == nil && b.asked == nil && !b.parked {
			t.Fatalf("%s: piece %d is needed and nobody has it, yet nobody is to read it", b.digest, p)
		}
		if !timed && s.leases.running == 0 {
			t.Fatalf("%s: piece %d waits for an origin, but nothing will wake it", b.digest, p)
		}
	}
}

// holds tells whether a counted member holds piece p.
func (b *swarm) holds(p int) bool { return b.whole() > 0 || b.held.has(p) }
