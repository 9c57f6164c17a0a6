package server

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// outboxLimit bounds the decisions that wait for one node's stream. A node that
// lets so many pile up is not following them; it starts anew.
const outboxLimit = 1 << 15

// What one message to a node holds at most: clients take 4 MiB.
const (
	messageDecisions = 4096
	messageBytes     = 1 << 20
)

// notTaken is why a stream with a full outbox is ended.
const notTaken = "the node does not take its decisions; attend again"

// spareItems bounds the outbox that is kept for the next round.
const spareItems = 4

// stream is one node's Attend stream. The owner of the state puts decisions into
// its outbox and never waits for it; senders send what is there.
type stream struct {
	node    string
	hello   hello
	address string // of its Peer service
	remote  string // the host that its connection comes from
	denials string // hash of what it knew of denied nodes when it came
	send    func(*damselflyv1.SchedulerMessage) error
	senders *senders
	ended   chan struct{} // closed by end
	roomy   chan struct{} // capacity 1: a message that waited for the owner was taken

	pace    *rate.Limiter // of what the node says, in events
	free    chan *memory  // of messages that the owner is done with
	waiting atomic.Int32  // messages of which the outcome is not in the outbox yet
	heard   atomic.Int64  // when the last message came, in nanoseconds since the epoch of its server

	mu      sync.Mutex
	outbox  []item
	spare   []item // empty: the next outbox
	sending bool
	err     error // why the stream was ended
}

// item is what the owner has for a node: a decision of the core or something of the
// server's own. Who sends it encodes it.
type item struct {
	core core.Decision
	wire *damselflyv1.Decision // not nil: this
	pong uint64                // core.Kind 0 and no wire: a Pong with this number
}

func newStream(node string, by *senders, send func(*damselflyv1.SchedulerMessage) error) *stream {
	return &stream{node: node, send: send, senders: by, pace: rate.NewLimiter(eventRate, eventBurst), ended: make(chan struct{}), roomy: make(chan struct{}, 1), free: make(chan *memory, 2)}
}

// put queues what is for the node and has it sent; false when the outbox is full.
func (s *stream) put(items []item) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.outbox)+len(items) > outboxLimit {
		return false
	}
	if s.outbox == nil {
		s.outbox, s.spare = s.spare, nil
	}
	s.outbox = append(s.outbox, items...)
	if !s.sending {
		s.sending = true
		s.senders.start(s)
	}
	return true
}

// drain sends until the outbox is empty. It ends with the stream at the latest:
// a send to a stream whose handler has returned fails.
func (s *stream) drain(e *encoder) {
	items := s.take(nil)
	for ; len(items) > 0; items = s.take(items) {
		for rest := items; len(rest) > 0; {
			n := fitting(rest)
			if err := s.send(e.message(rest[:n])); err != nil {
				s.end(status.New(codes.Canceled, "the node has left"))
				return // still marked as sending: nothing is to be sent any more
			}
			rest = rest[n:]
		}
	}
}

// fitting is how many of the items go into one message, one at least.
func fitting(items []item) int {
	n, bytes := 0, 0
	for n < len(items) && n < messageDecisions && bytes < messageBytes {
		bytes += len(items[n].core.Links) + 256
		n++
	}
	return n
}

// take gives the outbox for a slice that is used no more. Nothing: the outbox is
// empty, and the next put starts another goroutine.
func (s *stream) take(used []item) []item {
	clear(used)
	s.mu.Lock()
	defer s.mu.Unlock()
	if cap(used) > 0 && cap(used) <= spareItems {
		s.spare = used[:0]
	}
	items := s.outbox
	s.outbox = nil
	s.sending = len(items) > 0
	return items
}

// end has the stream's handler return st. The first call counts.
func (s *stream) end(st *status.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = st.Err()
	close(s.ended)
}

func (s *stream) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// silent is how long nothing has come from the node. What waits for the owner has
// come: a node is not blamed for what the owner has not read.
func (s *stream) silent(now time.Duration) time.Duration {
	if s.waiting.Load() > 0 {
		return 0
	}
	return now - time.Duration(s.heard.Load())
}
