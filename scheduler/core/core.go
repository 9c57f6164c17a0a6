// Package core is the scheduler's mind: a pure machine that turns what nodes
// tell (Attend, Want, Have, Done, …) into decisions about who reads which
// pieces from which source.
//
// It keeps no clock, does no I/O and starts no goroutine; time comes with each
// event and randomness from a seed, so the same events give the same decisions,
// byte for byte. The server package drives it from gRPC streams; simulations
// and stories (testdata) drive it from a list. DESIGN.md beside this file has
// the state table and says how to write a story and a policy.
//
// It verifies no bytes and needs no trust in nodes: what a node says wrongly
// costs time, never a wrong byte, because receivers verify every piece.
package core

import (
	"math/rand/v2"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// State is everything a scheduler knows. It is soft: a new State learns it
// again from the nodes. One goroutine at a time may use it.
type State struct {
	cfg    Config
	policy policy
	rng    *rand.Rand
	now    Time
	begun  Time // when the first node came
	out    []Decision

	nodes    []*node // by handle, nil where free
	loads    []int32 // by handle: how busy its uplink is, less is idler: see respare
	freeIDs  []int32
	byID     map[string]*node
	seeds    []*node
	serial   uint64 // counts attendances, so that a reused handle is no old acquaintance
	blame    blame
	machines map[string]*machine
	absent   []*machine // with no node, remembered for what they said

	swarms    []*swarm // by handle, nil where free
	freeSwarm []int32
	byDigest  map[blob.Digest]*swarm
	members   map[pair]*member
	pieces    int // of all active swarms

	leases    leases
	usualRate int64 // bytes per second of leases from holders, a mean
	usualTrip Time  // how much longer a lease takes here than at its node, a mean
	pace      pace
	hosts     map[string]*host
	timers    timers
	swept     Time
	wanted    uint64 // counts wants, so that the first comes first
	served    uint64 // counts leases, so that swarms take turns
	readers   int    // nodes that read an origin
	dirty     []*swarm
	touched   []*swarm
	parked    []*swarm // wait for a reader of their origin
	unpark    bool
	loose     []*member // may be members no longer
	set       bitset    // scratch of the policy
	cand      bitset    // of the decision at hand
	alt       bitset    // those of them that nodes can serve
	ids       []string
	stats     counters
}

type pair struct{ node, swarm int32 }

// New returns a State that knows nobody. Equal seeds make equal choices. cfg is
// taken as Config documents; values below zero count as zero.
func New(cfg Config, seed uint64) *State {
	rng := rand.New(rand.NewPCG(seed, 0x64616d73656c666c))
	cfg = cfg.withDefaults()
	return &State{
		cfg:      cfg,
		policy:   policyNamed(cfg.Policy),
		pace:     pace{most: int(Time(cfg.LeaseRate) * paceWindow / Second), factor: 1},
		rng:      rng,
		byID:     map[string]*node{},
		byDigest: map[blob.Digest]*swarm{},
		members:  map[pair]*member{},
		hosts:    map[string]*host{},
		leases:   newLeases(rng.Uint64()),
	}
}

// Apply takes one event and appends what it decides to out, in the order in
// which decisions must reach a node. now never runs backwards: an earlier time
// than before counts as the same.
func (s *State) Apply(now Time, e Event, out []Decision) []Decision {
	s.now = max(s.now, now)
	s.out = out
	s.expire()
	var asked *member
	switch e := e.(type) {
	case *Attend:
		s.attend(e)
	case *Leave:
		s.leave(e.Node)
	case *Want:
		asked = s.want(e)
	case *Unwant:
		s.unwant(e)
	case *Have:
		s.have(e)
	case *Drop:
		s.drop(e)
	case *Ending:
		s.ending(e)
	case *Slots:
		s.slotsNow(e)
	case *Done:
		s.done(e)
	case *Failed:
		s.failed(e)
	}
	s.settle()
	if asked != nil && asked.wanting() && asked.rx.leases == 0 {
		s.decide(Decision{Kind: Queued, To: asked.n.id, Digest: asked.b.digest})
	}
	out, s.out = s.out, nil
	return out
}

func (s *State) decide(d Decision) { s.out = append(s.out, d) }

// Due is when the State next wants a Tick, if no event comes before; false when
// it waits for nothing but events.
func (s *State) Due() (Time, bool) {
	at, ok := s.timers.first()
	if s.leases.running > 0 {
		if sweep := s.swept + s.cfg.SweepTime; !ok || sweep < at {
			at, ok = sweep, true
		}
	}
	return at, ok
}

// Running is how many leases the node has that it has not ended yet.
func (s *State) Running(node string) int {
	if n := s.byID[node]; n != nil {
		return len(n.down)
	}
	return 0
}

// Stats are counts of what a State holds now.
type Stats struct {
	Nodes, Seeds int // that attend
	Gone         int // of both, those that others could not reach
	Quarantined  int // of both, those that sent bad pieces
	Blobs        int // known
	Wants        int // not yet fulfilled
	Leases       int // running
	OriginLeases int // of those, that read an origin
	Parked       int // blobs that wait for a reader of their origin
}

// Stats counts; it costs nothing to speak of.
func (s *State) Stats() Stats {
	return Stats{
		Nodes: len(s.byID) - len(s.seeds), Seeds: len(s.seeds),
		Gone: s.stats.gone, Quarantined: s.stats.quarantined,
		Blobs: len(s.swarms) - len(s.freeSwarm), Wants: s.stats.wants,
		Leases: s.leases.running, OriginLeases: s.stats.origin, Parked: len(s.parked),
	}
}

type counters struct{ gone, quarantined, wants, origin, hedged int }

// settle acts on everything that the event changed: origins first, so that
// peer leases cannot keep a reader's slots from it for ever, then the swarms
// whose pieces or slots became free, the longest unserved first.
func (s *State) settle() {
	for s.unpark || len(s.touched)+len(s.dirty)+len(s.loose) > 0 {
		s.seekOrigins()
		for len(s.dirty) > 0 {
			at := 0
			for i, b := range s.dirty {
				if u, best := b.urgency(), s.dirty[at].urgency(); u < best || u == best && b.served < s.dirty[at].served {
					at = i
				}
			}
			if !s.serve(s.dirty[at]) {
				s.clean(at)
			}
		}
		s.forgetEmpty()
	}
}

func (s *State) seekOrigins() {
	if s.unpark {
		s.unpark = false
		for _, b := range s.parked {
			b.parked = false
			s.touch(b)
		}
		s.parked = s.parked[:0]
	}
	for i := 0; i < len(s.touched); i++ {
		b := s.touched[i]
		b.touched = false
		if b.active != nil {
			s.seek(b)
		}
		if b.active != nil {
			s.ration(b)
		}
	}
	s.touched = s.touched[:0]
}

// touch has the swarm's origin looked at before Apply returns.
func (s *State) touch(b *swarm) {
	if !b.touched {
		b.touched = true
		s.touched = append(s.touched, b)
	}
}

// mark has the swarm's waiting receivers looked at before Apply returns.
func (s *State) mark(b *swarm) {
	if !b.dirty {
		b.dirty = true
		s.dirty = append(s.dirty, b)
	}
}

// clean takes the swarm at place i off the dirty list: nobody in it can be
// served any more.
func (s *State) clean(i int) {
	b := s.dirty[i]
	b.dirty = false
	if b.active != nil {
		b.live = b.live[:0]
	}
	s.dirty = append(s.dirty[:i], s.dirty[i+1:]...)
}
