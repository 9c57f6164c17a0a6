package control

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/ring"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Config sets up a Set.
type Config struct {
	// Schedulers are the addresses, host:port, where a node that attends nobody
	// begins. One that answers is enough: it names the others.
	Schedulers []string
	// Attend introduces the node to each scheduler. Its slots are the budget that
	// all of them share.
	Attend *damselflyv1.Attend
	// Waiting tells whether this node waits for a decision: it is asked often and
	// must be cheap.
	Waiting func() bool
	// Remembered is what an earlier process of this node had been told. It is used as
	// long as no scheduler has said anything.
	Remembered Known
	// Learned hears what schedulers have told whenever that has changed; nil: nobody
	// does. It must not block.
	Learned func(Known)
	// Denials keeps what schedulers say of denied nodes; nil: nobody does.
	Denials Denials
}

// Known is who a node has been told of.
type Known struct {
	Schedulers []Holder
	Seeds      []Holder
}

// Denials is who knows which nodes are denied. It must not block.
type Denials interface {
	// Heard is the hash of what is known, as in Attend.
	Heard() []byte
	// Hear takes in what a scheduler says.
	Hear([]identity.Statement)
}

// Set is all schedulers of the cluster as one: a stream to each, the events of a
// blob to the one that it belongs to, and one budget of slots. Its methods are safe
// for concurrent use, never block, and may be called by the handler; events for a
// scheduler that this node does not attend are dropped, because the handler tells
// everything again on Joined; those for one that is silent wait on its stream.
//
// A blob belongs to its owner in the ring over those schedulers that answer this
// node, or did until a moment ago (grace). Want and Have go there; a Have also goes
// to a scheduler that leases pieces of the blob to this node though it is not its
// own, and a Drop to all. When a blob moves, the new owner hears at once what this node
// holds, and what it wants a moment later (settling), when it has heard of the holders.
// Then the old owner, if it lives, hears Unwant, so that it leases no more of it to us,
// while leases that run go on. It keeps our holdings: they are true, and as long as we
// tell it when they end (Drop), they can only help those who have not moved yet.
//
// Two nodes may see different sets for a moment, and then tell two schedulers of one
// blob. Neither the bytes nor the end of the pull depend on who decides: a lease is
// checked against the blob, and pieces against their links. Each scheduler leases
// what those know of it whom it has heard of. One that has heard of no holder sends
// a seed to the origin; a seed that holds the blob tells it so before it reads, which
// makes it a holder there too. So each of the two ends alone, at the cost of some
// pieces that come twice; and when the nodes agree again, who moved wants and has
// everything at the new owner within one message.
type Set struct {
	cfg     Config
	connect Connector
	log     *zap.Logger
	changed chan struct{} // who there is may have changed
	slots   chan struct{} // what each may lease may have changed
	freed   chan struct{} // a lease that waits may start
	outages *outages

	// turn is held while something that came from a scheduler has its effects. It
	// comes before mu, and the handler is called under it.
	turn    sync.Mutex
	handler Handler

	mu        sync.Mutex
	members   map[string]*member // by peer ID: whom this node attends, or tries to
	known     []Holder           // the last set that was told
	seeds     []Holder           // that a scheduler told of last
	live      []string           // over whom blobs are spread now: whom they are told to
	answering bool               // any of them answers
	away      time.Time          // since when none does, where that is so
	told      Known              // what Learned has heard last, or is remembered
	before    []string           // over whom they were until moved
	moved     time.Time
	wants     map[blob.Digest]string // whom they were told to
	pending   map[blob.Digest]Want   // of blobs that have just moved
	leases    leases
	uploads   map[blob.Digest]int
	asking    *asking
}

// asking is a scheduler that is told what this node holds of a blob, whosoever the
// blob is.
type asking struct {
	by     *member
	digest blob.Digest
}

