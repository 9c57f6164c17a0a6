package server

import (
	"fmt"
	"net"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// rivalWithin is how soon after it was replaced a node must attend again, from where
	// it was, for the two to be two machines: one that has moved does not come back.
	rivalWithin = time.Minute
	// rivalQuiet is how long who attends may say nothing before a rival may have its
	// place. Nodes ping every five seconds.
	rivalQuiet = 12 * time.Second
	// rivalTold is between two warnings of one identity; rivalKept is how long after
	// it was last fought over it counts as settled.
	rivalTold = 10 * time.Minute
	rivalKept = time.Hour
	// mostRivals bounds what is kept; of more identities no notice is taken.
	mostRivals = 4096
)

// rivalry is of one identity that attends from two places: a machine that was cloned with
// its key has the streams of the two replace each other for ever, and neither works.
type rivalry struct {
	before, now string        // places, of who was replaced last and of who replaced it
	at          time.Duration // when that was, or when one was turned away last
	alternate   bool          // both are alive
	told        time.Duration // when it was logged last; 0: never
}

// place is where a stream comes from.
func (s *stream) place() string { return s.address + ", from " + s.remote }

// rival tells whether st must not attend because another machine with the same identity
// does, and ends it then. A node that comes from a new place has moved, and takes its
// former stream's; if that comes back soon, there are two.
func (s *Server) rival(st *stream, now time.Duration) bool {
	old, ok := s.streams[st.node]
	if !ok || old.place() == st.place() || old.silent(now) > rivalQuiet {
		return false
	}
	r := s.rivals[st.node]
	if r == nil {
		if s.forgetRivals(now); len(s.rivals) >= mostRivals {
			return false
		}
		r = &rivalry{}
		s.rivals[st.node] = r
	}
	back := r.before == st.place() && r.now == old.place() && now-r.at < rivalWithin
	if now-r.at > rivalKept {
		*r = rivalry{}
	}
	if !r.alternate && !back {
		r.before, r.now, r.at = old.place(), st.place(), now
		return false
	}
	r.alternate, r.at = true, now
	if r.told == 0 || now-r.told > rivalTold {
		r.told = now
		s.log.Warn("two machines attend with one identity, as a clone does; the one that attends stays and the other is turned away: "+
			"stop one, remove the identity directory in its dataDir, and let it join anew",
			zap.String("node", st.node), zap.String("attends", old.place()), zap.String("turned_away", st.place()))
	}
	st.end(status.New(codes.FailedPrecondition, fmt.Sprintf("another machine (%s) attends with this node's identity: "+
		"remove the identity directory in the dataDir of one of the two, and let it join anew", old.place())))
	return true
}

func (s *Server) forgetRivals(now time.Duration) {
	for node, r := range s.rivals {
		if now-r.at > rivalKept {
			delete(s.rivals, node)
		}
	}
}

// hostOf is the host of a remote address.
func hostOf(address net.Addr) string {
	host, _, err := net.SplitHostPort(address.String())
	if err != nil {
		return address.String()
	}
	return host
}
