package server

import (
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// The server is overloaded when messages have waited for the owner longer than
// lagHigh for lagTime, and no more when all have waited less than lagLow for
// calmTime. Nodes that wait help themselves when a scheduler is silent for 400 ms: this
// must act well before.
const (
	lagHigh  = 50 * time.Millisecond
	lagLow   = 20 * time.Millisecond
	lagTime  = 100 * time.Millisecond
	calmTime = 500 * time.Millisecond
	// retryAfter is when a want that was turned away may come again: half to one and
	// a half of it, so that those who come again do not come at once.
	retryAfter = time.Second
	// wantsKept bounds what is remembered of one node's wants.
	wantsKept = 4096
)

// refusedForLoad is the reason that a node is told, beside when to come again.
const refusedForLoad = "the scheduler has too much to do"

// admission turns new wants away while the owner is behind. Work that runs is
// never touched: it must end for the load to end. What is turned away is no event
// of the state and is not in the trace. The owner alone uses it.
type admission struct {
	overloaded bool
	late       time.Duration // since when messages have waited too long; 0: they have not
	calm       time.Duration // since when none has
	began      time.Duration
	shed       int // in this episode
}

// observe takes how long a message has waited until now.
func (a *admission) observe(now, waited time.Duration) (changed bool) {
	switch {
	case !a.overloaded && waited <= lagHigh, a.overloaded && waited >= lagLow:
		a.late, a.calm = 0, 0
	case !a.overloaded:
		if a.late == 0 {
			a.late = now
		}
		if now-a.late >= lagTime {
			*a = admission{overloaded: true, began: now}
			return true
		}
	default:
		if a.calm == 0 {
			a.calm = now
		}
		if now-a.calm >= calmTime {
			a.overloaded, a.calm = false, 0
			return true
		}
	}
	return false
}

// look tells admission of a message, and operators of what came of it.
func (s *Server) look(now, waited time.Duration) {
	if !s.admission.observe(now, waited) {
		return
	}
	a := &s.admission
	if a.overloaded {
		s.metrics.overloaded.Set(1)
		s.log.Warn("overloaded: events wait too long, so nodes that want another blob are told to come again; add a scheduler if it lasts",
			zap.Duration("waited", waited), zap.Int("streams", len(s.streams)))
		return
	}
	s.metrics.overloaded.Set(0)
	s.log.Info("no longer overloaded", zap.Duration("after", now-a.began), zap.Int("wants_turned_away", a.shed))
}

// admit tells whether an event of the node's may reach the state. A want that may
// not is answered.
func (s *Server) admit(a *attendance, e core.Event) bool {
	switch e := e.(type) {
	case *core.Want:
		if _, known := a.wants[e.Digest]; known {
			return true
		}
		if s.admission.overloaded {
			s.turnAway(a, e.Digest)
			return false
		}
		if a.wants == nil || len(a.wants) >= wantsKept {
			a.wants = map[blob.Digest]struct{}{}
		}
		a.wants[e.Digest] = struct{}{}
	case *core.Unwant:
		delete(a.wants, e.Digest)
	case *core.Have:
		if e.Sealed {
			delete(a.wants, e.Digest)
		}
	}
	return true
}

func (s *Server) turnAway(a *attendance, d blob.Digest) {
	s.admission.shed++
	s.metrics.shed.Inc()
	wait := retryAfter/2 + rand.N(retryAfter)
	s.tell(a, item{core: core.Decision{
		Kind: core.Refuse, To: a.node, Digest: d, Reason: refusedForLoad, RetryAfter: core.Time(wait),
	}})
}
