package server

import (
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

const (
	traceBuffer  = 256 << 10   // what is written at a time
	traceQueue   = 64          // buffers that may wait for a slow disk
	traceWritten = time.Second // how much of a trace a crash may cost
)

// tracer writes what reaches the core, and what it decides, as it comes:
//
//	# seed 17
//	1000 want n1 sha256:… size=1048576
//	<tab>queued n1 sha256:…
//
// An event has a line (core.AppendEvent), each decision one below it behind a tab
// (core.AppendDecision). A seed begins a state that knows nothing: at the start,
// and again where the core had to be started anew. The owner fills buffers; a
// goroutine of its own writes them, so that a slow disk delays nobody until
// traceQueue buffers wait.
type tracer struct {
	buf   []byte
	full  chan []byte
	free  chan []byte
	done  chan struct{}
	since time.Duration // of what is in buf
}

// newTracer starts the goroutine that writes; close ends it.
func newTracer(w io.Writer, log *zap.Logger) *tracer {
	t := &tracer{full: make(chan []byte, traceQueue), free: make(chan []byte, traceQueue), done: make(chan struct{})}
	go func() {
		defer close(t.done)
		var failed error
		for b := range t.full {
			if failed == nil {
				if _, failed = w.Write(b); failed != nil {
					log.Error("the trace cannot be written; the scheduler goes on without", zap.Error(failed))
				}
			}
			select {
			case t.free <- b[:0]:
			default:
			}
		}
	}()
	return t
}

func (t *tracer) seed(seed uint64) {
	if t != nil {
		t.buf = fmt.Appendf(t.buf, "# seed %d\n", seed)
	}
}

func (t *tracer) event(now core.Time, e core.Event) {
	if t == nil {
		return
	}
	if len(t.buf) == 0 {
		t.since = time.Duration(now)
	}
	t.buf = append(core.AppendEvent(t.buf, now, e), '\n')
}

func (t *tracer) decisions(ds []core.Decision) {
	if t == nil {
		return
	}
	for i := range ds {
		t.buf = append(core.AppendDecision(append(t.buf, '\t'), &ds[i]), '\n')
	}
}

// flush hands on what is due; all of it when the time has come.
func (t *tracer) flush(now time.Duration) {
	if t != nil && (len(t.buf) >= traceBuffer || len(t.buf) > 0 && now-t.since >= traceWritten) {
		t.hand()
	}
}

func (t *tracer) hand() {
	t.full <- t.buf
	select {
	case t.buf = <-t.free:
	default:
		t.buf = make([]byte, 0, traceBuffer+traceBuffer/4)
	}
}

// due is when flush wants to be called, if nothing calls it before.
func (t *tracer) due() (time.Duration, bool) {
	if t == nil || len(t.buf) == 0 {
		return 0, false
	}
	return t.since + traceWritten, true
}

// close writes everything and waits until it is written.
func (t *tracer) close() {
	if t == nil {
		return
	}
	t.hand()
	close(t.full)
	<-t.done
}
