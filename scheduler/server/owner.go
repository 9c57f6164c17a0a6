package server

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// Run owns the state until ctx ends and returns ctx's error, or what the core
// failed of again and again. Streams are ended then. It is called once.
func (s *Server) Run(ctx context.Context) error {
	defer s.stop()
	if s.cfg.Trace != nil {
		s.trace = newTracer(s.cfg.Trace, s.log)
		defer s.trace.close()
	}
	s.trace.seed(s.cfg.Seed)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if err := s.wait(ctx, timer); err != nil {
			return err
		}
		if err := s.guard(s.round); err != nil {
			return err
		}
	}
}

// stop ends all streams, those too that the owner has not heard of.
func (s *Server) stop() {
	over := status.New(codes.Unavailable, "the scheduler is stopping")
	waiting := append(s.batch[s.at:], s.inbox.close()...)
	for _, e := range waiting {
		e.from.end(over)
	}
	for _, a := range s.streams {
		a.end(over)
	}
	s.senders.close()
}

// wait returns when there is something to do, or ctx's error.
func (s *Server) wait(ctx context.Context, timer *time.Timer) error {
	if s.at == len(s.batch) {
		s.batch, s.at = s.inbox.take(s.batch), 0
	}
	if len(s.batch) > 0 {
		return ctx.Err()
	}
	now := s.since()
	s.look(now, 0) // nothing waits
	s.behind.Store(0)
	timer.Reset(s.wake - now)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.inbox.wake:
		s.batch = s.inbox.take(s.batch)
	case <-timer.C:
	case set, ok := <-s.members:
		s.gotMembers(set, ok)
	case all, ok := <-s.denials.news:
		s.gotDenials(all, ok)
	}
	s.slept(max(now, s.wake), overslept)
	return nil
}

// overslept is how late the owner may wake, and longRound how long a round may take, before
// the process counts as stopped, moved or without CPU meanwhile.
const (
	overslept = 200 * time.Millisecond
	longRound = 2 * time.Second
)

// slept takes the time since then off the server's clock, where it is longer than most:
// what nodes said meanwhile is not read yet, and neither their leases nor their silence
// may be counted from it.
func (s *Server) slept(then, most time.Duration) {
	if late := s.since() - then; late > most {
		s.lost.Add(int64(late))
		s.log.Warn("the scheduler did not run for a while: it was stopped, or has no CPU", zap.Duration("for", late))
	}
}

// next is when there is something to do even if nobody says anything.
func (s *Server) next() time.Duration {
	at := s.since() + time.Hour
	if due, ok := s.dueAt(); ok {
		at = min(at, due)
	}
	if len(s.streams) > 0 {
		at = min(at, s.lookAt)
	}
	if due, ok := s.trace.due(); ok {
		at = min(at, due)
	}
	return at
}

// dueAt is when the state gets its next Tick: its deadline, rounded up so that
// deadlines close to each other cost one wake.
func (s *Server) dueAt() (time.Duration, bool) {
	at, ok := s.state.Due()
	return max(time.Duration(at).Truncate(tick), s.ticked) + tick, ok
}

// round takes a part of what has come, and sends what was decided of it: each
// stream is woken once a round.
func (s *Server) round() {
	began := s.since()
	for range min(batchLimit, len(s.batch)-s.at) {
		e := s.batch[s.at]
		s.at++
		s.take(e)
		e.from.reuse(e.message.memory)
	}
	s.slept(began, longRound)
	now := s.since()
	if due, ok := s.dueAt(); ok && now >= due {
		s.ticked = now
		s.apply(&core.Tick{})
		s.assign()
	}
	if s.state.Stats().Leases > 0 {
		s.lookAt = min(s.lookAt, now+look)
	}
	if len(s.streams) > 0 && now >= s.lookAt {
		s.endSilent(now)
	}
	s.lookAtMembers()
	s.sendOut()
	s.metrics.show(s.state.Stats())
	s.trace.flush(now)
	s.wake = s.next()
}

// since is the server's clock: the time since it was made, without that in which it did
// not run.
func (s *Server) since() time.Duration { return time.Since(s.epoch) - time.Duration(s.lost.Load()) }

func (s *Server) take(e envelope) {
	node := e.from.node
	now := s.since()
	if !e.left {
		s.took = append(s.took, e.from)
		waited := max(now-e.came, 0) // it may have come before slept
		s.behind.Store(int64(waited))
		s.look(now, waited)
	}
	switch {
	case e.attend != nil:
		s.attend(e, now)
	case e.left:
		s.leave(e.from, "its stream ended")
		s.assign()
		return
	}
	a, ok := s.streams[node]
	if !ok || a.stream != e.from {
		return // a stream that was replaced or given up
	}
	for _, event := range e.message.events {
		if s.admit(a, event) {
			s.apply(event)
			s.assign()
		}
	}
	for _, n := range e.message.pings { // a pong says that what came before it was decided
		s.tell(a, item{pong: n})
	}
}

