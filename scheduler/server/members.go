package server

import (
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Scheduler is one of the cluster's schedulers: its peer ID and the host:port at
// which nodes attend it.
type Scheduler struct{ ID, Address string }

// setMembers keeps the set of schedulers, and tells it to everybody who attends.
// Who attends later is told it behind Welcome.
func (s *Server) setMembers(set []Scheduler) {
	m := &damselflyv1.Schedulers{}
	for _, one := range set {
		m.Members = append(m.Members, &damselflyv1.Holder{Node: one.ID, Address: one.Address})
	}
	s.told = &damselflyv1.Decision{Decision: &damselflyv1.Decision_Schedulers{Schedulers: m}}
	for _, a := range s.streams {
		s.tell(a, item{wire: s.told})
	}
}

// lookAtMembers takes a new set if there is one.
func (s *Server) lookAtMembers() {
	select {
	case set, ok := <-s.members:
		s.gotMembers(set, ok)
	default:
	}
}

func (s *Server) gotMembers(set []Scheduler, ok bool) {
	if !ok {
		s.members = nil // nothing more comes
		return
	}
	s.setMembers(set)
}
