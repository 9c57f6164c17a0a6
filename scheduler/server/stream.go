package server

import (
	"sync"

	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// outboxLimit bounds the decisions that wait for one node's stream. A node that
// lets so many pile up is not following them; it starts anew.
const outboxLimit = 1 << 15

// What one message to a node holds at most: clients take 4 MiB.
const (
	messageDecisions = 4096
	messageBytes     = 1 << 20
)

// roomLimit bounds the messages of one node that wait for the owner of the
// state, so that no node can fill the inbox.
const roomLimit = 4

// stream is one node's Attend stream. The owner of the state puts decisions into
// its outbox and never waits for it; the stream's own goroutine sends them.
type stream struct {
	node  string
	wake  chan struct{} // capacity 1
	ended chan struct{} // closed by end
	room  chan struct{} // holds one for each message that waits for the owner

	mu     sync.Mutex
	outbox []*damselflyv1.Decision
	err    error // why the stream was ended
}

func newStream(node string) *stream {
	return &stream{node: node, wake: make(chan struct{}, 1), ended: make(chan struct{}), room: make(chan struct{}, roomLimit)}
}

// put queues decisions; false when the outbox is full.
func (s *stream) put(ds ...*damselflyv1.Decision) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.outbox)+len(ds) > outboxLimit {
		return false
	}
	s.outbox = append(s.outbox, ds...)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return true
}

// take is what the next message holds; nothing when the outbox is empty.
func (s *stream) take() []*damselflyv1.Decision {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, bytes := 0, 0
	for n < len(s.outbox) && n < messageDecisions && bytes < messageBytes {
		bytes += len(s.outbox[n].GetLease().GetLinks()) + 256
		n++
	}
	ds := s.outbox[:n:n]
	s.outbox = s.outbox[n:]
	if len(s.outbox) == 0 {
		s.outbox = nil
	}
	return ds
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
