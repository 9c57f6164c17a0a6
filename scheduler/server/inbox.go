package server

import (
	"sync"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// roomLimit bounds the messages of one node that wait for the owner of the
// state, so that no node can fill the memory.
const roomLimit = 4

const (
	// eventsAtOnce is how many events of one node the owner takes before it looks at others:
	// with roomLimit it bounds what one node delays all others by. A Want or Unwant of a blob
	// of many pieces counts as one for each wantPieces: it costs 0.2 us a piece.
	eventsAtOnce = 128
	wantPieces   = 100
	// eventRate is how many events a second are taken of a node, and eventBurst how many
	// beyond that at a time: a node that has 50,000 blobs tells them when it attends. One that
	// pulls at 10 Gbit/s has 3,000 a second to say.
	eventRate  = 10_000
	eventBurst = 50_000
)

// envelope is what a stream gives the owner: its beginning, a message, or its
// end.
type envelope struct {
	from    *stream
	came    time.Duration // since the server's epoch
	attend  *core.Attend
	message message
	left    bool
}

// inbox is what waits for the owner of the state. Streams add to it, the owner
// takes everything at once: two locks a round, however many messages.
type inbox struct {
	wake chan struct{} // capacity 1

	mu     sync.Mutex
	queue  []envelope
	closed bool
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

// add is false when the owner has gone.
func (b *inbox) add(e envelope) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.queue = append(b.queue, e)
	if len(b.queue) == 1 { // the owner takes all at once
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// take gives everything that waits, oldest first, for a slice that is used no
// more.
func (b *inbox) take(used []envelope) []envelope {
	clear(used)
	b.mu.Lock()
	defer b.mu.Unlock()
	queue := b.queue
	b.queue = used[:0]
	return queue
}

// close gives what still waits; nothing is added any more.
func (b *inbox) close() []envelope {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return b.queue
}

// submit gives the owner an envelope of a stream's own. It waits while too many of
// the stream's wait already: that holds back the node that talks too much, by its
// stream's flow control. It is false when the stream was ended or the server has
// stopped. One goroutine a stream calls it.
func (s *Server) submit(st *stream, e envelope) bool {
	for st.waiting.Load() >= roomLimit {
		select {
		case <-st.roomy:
		case <-st.ended:
			return false
		}
	}
	e.from, e.came = st, s.since()
	st.heard.Store(int64(e.came))
	st.waiting.Add(1)
	return s.inbox.add(e)
}

// hand gives the owner a message in parts, as fast as one node may talk. It is false as
// submit is.
func (s *Server) hand(st *stream, m message) bool {
	for {
		part := m
		n, cost := fits(m.events)
		if n < len(m.events) { // its memory is used until the last part is taken
			part = message{events: m.events[:n]}
			m.events = m.events[n:]
		} else {
			m.events = nil
		}
		if !st.paced(cost) {
			return false
		}
		if !s.submit(st, envelope{message: part}) {
			return false
		}
		if len(m.events) == 0 {
			return true
		}
	}
}

// fits is how many of the events are taken at once, one at least, and what they count as.
func fits(events []core.Event) (n, cost int) {
	cost = 1
	for n < len(events) {
		c := 1
		if w, ok := events[n].(*core.Want); ok {
			if l, err := blob.NewLayout(w.Size); err == nil {
				c += 2 * l.Pieces() / wantPieces // with the Unwant that may follow
			}
		}
		if n > 0 && cost+c > eventsAtOnce {
			break
		}
		n++
		cost += c
	}
	return n, min(cost, eventBurst)
}

// paced waits until the node may have said n events. It is false when the stream was ended.
func (st *stream) paced(n int) bool {
	r := st.pace.ReserveN(time.Now(), n)
	left := r.Delay()
	if left == 0 {
		return true
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-st.ended:
		return false
	}
}

// taken gives a stream room for another message.
func (st *stream) taken() {
	if st.waiting.Add(-1) == roomLimit-1 {
		select {
		case st.roomy <- struct{}{}:
		default:
		}
	}
}

// reuse gives the memory of a message back to who decodes. No event in it is used any
// more: the state keeps none.
func (st *stream) reuse(m *memory) {
	if m == nil {
		return
	}
	m.have = core.Have{} // its links are the message's
	clear(m.events[:])   // those that stand elsewhere may be large
	if cap(m.bytes) > frameKept {
		m.bytes = nil
	}
	select {
	case st.free <- m:
	default:
	}
}
