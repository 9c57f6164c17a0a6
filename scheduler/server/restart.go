package server

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// A core that fails restartsMost times within restartsWithin fails again: then the
// process ends, and whoever looks after it sees that.
const (
	restartsMost   = 5
	restartsWithin = time.Minute
)

// guard runs one round. Where the core panics in it, the state is lost and a new
// one begins: it is soft, and the nodes tell it everything again, which takes them
// about a second. The error says that this has happened too often.
func (s *Server) guard(round func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.restart(p)
		}
	}()
	round()
	return nil
}

func (s *Server) restart(p any) error {
	event := "none"
	if s.applying != nil {
		event = text(s.since(), s.applying)
	}
	s.log.Error("the core failed at an event; it starts again, and every node attends anew",
		zap.Any("panic", p), zap.String("event", event), zap.ByteString("stack", debug.Stack()))
	s.metrics.restarts.Inc()
	for _, a := range s.streams {
		a.end(status.New(codes.Unavailable, "the scheduler has lost what it knew; attend again"))
	}
	for node := range s.streams {
		s.roster.went(node)
	}
	clear(s.streams)
	clear(s.out)
	s.out, s.touched, s.applying = s.out[:0], nil, nil
	s.sendOut() // those whose messages were taken go on with the next
	s.admission, s.wake, s.retell = admission{}, 0, true
	s.metrics.overloaded.Set(0)
	seed := rand.Uint64()
	s.state = s.newState(seed)
	s.trace.seed(seed)

	now := s.since()
	s.failures = append(s.failures, now)
	for now-s.failures[0] > restartsWithin {
		s.failures = s.failures[1:]
	}
	if len(s.failures) >= restartsMost {
		return fmt.Errorf("the core failed %d times within %s, at last at the event %q: %v; the log has the stack, please report both",
			len(s.failures), restartsWithin, clip(event), p)
	}
	return nil
}

// text is an event as the trace has it. What made the core fail may well make this
// fail too.
func text(now time.Duration, e core.Event) (out string) {
	defer func() {
		if p := recover(); p != nil {
			out = fmt.Sprintf("%T that has no text: %v", e, p)
		}
	}()
	return string(core.AppendEvent(nil, core.Time(now), e))
}

func clip(s string) string {
	if len(s) > 512 {
		return s[:512] + "…"
	}
	return s
}
