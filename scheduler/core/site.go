package core

// site is the members of a swarm that stand in one rack, and the queue of those
// of them that wait. Members that name no place stand in one site too.
type site struct {
	b      *swarm
	levels []*tally // of all nodes, the region, the zone, the rack; without those that have no name

	queue  queue
	fresh  bitset    // pieces that came within reach since the event at hand
	stale  bool      // fresh is empty
	cursor *member   // who is tried next for them
	retry  []*member // to be looked at for every piece, not only the fresh
	live   bool      // on active.live
}

// maxLevels is all nodes, a region, a zone and a rack.
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
	st := &site{b: b, levels: []*tally{b.nodes}, fresh: newBitset(b.n), stale: true}
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
	b.seeds.sites = append(b.seeds.sites, st)
	b.laggards.sites = append(b.laggards.sites, st)
	b.sites[at] = st
	return st
}

// settle puts m into its site, and says where it is counted.
func (b *swarm) settle(m *member) {
	m.site = b.siteOf(m.n.place)
	m.tallies = m.site.levels
	switch {
	case m.n.seed || m == b.reader:
		m.tallies = b.ofSeeds
	case m.n.lags:
		m.tallies = b.ofLaggards
	}
}

// reach is word w of the pieces that a member of the site could get now: from its
// own rack, zone or region; and from beyond what nobody there has or is about to
// get, so that each piece crosses a border once. Seeds stand beyond all nodes, as does
// who reads the origin, as long as there are pieces that only they can bring in: each
// is sent once before any is sent twice. Laggards are asked for what no other node has
// or gets.
func (st *site) reach(w int) uint64 {
	open := st.b.proved[w]
	got := uint64(0)
	for i := len(st.levels) - 1; i >= 0; i-- {
		t := st.levels[i]
		got |= t.available(w) & open
		if i > 0 || st.b.scarce {
			open &^= t.taken(w)
		}
	}
	return got | st.b.seeds.available(w)&open | st.b.laggards.available(w)&open&^st.b.nodes.taken(w)
}

// anywhere is word w of the pieces that somebody could send now.
func (b *swarm) anywhere(w int) uint64 {
	return (b.nodes.available(w) | b.seeds.available(w) | b.laggards.available(w)) & b.proved[w]
}

// ration looks whether there are needed pieces that no node has or is about to get, and
// that a seed has or the reader of the origin is just bringing. When there are none
// left, what seeds hold comes within reach of everybody; when there are some, it leaves it.
func (s *State) ration(b *swarm) {
	scarce := false
	for w, x := range b.needed {
		if x &^= b.nodes.taken(w); x != 0 && (x&b.held[w] != 0 || b.whole() > 0 || s.comes(b)) {
			scarce = true
			break
		}
	}
	was := b.scarce
	b.scarce = scarce
	if was == scarce {
		return
	}
	for _, st := range b.seeds.sites {
		if was {
			for w := range st.fresh {
				st.fresh[w] |= ones(w, b.n) & b.seeds.available(w)
			}
			s.stir(st)
			continue
		}
		for m := st.queue.first(); m != nil; m = st.queue.after(m) {
			if m.rx.leases == 0 {
				s.again(m) // it may wait for a seed, but not for ever
			}
		}
	}
}

// comes tells whether an origin is read that sends. One that is stuck keeps nobody from
// what its reader has.
func (s *State) comes(b *swarm) bool {
	until := b.came + 10*s.cfg.NearTime
	if b.reader == nil || s.now >= until {
		return false
	}
	if s.now >= b.cameWake {
		b.cameWake = until
		s.wakeSwarm(b, until)
	}
	return true
}

// news notes that the pieces x of word w may have come within reach of those who
// look into t.
func (s *State) news(b *swarm, t *tally, w int, x uint64) {
	if x &= b.needed[w]; x == 0 {
		return
	}
	for _, st := range t.sites {
		st.fresh[w] |= x
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
