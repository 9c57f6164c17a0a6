package core

// site is the members of a swarm that stand in one rack, and the queue of those
// of them that wait. Members that name no place stand in one site too.
type site struct {
	b      *swarm
	levels []*tally // of the swarm, the region, the zone, the rack; without those that have no name

	queue  queue
	fresh  bitset    // pieces that came within reach since the event at hand
	stale  bool      // fresh is empty
	cursor *member   // who is tried next for them
	retry  []*member // to be looked at for every piece, not only the fresh
	live   bool      // on active.live
}

// maxLevels is the swarm, a region, a zone and a rack.
const maxLevels = 4

// place is where a node stands. Names of racks count within their zone, those of
// zones within their region.
type place struct{ region, zone, rack string }

// maxSitePieces bounds the counts that the places of one swarm need: members of
// further places count as standing nowhere.
const maxSitePieces = 4 << 20

// siteOf finds or makes the site of a place in an active swarm.
func (b *swarm) siteOf(at place) *site {
	if st := b.sites[at]; st != nil {
		return st
	}
	if at != (place{}) && len(b.places)*b.n > maxSitePieces {
		return b.siteOf(place{})
	}
	st := &site{b: b, levels: []*tally{&b.tally}, fresh: newBitset(b.n), stale: true}
	st.queue.init(b.n)
	upTo := place{}
	for i, name := range [...]string{at.region, at.zone, at.rack} {
		switch i {
		case 0:
			upTo.region = name
		case 1:
			upTo.zone = name
		case 2:
			upTo.rack = name
		}
		if name == "" {
			continue
		}
		t := b.places[upTo]
		if t == nil {
			t = newTally(b.n)
			b.places[upTo] = t
		}
		st.levels = append(st.levels, t)
	}
	for _, t := range st.levels {
		t.sites = append(t.sites, st)
	}
	b.sites[at] = st
	return st
}

// reach is word w of the pieces that a member of the site could get now: from its
// own rack, zone or region; and from beyond what nobody there has or is about to
// get, so that each piece crosses a border once.
func (st *site) reach(w int) uint64 {
	open := st.b.proved[w]
	got := uint64(0)
	for i := len(st.levels) - 1; i > 0; i-- {
		t := st.levels[i]
		got |= t.available(w) & open
		open &^= t.taken(w)
	}
	return got | st.levels[0].available(w)&open
}

// source is the nearest level that piece p can be got from; nil when there is
// none.
func (st *site) source(p int) *tally {
	for i := len(st.levels) - 1; i >= 0; i-- {
		if st.levels[i].has(p) {
			return st.levels[i]
		}
	}
	return nil
}

// news notes that piece p may have come within reach of those who stand in t.
func (s *State) news(b *swarm, t *tally, p int) {
	if b.need[p] == 0 {
		return
	}
	for _, st := range t.sites {
		st.fresh.set(p)
		s.stir(st)
	}
}

// stir has the site's fresh pieces looked at before Apply returns.
func (s *State) stir(st *site) {
	st.stale = false
	s.enliven(st)
}

func (s *State) enliven(st *site) {
	if !st.live {
		st.live = true
		st.b.live = append(st.b.live, st)
	}
	s.mark(st.b)
}

// rest notes that nobody in the site can be served any more.
func (st *site) rest() {
	st.live = false
	if !st.stale {
		clear(st.fresh)
		st.stale = true
	}
	st.cursor = nil
}

// again puts m on the retry list of its site.
func (s *State) again(m *member) {
	if !m.rx.retry {
		m.rx.retry = true
		m.site.retry = append(m.site.retry, m)
	}
	s.enliven(m.site)
}
