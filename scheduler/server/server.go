// Package server drives scheduler/core: it turns the streams of nodes into events
// and decisions into messages. One goroutine owns the State; every stream has its
// own sender, so that a slow node delays nobody else. It decides nothing itself
// and keeps nothing on disk. The scheduler's main builds and runs it.
package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// Protocol is the version of the wire that this scheduler speaks.
const Protocol = 1

const (
	inboxLimit = 4096 // messages that wait for the owner of the state
	batchLimit = 512  // messages taken between two rounds of sending
	tick       = 50 * time.Millisecond
	look       = time.Second // between two looks for silent nodes while leases run
	// silentBusy and silentIdle are how long a node may say nothing, with leases
	// and without. Nodes that wait or read ping several times a second.
	silentBusy = 5 * time.Second
	silentIdle = 30 * time.Second
)

// Config sets up a Server.
type Config struct {
	// Core sets the rules of the state.
	Core core.Config
	// Seed makes choices repeatable: equal seeds and events, equal decisions. 0
	// draws one, as a scheduler should that others came before: leases of theirs
	// are then not taken for its own.
	Seed uint64
	// Caller says who opened a stream: the peer ID and role ("node" or "seed")
	// of its certificate; false refuses the stream.
	Caller func(context.Context) (id, role string, ok bool)
	// Trace, if not nil, gets "# seed" and the seed in a line, then every event,
	// one a line, in the text form of core.AppendEvent.
	Trace io.Writer
	// Release is what nodes are told that they attend.
	Release string
}

// Server is the Scheduler service. Run must run for it to answer.
type Server struct {
	damselflyv1.UnimplementedSchedulerServer
	cfg     Config
	log     *zap.Logger
	metrics *metrics
	inbox   chan envelope
	stopped chan struct{} // closed when Run has returned

	// Owned by Run.
	state   *core.State
	start   time.Time
	streams map[string]*attendance
	lookAt  time.Time // for silent nodes
	out     []core.Decision
	trace   *bufio.Writer
	line    []byte
}

// attendance is a node that attends, as the owner of the state sees it.
type attendance struct {
	*stream
	heard time.Time
}

// envelope is what a stream gives the owner: its beginning, a message, or its
// end.
type envelope struct {
	from    *stream
	attend  *core.Attend
	message message
	left    bool
}

// New returns a server that knows nobody. reg may be nil.
func New(cfg Config, log *zap.Logger, reg prometheus.Registerer) (*Server, error) {
	if cfg.Caller == nil {
		return nil, errors.New("scheduler/server: Config.Caller is not set")
	}
	for cfg.Seed == 0 {
		cfg.Seed = rand.Uint64()
	}
	s := &Server{
		cfg: cfg, log: log, inbox: make(chan envelope, inboxLimit), stopped: make(chan struct{}),
		state: core.New(cfg.Core, cfg.Seed), streams: map[string]*attendance{},
	}
	if cfg.Trace != nil {
		s.trace = bufio.NewWriterSize(cfg.Trace, 64<<10)
		_, _ = fmt.Fprintf(s.trace, "# seed %d\n", cfg.Seed) // a failed write shows at the flush
	}
	var err error
	if s.metrics, err = newMetrics(reg); err != nil {
		return nil, fmt.Errorf("registering the scheduler's metrics: %w", err)
	}
	return s, nil
}

// Attend implements damselfly.v1.Scheduler.
func (s *Server) Attend(g grpc.BidiStreamingServer[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage]) error {
	id, role, ok := s.cfg.Caller(g.Context())
	if !ok {
		return status.Error(codes.Unauthenticated, "this node has no certificate of the cluster, or is denied")
	}
	d := decoder{node: id, seed: role == "seed"}
	first, err := g.Recv()
	if err != nil {
		return err
	}
	attend, err := d.attend(first)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	first.Events = first.Events[1:]
	rest, err := d.message(first)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	st := newStream(id)
	st.put(&damselflyv1.Decision{Decision: &damselflyv1.Decision_Welcome{Welcome: &damselflyv1.Welcome{Protocol: Protocol, Release: s.cfg.Release}}})
	if !s.submit(st, envelope{from: st, attend: attend, message: rest}) {
		return status.Error(codes.Unavailable, "the scheduler is stopping")
	}
	// Both end with the stream, which ends when this returns. Sending is not done
	// here: a node that takes nothing would keep its own end from it.
	go s.receive(g, st, d)
	go s.send(g, st)
	select {
	case <-st.ended:
	case <-s.stopped:
		st.end(status.New(codes.Unavailable, "the scheduler is stopping"))
	case <-g.Context().Done():
		st.end(status.FromContextError(g.Context().Err()))
	}
	select {
	case s.inbox <- envelope{from: st, left: true}:
	case <-s.stopped:
	}
	return st.why()
}

// submit gives the owner an envelope, waiting for room: that holds back the node
// that talks too much, by its own stream's flow control. It is false when the
// stream has been ended or the server stops.
func (s *Server) submit(st *stream, e envelope) bool {
	select {
	case st.room <- struct{}{}:
	case <-st.ended:
		return false
	case <-s.stopped:
		return false
	}
	select {
	case s.inbox <- e:
		return true
	case <-st.ended:
		return false
	case <-s.stopped:
		return false
	}
}

func (s *Server) receive(g grpc.BidiStreamingServer[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage], st *stream, d decoder) {
	for {
		m, err := g.Recv()
		if err != nil {
			st.end(status.New(codes.Canceled, "the node has left"))
			return
		}
		msg, err := d.message(m)
		if err != nil {
			st.end(status.New(codes.InvalidArgument, err.Error()))
			return
		}
		if !s.submit(st, envelope{from: st, message: msg}) {
			return
		}
	}
}

func (s *Server) send(g grpc.BidiStreamingServer[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage], st *stream) {
	for {
		select {
		case <-st.ended:
			return
		case <-st.wake:
		}
		for ds := st.take(); len(ds) > 0; ds = st.take() {
			if err := g.Send(&damselflyv1.SchedulerMessage{Decisions: ds}); err != nil {
				st.end(status.New(codes.Canceled, "the node has left"))
				return
			}
		}
	}
}
