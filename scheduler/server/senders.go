package server

import "sync"

// sendersKept is how many idle senders wait for work.
const sendersKept = 256

// senders are goroutines that empty outboxes. Whoever has something to send gets one
// that is idle, the last used first, or a new one: a stream that does not take its
// decisions keeps one and delays nobody. A goroutine a stream would cost its stack
// for thousands of silent streams; a new one each time would have to help the garbage
// collector before it may allocate.
type senders struct {
	mu     sync.Mutex
	idle   []chan *stream
	closed bool
}

// start has somebody drain the stream's outbox.
func (p *senders) start(st *stream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := len(p.idle) - 1; last >= 0 {
		p.idle[last] <- st // empty: it is idle
		p.idle = p.idle[:last]
		return
	}
	go p.work(st)
}

func (p *senders) work(st *stream) {
	var e encoder
	next := make(chan *stream, 1)
	for ok := true; ok; st, ok = <-next {
		st.drain(&e)
		if !p.rest(next) {
			return
		}
	}
}

// rest makes a sender idle; false when there are enough.
func (p *senders) rest(next chan *stream) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= sendersKept {
		return false
	}
	p.idle = append(p.idle, next)
	return true
}

// close ends the idle ones; the others end when their outbox is empty or their
// stream over.
func (p *senders) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, next := range p.idle {
		close(next)
	}
	p.idle = nil
}
