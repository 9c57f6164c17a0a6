package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// member is one scheduler that this node attends, or tries to. The set's mutex
// guards its fields but the first group, which never changes.
type member struct {
	client *client
	stop   context.CancelFunc
	done   chan struct{} // closed when it is attended no more
	first  chan struct{} // closed at its first welcome

	Holder               // the ID is "" until a starting point has answered
	attendance int       // counts its streams
	joined     bool      // it attends
	mute       bool      // it does, and does not answer
	lost       time.Time // since when it does not attend, or answer; zero if it always has
	spoken     bool      // this stream has brought the word below
	word       []Holder
	leases     map[uint64]*lease // of this attendance, by its own IDs
	told       Slots
	gone       bool // it has left the set
}

// answers tells whether this node attends the scheduler, and it answers.
func (m *member) answers() bool { return m.joined && !m.mute }

// attended is one stream of a member's.
type attended struct {
	s    *Set
	m    *member
	conn Conn
}

var (
	errTwice = errors.New("this scheduler is attended already, under another address")
	errLeft  = errors.New("this scheduler has left the cluster")
	errNoID  = errors.New("the scheduler has not shown who it is")
)

// welcome implements listener.
func (a *attended) welcome(ctx context.Context, release string) error {
	s, m := a.s, a.m
	id := a.conn.ID(ctx)
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	other := s.members[id]
	switch {
	case id == "" || m.ID != "" && m.ID != id:
		s.mu.Unlock()
		return errNoID
	case m.gone:
		s.mu.Unlock()
		return errLeft
	case other != nil && other != m:
		s.mu.Unlock()
		return errTwice
	}
	m.ID = id
	s.members[id] = m
	m.attendance++
	m.joined, m.mute, m.lost, m.spoken, m.word, m.leases = true, false, time.Time{}, false, nil, map[uint64]*lease{}
	m.told = s.budget()
	address := m.Address
	moved, _ := s.spread(id)
	s.mu.Unlock()
	s.outages.welcomed(Holder{ID: id, Address: address}, release)
	s.handler.Handle(Joined{Concerns: moved})
	if m.attendance == 1 {
		close(m.first)
	}
	poke(s.changed)
	return nil
}

// hear implements listener.
func (a *attended) hear(d Decision) {
	a.s.turn.Lock()
	defer a.s.turn.Unlock()
	if a.m.joined { // written under turn, too
		a.s.handle(a.m, d)
	}
}

// regard implements listener. A scheduler that is silent keeps its stream and its
// leases, and is told on as long as nobody else has its blobs; no task waits for it.
func (a *attended) regard() {
	s, m := a.s, a.m
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	mute := m.client.silent()
	if !m.joined || mute == m.mute {
		s.mu.Unlock()
		return
	}
	m.mute = mute
	if mute {
		decisions := s.lose(m)
		s.mu.Unlock()
		s.log.Warn("a scheduler is silent; this node helps itself until it speaks again", zap.String("scheduler", m.ID), zap.String("address", m.Address))
		for _, d := range decisions {
			s.handler.Handle(d)
		}
		poke(s.changed)
		return
	}
	before, fresh := s.live, m.ID
	told := slices.Contains(before, m.ID)
	if told {
		fresh = ""
	}
	m.lost = time.Time{}
	moved, any := s.spread(fresh)
	s.mu.Unlock()
	s.log.Info("a scheduler speaks again", zap.String("scheduler", m.ID), zap.String("address", m.Address))
	if any {
		s.handler.Handle(Joined{Concerns: moved})
	}
	if told {
		s.handler.Handle(Spoke{Concerns: ownedBy(m.ID, before)})
	}
	poke(s.changed)
}

// lose notes that nobody waits for m any more, and returns what the handler is to hear
// of it. The caller holds mu.
func (s *Set) lose(m *member) []Decision {
	concerns := ownedBy(m.ID, s.live)
	known := !m.lost.IsZero() // it was silent before
	if !known {
		m.lost = time.Now()
	}
	moved, any := s.spread("")
	if !s.answering {
		concerns = func(blob.Digest) bool { return true } // also of those that were in their grace
	}
	var out []Decision
	if !known {
		out = append(out, Lost{Concerns: concerns})
	}
	if any {
		out = append(out, Joined{Concerns: moved})
	}
	return out
}

// start attends a scheduler until its stop is called; until the first stream ends
// without a welcome, where it is only tried.
func (s *Set) start(ctx context.Context, to Holder, try bool) *member {
	ctx, stop := context.WithCancel(ctx)
	m := &member{
		Holder: to, stop: stop, done: make(chan struct{}), first: make(chan struct{}),
		client: newClient(s.cfg, s.log),
	}
	go func() {
		defer close(m.done)
		defer stop()
		s.run(ctx, m, try)
	}()
	return m
}

func (s *Set) run(ctx context.Context, m *member, try bool) {
	wait := backoff{}
	for {
		started := time.Now()
		err := s.once(ctx, m)
		s.left(m)
		if ctx.Err() != nil {
			return
		}
		wait.lasted(time.Since(started))
		s.failed(m, err)
		select {
		case <-m.first:
		default:
			if try {
				return
			}
		}
		if !wait.sleep(ctx) {
			return
		}
	}
}

