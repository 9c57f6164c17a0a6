package server

import (
	"sync"

	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// outboxLimit bounds the decisions that wait for one node's stream. A node that
// lets so many pile up is not following them; it starts anew.
const outboxLimit = 1 << 15

// stream is one node's Attend stream. The owner of the state puts decisions into
// its outbox and never waits for it; the stream's own goroutine sends them.
type stream struct {
	node  string
	wake  chan struct{} // capacity 1
	ended chan struct{} // closed by end

	mu     sync.Mutex
	outbox []*damselflyv1.Decision
	err    error // why the stream was ended
}

func newStream(node string) *stream {
	return &stream{node: node, wake: make(chan struct{}, 1), ended: make(chan struct{})}
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

func (s *stream) take() []*damselflyv1.Decision {
	s.mu.Lock()
	defer s.mu.Unlock()
	ds := s.outbox
	s.outbox = nil
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
