package core

// node is one that attends.
type node struct {
	// What every lease touches stands together.
	handle           int32
	seed             bool
	spare            bool     // has a free upload slot, and counts
	lags             bool     // one of its rates is far below the usual
	barred           bool     // does not count as a holder: gone or quarantined
	feeds            bool     // reads an origin for a crowd, and is no seed
	up, down         []*lease // that read from it; that it runs
	upFree, downFree int      // of these, those that take no slot
	upSlots          int      // that may be leased now
	downSlots        int
	reading          int       // of down, those that read an origin
	upSeen, downSeen int8      // leases that the rates are from, up to trials
	upRate, downRate int64     // bytes per second, 0 while unknown
	recent           *member   // that it spoke of last
	serving          []*member // counted: what it holds in active swarms
	wants            []*member
	id               string
	address          string
	serial           uint64 // of its attendance; 0 once it has left
	firstUp          [4]*lease
	firstDown        [4]*lease
	firstServing     [2]*member
	firstWants       [2]*member

	place
	atSeeds          int32
	upMost, downMost int // slots that it attended with

	members      []*member
	wantedPieces int
	cost         int64 // of its members, in bytes
	expiries     uint8 // leases in a row that this receiver let run out

	quarantined bool
	barredUntil Time
	unreached   []string // machines that could not reach it, in a row
	goneTimes   uint8
	strikes     []string // names of machines that got bad pieces from it
	pleased     []string // and of machines that it has served well, since pleasedAt
	pleasedAt   Time
	machine     *machine
	gave        Time // when somebody got a piece from it last
}

func (s *State) attend(e *Attend) {
	if e.Node == "" {
		return
	}
	s.leave(e.Node)
	if s.serial == 0 {
		s.begun = s.now
	}
	s.serial++
	n := &node{
		serial: s.serial, id: e.Node, address: e.Address, place: place{e.Region, e.Zone, e.Rack}, seed: e.Seed,
		upSlots:   s.slots(e.UploadSlots, s.cfg.UploadSlots),
		downSlots: s.slots(e.DownloadSlots, s.cfg.DownloadSlots),
	}
	n.machine = s.machineOf(e)
	n.upMost, n.downMost = n.upSlots, n.downSlots
	n.up, n.down, n.serving, n.wants = n.firstUp[:0], n.firstDown[:0], n.firstServing[:0], n.firstWants[:0]
	if k := len(s.freeIDs); k > 0 {
		n.handle = s.freeIDs[k-1]
		s.freeIDs = s.freeIDs[:k-1]
		s.nodes[n.handle] = n
	} else {
		n.handle = int32(len(s.nodes))
		s.nodes = append(s.nodes, n)
		s.loads = append(s.loads, 0)
	}
	s.byID[n.id] = n
	if n.seed {
		n.atSeeds = int32(len(s.seeds))
		s.seeds = append(s.seeds, n)
		s.unpark = true
	}
	s.recall(n)
	s.respare(n)
}

func (s *State) slots(claimed, standard int) int {
	if claimed <= 0 {
		claimed = standard
	}
	return min(claimed, s.cfg.MaxSlots)
}

// slotsNow changes how many of n's slots may be leased.
func (s *State) slotsNow(e *Slots) {
	n := s.byID[e.Node]
	if n == nil {
		return
	}
	couldRun := n.canRun()
	n.upSlots = min(max(e.Upload, 0), n.upMost)
	n.downSlots = min(max(e.Download, 0), n.downMost)
	s.respare(n)
	s.rerun(n, couldRun)
}

// canRun tells whether n has a free download slot.
func (n *node) canRun() bool { return len(n.down)-n.downFree < n.runs() }

// runs is how many leases n may run now. What a node claims is believed once it has
// ended one; and who lets leases run out gets one at a time.
func (n *node) runs() int {
	switch {
	case n.seed:
		return n.downSlots
	case n.expiries > 1:
		return min(n.downSlots, 1)
	case n.downSeen == 0:
		return min(n.downSlots, untried)
	}
	return n.downSlots
}

// untried is how many leases a node may run that has not ended any.
const untried = 2

// rerun looks what follows of it that n may run more leases than before, or fewer.
func (s *State) rerun(n *node, could bool) {
	switch can := n.canRun(); {
	case can && !could:
		s.freed(n)
	case !can && could:
		for _, w := range n.wants {
			s.enqueue(w, false)
		}
	}
}

