package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// Run owns the state until ctx ends and returns ctx's error, or that of the
// trace. Streams are ended then. It is called once.
func (s *Server) Run(ctx context.Context) error {
	defer close(s.stopped)
	s.start = time.Now()
	due := time.NewTimer(time.Hour)
	defer due.Stop()
	silent := time.NewTimer(time.Hour)
	defer silent.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-s.inbox:
			s.take(e)
			s.takeMore()
		case <-due.C:
			s.apply(&core.Tick{})
		case <-silent.C:
			s.endSilent()
		}
		s.sendOut()
		s.metrics.show(s.state.Stats())
		if err := s.flushTrace(); err != nil {
			return err
		}
		s.wind(due, silent)
	}
}

// takeMore takes what has come meanwhile, so that one round of sending serves
// many messages.
func (s *Server) takeMore() {
	for range batchLimit {
		select {
		case e := <-s.inbox:
			s.take(e)
		default:
			return
		}
	}
}

// wind sets the timers: for the state's next deadline, rounded up so that
// deadlines close to each other cost one wake, and for the next look for silent
// nodes.
func (s *Server) wind(due, silent *time.Timer) {
	if at, ok := s.state.Due(); ok {
		due.Reset(max(time.Duration(at-s.now()), 0).Truncate(tick) + tick)
	} else {
		due.Stop()
	}
	if len(s.streams) == 0 {
		silent.Stop()
		return
	}
	if s.state.Stats().Leases > 0 {
		s.lookAt = earlier(s.lookAt, time.Now().Add(look))
	}
	silent.Reset(time.Until(s.lookAt))
}

func (s *Server) now() core.Time { return core.Time(time.Since(s.start)) }

func (s *Server) take(e envelope) {
	node := e.from.node
	if !e.left {
		<-e.from.room
	}
	switch {
	case e.attend != nil:
		if old, ok := s.streams[node]; ok {
			old.end(status.New(codes.Aborted, "the node has opened another stream"))
		}
		if len(s.streams) == 0 {
			s.lookAt = time.Now().Add(silentIdle)
		}
		s.streams[node] = &attendance{stream: e.from}
		s.apply(e.attend)
		s.log.Info("a node attends", zap.String("node", node), zap.Bool("seed", e.attend.Seed), zap.String("address", e.attend.Address))
	case e.left:
		s.leave(e.from, "its stream ended")
		return
	}
	a, ok := s.streams[node]
	if !ok || a.stream != e.from {
		return // a stream that was replaced or given up
	}
	a.heard = time.Now()
	for _, event := range e.message.events {
		s.apply(event)
	}
	if len(e.message.pings) > 0 {
		s.sendOut() // a pong says that what came before it was decided
	}
	for _, n := range e.message.pings {
		a.tell(&damselflyv1.Decision{Decision: &damselflyv1.Decision_Pong{Pong: &damselflyv1.Pong{Number: n}}})
	}
}

// leave forgets a node, unless another stream of it has come since.
func (s *Server) leave(st *stream, why string) {
	a, ok := s.streams[st.node]
	if !ok || a.stream != st {
		return
	}
	delete(s.streams, st.node)
	s.apply(&core.Leave{Node: st.node})
	s.log.Info("a node has left", zap.String("node", st.node), zap.String("why", why))
}

// endSilent gives up nodes that have said nothing for too long.
func (s *Server) endSilent() {
	now := time.Now()
	s.lookAt = now.Add(silentIdle)
	var gone []string
	for node, a := range s.streams {
		limit := silentIdle
		if s.state.Running(node) > 0 {
			limit = silentBusy
		}
		if until := a.heard.Add(limit); now.Before(until) {
			s.lookAt = earlier(s.lookAt, until)
		} else {
			gone = append(gone, node)
		}
	}
	slices.Sort(gone) // equal events in equal order, whatever the map says
	for _, node := range gone {
		st := s.streams[node].stream
		s.leave(st, "it was silent")
		st.end(status.New(codes.DeadlineExceeded, "the scheduler has not heard from this node; attend again"))
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func (s *Server) apply(e core.Event) {
	now := s.now()
	if s.trace != nil {
		s.line = append(core.AppendEvent(s.line[:0], now, e), '\n')
		_, _ = s.trace.Write(s.line) // a failed write shows at the flush
	}
	before, started := len(s.out), time.Now()
	s.out = s.state.Apply(now, e, s.out)
	s.metrics.applied(e, time.Since(started), s.out[before:])
}

// sendOut puts what was decided into the outboxes, in order.
func (s *Server) sendOut() {
	for i := range s.out {
		d := &s.out[i]
		if a, ok := s.streams[d.To]; ok {
			a.tell(encode(d))
		}
	}
	clear(s.out)
	s.out = s.out[:0]
}

// tell queues a decision, or gives up a node that lets too many pile up.
func (a *attendance) tell(d *damselflyv1.Decision) {
	if !a.put(d) {
		a.end(status.New(codes.ResourceExhausted, "the node does not take its decisions; attend again"))
	}
}

func (s *Server) flushTrace() error {
	if s.trace == nil {
		return nil
	}
	if err := s.trace.Flush(); err != nil {
		return fmt.Errorf("writing the trace: %w", err)
	}
	return nil
}
