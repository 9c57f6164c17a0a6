package core

import (
	"slices"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Who is left out, by whom and for how long.

// strike notes that by got a bad piece from n. Machines that did shut it out where they
// are more than those that it has served well lately. Others go without the last seed
// only where they have met its bad pieces themselves.
func (s *State) strike(n, by *node) {
	name := by.machine.name
	if slices.Contains(n.strikes, name) || !s.accuses(by.machine, n.id) {
		return
	}
	n.strikes = append(n.strikes, name)
	if i := slices.Index(n.pleased, name); i >= 0 {
		n.pleased = slices.Delete(n.pleased, i, i+1)
	}
	if len(n.strikes) >= max(s.cfg.Strikes, len(n.pleased)+1) && !s.lastSeed(n) {
		s.bar(n, s.now+s.cfg.Quarantine, true)
	}
}

// missing notes that m did not get what h says it has, and tells whether h counts as
// without the run from now on: when nodes of two machines say so. A node that really
// has lost pieces says so itself, by Drop.
func (s *State) missing(m *member, h *node, run blob.Run) bool {
	o := s.members[pair{h.handle, m.b.handle}]
	if o == nil {
		return true
	}
	by := m.n.machine.name
	if o.missedBy == "" || o.missedBy == by {
		o.missedBy = by
		return false
	}
	s.lose(o, run)
	return true
}

// missed notes that by could not reach n.
func (s *State) missed(n, by *node) {
	name := by.machine.name
	if slices.Contains(n.unreached, name) {
		return
	}
	n.unreached = append(n.unreached, name)
	if len(n.unreached) >= s.cfg.Reports && !n.barred {
		gone := min(s.cfg.GoneTime<<min(n.goneTimes, 16), max(300*Second, s.cfg.GoneTime))
		n.goneTimes++
		s.bar(n, s.now+gone, false)
	}
}

// avoided is a node that a receiver, or a swarm in search of a reader, leaves
// out for a time.
type avoided struct {
	node  *node
	until Time
	steps uint8 // times in a row
	hard  bool  // more than a holder at its limit: who else has it?
	bad   bool  // sent bad bytes
}

// avoid notes node n in list for a time that doubles with each time in a row,
// from first up to most. It returns the list and the entry.
func (s *State) avoid(list []avoided, n *node, first, most Time) ([]avoided, *avoided) {
	at := -1
	for i := range list {
		if list[i].node == n {
			at = i
		}
	}
	if at < 0 {
		list = append(list, avoided{node: n})
		at = len(list) - 1
	}
	a := &list[at]
	a.until = s.now + min(first<<min(a.steps, 16), max(first, most))
	if a.steps < 255 {
		a.steps++
	}
	return list, a
}

// holds tells whether the node is left out now; those that do not count as
// holders anyway need not be.
func (a *avoided) holds(now Time) bool {
	return now < a.until && a.node.serial != 0 && !a.node.barred
}

// pardon has m leave out n no longer, which has served it. One good piece does
// not make up for a bad one.
func (s *State) pardon(m *member, n *node) {
	list := m.rx.avoids
	for i := range list {
		if list[i].node == n && !list[i].bad {
			m.rx.avoids = append(list[:i], list[i+1:]...)
			s.enqueue(m, true)
			return
		}
	}
}

// avoids tells whether n is left out now.
func (s *State) avoids(list []avoided, n *node) bool {
	for i := range list {
		if list[i].node == n {
			return s.now < list[i].until
		}
	}
	return false
}

// avoidsHard is avoids without those that are only at their limit.
func (s *State) avoidsHard(list []avoided, n *node) bool {
	for i := range list {
		if list[i].node == n {
			return list[i].hard && s.now < list[i].until
		}
	}
	return false
}

// blame remembers strikes of nodes that have left, so that leaving and coming
// back does not clear a name. It holds a bounded number, the newest.
type blame struct {
	byID  map[string]*blamed
	order []string
}

type blamed struct {
	strikes []string
	until   Time // of the quarantine, or of the memory
	jailed  bool
}

const maxBlamed = 1024

func (s *State) remember(n *node) {
	if len(n.strikes) == 0 {
		return
	}
	if s.blame.byID == nil {
		s.blame.byID = map[string]*blamed{}
	}
	if s.blame.byID[n.id] == nil {
		if len(s.blame.order) >= maxBlamed {
			delete(s.blame.byID, s.blame.order[0])
			s.blame.order = append(s.blame.order[:0], s.blame.order[1:]...)
		}
		s.blame.order = append(s.blame.order, n.id)
	}
	b := &blamed{strikes: n.strikes, until: s.now + s.cfg.Quarantine, jailed: n.quarantined}
	if n.quarantined {
		b.until = n.barredUntil
	}
	s.blame.byID[n.id] = b
}

func (s *State) recall(n *node) {
	b := s.blame.byID[n.id]
	if b == nil || s.now >= b.until {
		return
	}
	n.strikes = b.strikes
	if b.jailed {
		s.bar(n, b.until, true)
	}
}