// leave forgets a node. Who reads from it goes on for a while: often only its
// stream to the scheduler broke.
func (s *State) leave(id string) {
	n := s.byID[id]
	if n == nil {
		return
	}
	s.remember(n)
	for len(n.up) > 0 {
		l := n.up[len(n.up)-1]
		s.detach(l)
		l.deadline = min(l.deadline, s.now+s.cfg.DetachedTime)
	}
	for len(n.members) > 0 {
		m := n.members[len(n.members)-1]
		s.discard(m)
		m.rx = nil
		s.removeMember(m)
	}
	switch {
	case n.quarantined:
		s.stats.quarantined--
	case n.barred:
		s.stats.gone--
	}
	if n.seed {
		s.seeds = cutAt(s.seeds, n.atSeeds, func(o *node, i int32) { o.atSeeds = i })
		s.unpark = true
	}
	delete(s.byID, id)
	s.leaveMachine(n.machine)
	s.nodes[n.handle] = nil
	s.freeIDs = append(s.freeIDs, n.handle)
	n.serial = 0
}

// uploads is how many leases may read from n now.
func (s *State) uploads(n *node) int {
	if n.reading == 0 {
		return n.upSlots
	}
	if s.cfg.ReaderUploadSlots > 0 {
		return min(n.upSlots, s.cfg.ReaderUploadSlots)
	}
	if n.feeds {
		return min(2*n.upSlots, max(readerSlots, n.upSlots))
	}
	return min(n.upSlots, max(2, n.upMost*3/4))
}

// readerSlots is how many slots a node has at least that is no seed and reads an origin for
// a crowd, though no more than twice its own: its line is full of what it reads, so what
// others ask of it comes late, and with two leases its uplink would idle for half of the
// time. It reads for a crowd where it is one of crowdOfReader nodes: where many read, one
// this layer and one that, all of them would send more slowly what each other waits for.
const (
	readerSlots   = 4
	crowdOfReader = 8
)

// respare looks whether n has a free upload slot, and if that changed, offers
// or withdraws all that it holds.
func (s *State) respare(n *node) {
	load := len(n.up) - n.upFree - s.uploads(n)
	// Leases that take no slot fill the uplink too, for a while.
	s.loads[n.handle] = int32(4*load + min(n.upFree, 3))
	spare := !n.barred && n.serial != 0 && load < 0
	if spare == n.spare {
		return
	}
	n.spare = spare
	for _, m := range n.serving {
		if spare {
			s.offer(m)
		} else {
			s.withdraw(m)
		}
	}
}

// bar stops counting n as a holder until a time, and as a reader for others.
// Leases from it go elsewhere at once if its bytes are bad; if it only seems to
// be gone, each ends by itself.
func (s *State) bar(n *node, until Time, quarantine bool) {
	if n.quarantined && !quarantine {
		return
	}
	switch {
	case quarantine && !n.quarantined:
		s.stats.quarantined++
		if n.barred {
			s.stats.gone--
		}
	case !quarantine && !n.barred:
		s.stats.gone++
	}
	n.barred, n.quarantined = true, quarantine
	n.barredUntil = max(n.barredUntil, until)
	s.wakeNode(n, n.barredUntil)
	s.respare(n)
	for len(n.serving) > 0 {
		s.uncount(n.serving[len(n.serving)-1])
	}
	for quarantine && len(n.up) > 0 {
		s.end(n.up[len(n.up)-1], true)
	}
	for i := len(n.down) - 1; i >= 0; i-- {
		if i < len(n.down) && n.down[i].host != nil && !n.down[i].rescue {
			s.endReader(n.down[i].m.b)
		}
	}
}

// unbar trusts n again.
func (s *State) unbar(n *node) {
	if !n.barred {
		return
	}
	if n.quarantined {
		s.stats.quarantined--
	} else {
		s.stats.gone--
	}
	n.barred, n.quarantined, n.barredUntil = false, false, 0
	n.unreached, n.strikes = n.unreached[:0], nil
	s.respare(n)
	for _, m := range n.members {
		s.count(m)
		if m.b.active != nil {
			s.touch(m.b)
		}
	}
}