// New returns a set that attends nobody yet.
func New(cfg Config, connect Connector, log *zap.Logger) *Set {
	cfg.Attend.Protocol = Protocol
	return &Set{
		cfg: cfg, connect: connect, log: log, outages: newOutages(log),
		changed: make(chan struct{}, 1), slots: make(chan struct{}, 1), freed: make(chan struct{}, 1),
		members: map[string]*member{}, wants: map[blob.Digest]string{}, pending: map[blob.Digest]Want{}, uploads: map[blob.Digest]int{},
		leases: leases{byID: map[uint64]*lease{}}, seeds: cfg.Remembered.Seeds, told: cfg.Remembered, away: time.Now(),
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Answering tells whether any scheduler attends and answers.
func (s *Set) Answering() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answering
}

// Away is since when no scheduler answers; ok is false while one does.
func (s *Set) Away() (since time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.away, !s.answering
}

// Addresses are those of the schedulers that this node was last told of.
func (s *Set) Addresses() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, h := range s.known {
		out = append(out, h.Address)
	}
	return out
}

// Seeds are those that a scheduler told of last. The slice is not to be changed.
func (s *Set) Seeds() []Holder {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seeds
}

// Joined tells whether there is a scheduler for a blob: one that attends and
// answers, or one that did until a moment ago while others do, to whom the blob
// moves if it stays away.
func (s *Set) Joined(d blob.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answering && s.owner(d) != ""
}

// owner is whose blob d is. The caller holds mu.
func (s *Set) owner(d blob.Digest) string {
	if len(s.live) == 1 {
		return s.live[0]
	}
	return ring.Owner(d.String(), s.live)
}

// Tell queues an event for the scheduler whose it is.
func (s *Set) Tell(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e := e.(type) {
	case Want:
		if _, ok := s.pending[e.Digest]; ok || s.justMoved(e.Digest) {
			s.pending[e.Digest] = e
			return
		}
		s.want(e)
	case Unwant:
		delete(s.pending, e.Digest)
		s.recall(func(l *lease) bool { return l.Digest == e.Digest })
		s.unwant(e.Digest, "")
	case Have:
		s.have(e)
	case Drop:
		for id := range s.members {
			s.to(id, e)
		}
	case Done:
		s.ended(e.Lease, func(wire uint64) Event { e.Lease = wire; return e })
	case Failed:
		s.ended(e.Lease, func(wire uint64) Event { e.Lease = wire; return e })
	case Ending:
		s.ending(e.Lease)
	}
}

// to tells one scheduler. The caller holds mu.
func (s *Set) to(id string, e Event) {
	if m := s.members[id]; m != nil && m.joined {
		m.client.tell(e)
	}
}

// want tells the owner of a blob. The caller holds mu.
func (s *Set) want(e Want) {
	owner := s.owner(e.Digest)
	s.unwant(e.Digest, owner)
	if owner != "" {
		s.wants[e.Digest] = owner
		s.to(owner, e)
	}
}

// justMoved tells whether a blob's new owner may not have heard of its holders. The
// caller holds mu.
func (s *Set) justMoved(d blob.Digest) bool {
	return s.before != nil && time.Since(s.moved) < settling && ring.Owner(d.String(), s.before) != s.owner(d)
}

// settle wants from the new owners what has moved a moment ago, and no more from the
// old. The caller holds mu.
func (s *Set) settle() {
	if s.before == nil || time.Since(s.moved) < settling {
		return
	}
	s.before = nil
	for d := range s.wants {
		s.unwant(d, s.owner(d))
	}
	for _, d := range slices.Sorted(maps.Keys(s.pending)) {
		s.want(s.pending[d])
	}
	clear(s.pending)
}

// unwant takes the want of a blob back unless it stays where it is. The caller holds
// mu.
func (s *Set) unwant(d blob.Digest, stays string) {
	if at, ok := s.wants[d]; ok && at != stays {
		delete(s.wants, d)
		s.to(at, Unwant{Digest: d})
	}
}

// have tells the owner of a blob, who leases pieces of it here, and who has asked.
// The caller holds mu.
func (s *Set) have(e Have) {
	owner := s.owner(e.Digest)
	s.to(owner, e)
	if e.Sealed {
		delete(s.wants, e.Digest)
		delete(s.pending, e.Digest)
	}
	if len(s.members) < 2 {
		return
	}
	var also []string
	if a := s.asking; a != nil && a.digest == e.Digest {
		also = append(also, a.by.ID)
	}
	for _, l := range s.leases.byID {
		if l.Digest == e.Digest && l.current() {
			also = append(also, l.from.ID)
		}
	}
	slices.Sort(also)
	for _, id := range slices.Compact(also) {
		if id != owner {
			s.to(id, e)
		}
	}
}

