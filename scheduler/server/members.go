package server

import (
	"maps"
	"slices"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Scheduler is one of the cluster's schedulers: its peer ID and the host:port at
// which nodes attend it.
type Scheduler struct{ ID, Address string }

// maxSeeds bounds the seeds that nodes are told of.
const maxSeeds = 16

// tellMembers tells everybody who attends who the schedulers and the seeds are. Who
// attends later is told it behind Welcome.
func (s *Server) tellMembers() {
	m := &damselflyv1.Schedulers{}
	for _, one := range s.set {
		m.Members = append(m.Members, &damselflyv1.Holder{Node: one.ID, Address: one.Address})
	}
	for _, id := range slices.Sorted(maps.Keys(s.streams)) {
		if a := s.streams[id]; a.seed != "" && len(m.Seeds) < maxSeeds {
			m.Seeds = append(m.Seeds, &damselflyv1.Holder{Node: id, Address: a.seed})
		}
	}
	s.told = &damselflyv1.Decision{Decision: &damselflyv1.Decision_Schedulers{Schedulers: m}}
	for _, a := range s.streams {
		s.tell(a, item{wire: s.told})
	}
}

// lookAtMembers takes a new set if there is one, and tells what has changed.
func (s *Server) lookAtMembers() {
	select {
	case set, ok := <-s.members:
		s.gotMembers(set, ok)
	default:
	}
	if s.retell {
		s.retell = false
		s.tellMembers()
	}
}

func (s *Server) gotMembers(set []Scheduler, ok bool) {
	if !ok {
		s.members = nil // nothing more comes
		return
	}
	s.set, s.retell = set, true
}