// failed notes that m cannot be attended, and why.
func (s *Set) failed(m *member, err error) {
	s.mu.Lock()
	to := m.Holder
	s.mu.Unlock()
	s.outages.failed(to, err)
}

func (s *Set) once(ctx context.Context, m *member) error {
	s.mu.Lock()
	to := m.Holder
	s.mu.Unlock()
	conn, err := s.connect.Connect(to)
	if err != nil {
		return fmt.Errorf("scheduler %s: %w", to.Address, err)
	}
	defer func() { _ = conn.Close() }() // every call on it has ended
	if err := m.client.once(ctx, conn, &attended{s, m, conn}); err != nil {
		return fmt.Errorf("scheduler %s: %w", to.Address, err)
	}
	return nil
}

// left notes that m's stream has ended.
func (s *Set) left(m *member) {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	if !m.joined {
		s.mu.Unlock()
		return
	}
	s.forget(m)
	decisions := s.lose(m)
	s.mu.Unlock()
	for _, d := range decisions {
		s.handler.Handle(d)
	}
	poke(s.changed)
}

// forget ends what m's stream carried. The caller holds mu.
func (s *Set) forget(m *member) {
	s.recall(func(l *lease) bool { return l.from == m })
	m.joined, m.mute, m.leases, m.spoken, m.word = false, false, nil, false, nil
}

// follow brings the members to the set that they themselves name, and tells whether
// this node attends any of them.
func (s *Set) follow(ctx context.Context) bool {
	s.turn.Lock()
	s.mu.Lock()
	set := s.vote()
	var leaving []*member
	for id, m := range s.members {
		if _, ok := set[id]; !ok && set != nil {
			s.forget(m)
			m.gone = true
			delete(s.members, id)
			leaving = append(leaving, m)
		}
	}
	for id, address := range set {
		if m := s.members[id]; m != nil {
			m.Address = address
			continue
		}
		s.members[id] = s.start(ctx, Holder{ID: id, Address: address}, false)
	}
	moved, any := s.spread("")
	s.settle()
	attends := false
	for _, m := range s.members {
		attends = attends || m.joined
	}
	s.mu.Unlock()
	if any {
		s.handler.Handle(Joined{Concerns: moved})
	}
	s.turn.Unlock()
	end(leaving)
	return attends
}

// vote is the set of schedulers, by ID: those that answer and count themselves in,
// and whom at least half of those name that answer and have named anybody. What they say
// of each other is of those that this node does not hear itself: one that has just
// started may know of itself alone, one that is cut off may still count those that are
// gone, and where gossip fails each of them is alone and serves all the same. nil:
// nobody has said anything. The caller holds mu.
func (s *Set) vote() map[string]string {
	voters, votes, address := 0, map[string]int{}, map[string]string{}
	answers := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(s.members)) {
		m := s.members[id]
		if !m.spoken || m.mute {
			continue
		}
		voters++
		word := m.word
		if len(word) == 0 {
			word = []Holder{m.Holder}
		}
		for _, h := range word {
			votes[h.ID]++
			address[h.ID] = h.Address
			answers[h.ID] = answers[h.ID] || h.ID == id
		}
	}
	if voters == 0 {
		return nil
	}
	s.known = s.known[:0]
	for _, id := range slices.Sorted(maps.Keys(votes)) {
		if !answers[id] && 2*votes[id] < voters {
			delete(address, id)
			continue
		}
		s.known = append(s.known, Holder{ID: id, Address: address[id]})
	}
	return address
}

// end stops members and waits until they have.
func end(all []*member) {
	for _, m := range all {
		m.stop()
	}
	for _, m := range all {
		<-m.done
	}
}

// abandon attends nobody any more.
func (s *Set) abandon() {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.members))
	s.mu.Unlock()
	end(all)
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.members)
}

// sleepUntilChanged returns when members may have changed, or when grace or settling
// is over; false when ctx ends.
func (s *Set) sleepUntilChanged(ctx context.Context) bool {
	timer := time.NewTimer(s.nextLook())
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-s.changed:
	case <-timer.C:
	}
	return true
}

func (s *Set) nextLook() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := time.Hour
	if s.before != nil {
		left = max(time.Until(s.moved.Add(settling)), 0)
	}
	for _, m := range s.members {
		if over := time.Until(m.lost.Add(grace)); !m.answers() && over > 0 {
			left = min(left, over)
		}
	}
	return left
}

// seek attends one scheduler: of those that it knew, or a starting point. It returns
// when one has welcomed this node; false when ctx ends.
func (s *Set) seek(ctx context.Context, wait *backoff) bool {
	for limit := welcomeFirst; ; limit = min(2*limit, welcomeMost) {
		if !wait.sleep(ctx) {
			return false
		}
		for _, to := range s.candidates() {
			if s.try(ctx, to, limit) {
				return true
			}
			if ctx.Err() != nil {
				return false
			}
		}
		wait.more()
	}
}

// try attends one scheduler, and tells whether it has welcomed this node in time.
func (s *Set) try(ctx context.Context, to Holder, limit time.Duration) bool {
	m := s.start(ctx, to, true)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-m.first:
		return true
	case <-m.done:
		return false
	case <-timer.C:
	}
	s.outages.failed(to, fmt.Errorf("it does not welcome this node within %v", limit))
	end([]*member{m})
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.members) // it may have welcomed at the last moment
	return false
}