func (s *Server) attend(e envelope, now time.Duration) {
	node := e.from.node
	if s.rival(e.from, now) {
		return
	}
	if old, ok := s.streams[node]; ok {
		old.end(status.New(codes.Aborted, "the node has opened another stream"))
	}
	if len(s.streams) == 0 {
		s.lookAt = now + silentIdle
	}
	a := &attendance{stream: e.from}
	if e.attend.Seed {
		a.seed, s.retell = e.attend.Address, true
	}
	s.streams[node] = a
	s.roster.came(e.attend, e.from)
	// Not before: whoever is welcome attends, and a stream opened later replaces this one.
	s.tell(a, item{wire: &damselflyv1.Decision{Decision: &damselflyv1.Decision_Welcome{Welcome: &damselflyv1.Welcome{Protocol: Protocol, Release: s.cfg.Release}}}})
	if s.told != nil {
		s.tell(a, item{wire: s.told})
	}
	s.tellDenials(a)
	s.apply(e.attend)
	s.assign()
	s.log.Info("a node attends", zap.String("node", node), zap.Bool("seed", e.attend.Seed), zap.String("address", e.attend.Address))
}

// leave forgets a node, unless another stream of it has come since.
func (s *Server) leave(st *stream, why string) {
	a, ok := s.streams[st.node]
	if !ok || a.stream != st {
		return
	}
	delete(s.streams, st.node)
	s.roster.went(st.node)
	s.retell = s.retell || a.seed != ""
	s.apply(&core.Leave{Node: st.node})
	s.log.Info("a node has left", zap.String("node", st.node), zap.String("why", why))
}

// endSilent gives up nodes that have said nothing for too long.
func (s *Server) endSilent(now time.Duration) {
	s.lookAt = now + silentIdle
	var gone []string
	for node, a := range s.streams {
		quiet, limit := a.silent(now), silentIdle
		// A node without leases need not say anything for a while: what it has not
		// answered counts from the lease.
		if unanswered := min(quiet, now-a.asked); unanswered >= silentBusy && s.state.Running(node) > 0 {
			quiet, limit = unanswered, silentBusy
		}
		if quiet < limit {
			s.lookAt = min(s.lookAt, now+limit-quiet)
		} else {
			gone = append(gone, node)
		}
	}
	slices.Sort(gone) // equal events in equal order, whatever the map says
	for _, node := range gone {
		st := s.streams[node].stream
		// Before the state hears of it: should it panic at that, this stream is already none of those that end then.
		st.end(status.New(codes.DeadlineExceeded, "the scheduler has not heard from this node; attend again"))
		s.leave(st, "it was silent")
		s.assign()
	}
}

// apply gives the state one event. What it decides waits in s.out for assign.
func (s *Server) apply(e core.Event) {
	started := s.since()
	now := core.Time(started)
	s.applying = e
	s.trace.event(now, e)
	before := len(s.out)
	s.out = s.state.Apply(now, e, s.out)
	s.applying = nil
	s.trace.decisions(s.out[before:])
	s.metrics.applied(e, s.since()-started, s.out[before:])
}

// assign gives what was decided to those whom it is for, in order.
func (s *Server) assign() {
	for i := range s.out {
		d := &s.out[i]
		a, ok := s.streams[d.To]
		if !ok {
			continue
		}
		switch d.Kind {
		case core.Refuse:
			delete(a.wants, d.Digest)
		case core.Lease:
			if heard := time.Duration(a.heard.Load()); a.asked <= heard {
				a.asked = s.since()
			}
		}
		s.tell(a, item{core: *d})
	}
	clear(s.out)
	s.out = s.out[:0]
}

// tell has something sent to a node at the end of the round, behind what is for it
// already.
func (s *Server) tell(a *attendance, i item) {
	if len(a.batch) == 0 {
		s.touched = append(s.touched, a)
	}
	a.batch = append(a.batch, i)
}

// sendOut puts what each node is told into its outbox, or gives up a node that lets
// too much pile up.
func (s *Server) sendOut() {
	for _, a := range s.touched {
		if !a.put(a.batch) {
			a.end(status.New(codes.ResourceExhausted, notTaken))
		}
		clear(a.batch)
		a.batch = a.batch[:0]
		if cap(a.batch) > spareItems {
			a.batch = nil
		}
	}
	clear(s.touched)
	s.touched = s.touched[:0]
	for _, st := range s.took {
		st.taken()
	}
	clear(s.took)
	s.took = s.took[:0]
}
