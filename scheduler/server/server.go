// Package server drives scheduler/core: it turns the streams of nodes into events
// and decisions into messages. It decides nothing itself and keeps nothing on disk.
// The scheduler's main builds and runs it.
//
// One goroutine owns the State; every stream has others that decode what comes and
// encode what goes, so that a slow node delays nobody else and the owner does nothing
// but decide. When it falls behind all the same, new wants are told to come again
// (admission). When the core panics, it begins anew with an empty State, and the
// nodes tell it what they hold and want (restart).
//
// One process has one owner, and so one shard of the cluster's blobs; more schedulers
// spread blobs over more owners (pkg/ring). DESIGN.md beside this file says what one
// carries.
package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// Protocol is the version of the wire that this scheduler speaks.
const Protocol = 1

const (
	batchLimit = 128 // messages taken between two rounds of sending
	tick       = 50 * time.Millisecond
	look       = time.Second // between two looks for silent nodes while leases run
	// silentBusy and silentIdle are how long a node may say nothing, with leases
	// and without. Nodes that wait or read ping several times a second, while they
	// are answered.
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
	// Trace, if not nil, gets "# seed" and the seed in a line, then every event in a
	// line of its own, in the text form of core.AppendEvent, with the decisions that
	// it led to below it, each behind a tab in the form of core.AppendDecision. It is
	// written a second late at most. Where it cannot be written, the log says so and
	// the scheduler goes on without.
	Trace io.Writer
	// Schedulers gives the set of the cluster's schedulers, this one among them, each
	// time that it changes. Nodes are told the last one, when they attend and when it
	// comes. nil, or nothing in it: this one is alone and nobody is told.
	Schedulers <-chan []Scheduler
	// Denials gives what is kept of denied nodes, sorted by ID, each time that it changes.
	// Nodes are told when they attend, unless they know it all, and then what is new. nil:
	// nobody is told.
	Denials <-chan []identity.Statement
	// Release is what nodes are told that they attend.
	Release string
}

// Server is the Scheduler service. Run must run for it to answer.
type Server struct {
	damselflyv1.UnimplementedSchedulerServer
	cfg     Config
	log     *zap.Logger
	metrics *metrics
	epoch   time.Time
	lost    atomic.Int64 // in which it did not run, in nanoseconds
	inbox   *inbox
	behind  atomic.Int64 // how long what the owner took last had waited, in nanoseconds
	senders senders
	roster  roster

	// Owned by Run.
	newState  func(seed uint64) mind
	state     mind
	streams   map[string]*attendance
	batch     []envelope    // taken from the inbox
	at        int           // of the batch, what comes next
	took      []*stream     // of which this round has taken messages
	lookAt    time.Duration // for silent nodes
	ticked    time.Duration
	wake      time.Duration   // when the next round is due, if nothing comes before
	applying  core.Event      // that the state has not taken yet
	out       []core.Decision // of the event at hand
	touched   []*attendance   // with something to send
	members   <-chan []Scheduler
	set       []Scheduler           // the last that came
	told      *damselflyv1.Decision // who the schedulers and the seeds are; nil: this one alone, and none
	retell    bool                  // that has changed
	denials   denials
	trace     *tracer
	admission admission
	rivals    map[string]*rivalry // by node
	failures  []time.Duration     // of the core, within restartsWithin
}

// mind is the state that is driven: a core.State.
type mind interface {
	Apply(core.Time, core.Event, []core.Decision) []core.Decision
	Due() (core.Time, bool)
	Running(node string) int
	Stats() core.Stats
}

// attendance is a node that attends, as the owner of the state sees it.
type attendance struct {
	*stream
	seed  string                   // the address of its Peer service, if it is a seed
	wants map[blob.Digest]struct{} // that were admitted
	batch []item                   // for the outbox, at the end of the round
	asked time.Duration            // the first lease since the node was heard last
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
		cfg: cfg, log: log, epoch: time.Now(), inbox: newInbox(),
		newState: func(seed uint64) mind { return core.New(cfg.Core, seed) },
		streams:  map[string]*attendance{}, members: cfg.Schedulers, denials: denials{news: cfg.Denials},
		rivals: map[string]*rivalry{}, roster: roster{nodes: map[string]entry{}},
	}
	s.state = s.newState(cfg.Seed)
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
	said := first.GetEvents()[0].GetAttend()
	if n := len(said.GetDenials()); n != 0 && n != sha256.Size {
		return status.Errorf(codes.InvalidArgument, "attend.denials: %d bytes are no hash", n)
	}
	first.Events = first.Events[1:]
	rest, err := d.message(first)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	st := newStream(id, &s.senders, g.Send)
	st.hello, st.address, st.denials = hello{said.GetHost(), said.GetRelease()}, attend.Address, string(said.GetDenials())
	if p, ok := peer.FromContext(g.Context()); ok {
		st.remote = hostOf(p.Addr)
		attend.Machine = machineOf(st.remote)
	}
	if err := claim(attend.Address, st.remote); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if !s.submit(st, envelope{attend: attend, message: rest}) {
		return status.Error(codes.Unavailable, "the scheduler is stopping")
	}
	// Whoever sends or receives ends with the stream, which ends when this returns.
	// Neither is done here: gRPC offers no other way to end a stream with a status
	// than to return it, and a node that takes nothing, or says nothing, must not
	// keep its own end from it.
	go s.receive(g, st, d)
	<-st.ended
	s.inbox.add(envelope{from: st, left: true})
	return st.why()
}

// receive reads until the stream ends, and ends it where the node does.
func (s *Server) receive(g grpc.BidiStreamingServer[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage], st *stream, d decoder) {
	var f frame
	for {
		if err := g.RecvMsg(&f); err != nil {
			st.end(status.New(codes.Canceled, "the node has left"))
			return
		}
		var kept *memory
		select {
		case kept = <-st.free:
		default:
		}
		if kept == nil {
			kept = &memory{}
		}
		// What is decoded points into the bytes that it came as.
		kept.bytes, f.bytes = f.bytes, kept.bytes[:0]
		msg, err := d.raw(kept.bytes, kept)
		if err != nil {
			st.end(status.New(codes.InvalidArgument, err.Error()))
			return
		}
		if s.answersItself(st, msg) {
			st.heard.Store(int64(s.since()))
			if !st.put([]item{{pong: msg.pings[len(msg.pings)-1]}}) {
				st.end(status.New(codes.ResourceExhausted, notTaken))
				return
			}
			st.reuse(kept)
			continue
		}
		if !s.hand(st, msg) {
			return
		}
	}
}

// answersItself tells whether pings need not go through the owner: it has decided
// all that came before and is not behind. Such a pong says the same and costs less;
// nodes that wait ping several times a second.
func (s *Server) answersItself(st *stream, m message) bool {
	return len(m.events) == 0 && len(m.pings) > 0 && st.waiting.Load() == 0 && time.Duration(s.behind.Load()) < lagHigh
}