// handle gives one decision of m's to the handler. The caller holds turn.
func (s *Set) handle(m *member, d Decision) {
	switch d := d.(type) {
	case schedulers:
		s.mu.Lock()
		m.spoken, m.word, s.seeds = true, d.members, d.seeds
		s.mu.Unlock()
		poke(s.changed)
	case denials:
		if s.cfg.Denials != nil {
			s.cfg.Denials.Hear(d.statements)
		}
	case Lease:
		s.leased(m, d)
	case Cancel:
		if id, ok := s.cancelled(m, d.Lease); ok {
			s.handler.Handle(Cancel{Lease: id})
		}
	case Queued:
		if s.asked(m, d.Digest) {
			s.handler.Handle(d)
		}
	case Refuse:
		if s.asked(m, d.Digest) {
			s.handler.Handle(d)
		}
	case Revoke:
		s.mu.Lock()
		s.recall(func(l *lease) bool { return l.Digest == d.Digest })
		s.mu.Unlock()
		s.handler.Handle(d)
	case Tell:
		s.answer(m, d.Digest)
	}
}

// asked tells whether a blob is wanted from m, and not from another since.
func (s *Set) asked(m *member, d blob.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wants[d] == m.ID
}

// answer has m told what this node holds of a blob. The caller holds turn.
func (s *Set) answer(m *member, d blob.Digest) {
	s.mu.Lock()
	s.asking = &asking{m, d}
	s.mu.Unlock()
	s.handler.Handle(Tell{Digest: d})
	s.mu.Lock()
	s.asking = nil
	s.mu.Unlock()
}

// spread looks over whom blobs are spread now. It returns which blobs have another
// owner than before, or have fresh, who knows nothing, or not what was told lately. The
// caller holds mu.
func (s *Set) spread(fresh string) (moved func(blob.Digest) bool, any bool) {
	before, now, answered := s.live, time.Now(), s.answering
	s.live, s.answering = nil, false
	var attended []string
	for id, m := range s.members {
		if m.answers() || !m.lost.IsZero() && now.Sub(m.lost) < grace {
			s.live = append(s.live, id)
		}
		if m.joined {
			attended = append(attended, id)
		}
		s.answering = s.answering || m.answers()
	}
	if !s.answering { // those that are silent are told on
		s.live = attended
	}
	if answered && !s.answering {
		s.away = now
	}
	slices.Sort(s.live)
	after := s.live
	switch {
	case len(after) == 0: // everything is told again to whoever comes
		s.before = nil
		clear(s.wants)
		clear(s.pending)
	case len(before) > 0 && !slices.Equal(before, after):
		s.before, s.moved = before, now
	case fresh != "" && len(after) > 1: // it is back, and does not know
		s.before = slices.DeleteFunc(slices.Clone(after), func(id string) bool { return id == fresh })
		s.moved = now
	}
	if len(after) < 2 {
		poke(s.freed)
	}
	poke(s.slots)
	moved = func(d blob.Digest) bool {
		owner := ring.Owner(d.String(), after)
		return owner != "" && (owner == fresh || owner != ring.Owner(d.String(), before))
	}
	return moved, len(after) > 0 && (fresh != "" || !slices.Equal(before, after))
}

// several tells whether slots are shared. The caller holds mu.
func (s *Set) several() bool { return len(s.live) > 1 }

// Run attends schedulers until ctx ends, reconnecting with a jittered backoff, and
// gives decisions to h. It returns ctx's error.
func (s *Set) Run(ctx context.Context, h Handler) error {
	s.turn.Lock()
	s.handler = h
	s.turn.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { s.startWaiting(ctx) })
	wg.Go(func() { s.tellSlots(ctx) })
	defer s.abandon()
	wait := backoff{}
	for {
		if !s.seek(ctx, &wait) {
			return ctx.Err()
		}
		started := time.Now()
		for s.follow(ctx) {
			s.learn()
			if !s.sleepUntilChanged(ctx) {
				return ctx.Err()
			}
		}
		s.abandon()
		wait.lasted(time.Since(started))
	}
}
