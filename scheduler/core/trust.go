package core

import "slices"

// What an accusation weighs. Names cost nothing: a join token makes as many as its
// holder likes. A machine does: nodes that attend from one are one voice.

// machine is where nodes attend from.
type machine struct {
	name  string
	nodes int // that attend from it
	// Since when, and whom, it has accused, and who has served it: IDs, a few of each.
	since           Time
	accused, served []string
	hung            []string // from whom it got nothing by its last lease
}

const (
	// maxVoices bounds the lists of who accused, served, or was served.
	maxVoices = 8
	// maxMachines bounds the machines that are remembered for what they said when no
	// node attends from them any more.
	maxMachines = 1024
)

// machineOf finds or makes the machine of a node that attends.
func (s *State) machineOf(e *Attend) *machine {
	name := e.Machine
	if name == "" {
		name = "node " + e.Node // nobody knows where it is
	}
	if s.machines == nil {
		s.machines = map[string]*machine{}
	}
	m := s.machines[name]
	if m == nil {
		m = &machine{name: name}
		s.machines[name] = m
	}
	m.nodes++
	return m
}

// leaveMachine forgets the machine with its last node, unless it has accused somebody:
// it must not come back with another name and none of that.
func (s *State) leaveMachine(m *machine) {
	if m.nodes--; m.nodes > 0 {
		return
	}
	if len(m.accused) == 0 {
		delete(s.machines, m.name)
		return
	}
	s.absent = append(s.absent, m)
	if len(s.absent) <= maxMachines {
		return
	}
	if old := s.absent[0]; old.nodes == 0 && s.machines[old.name] == old {
		delete(s.machines, old.name)
	}
	s.absent = append(s.absent[:0], s.absent[1:]...)
}

// fresh forgets what the machine said longer ago than a quarantine lasts.
func (s *State) fresh(m *machine) {
	if s.now >= m.since+s.cfg.Quarantine {
		m.since, m.accused, m.served, m.hung = s.now, nil, nil, nil
	}
}

// accuses notes that m accuses a node, and tells whether that counts: who accuses many,
// and more than have served it well, has a fault of its own or means harm.
func (s *State) accuses(m *machine, id string) bool {
	s.fresh(m)
	m.accused = voice(m.accused, id)
	if i := slices.Index(m.served, id); i >= 0 {
		m.served = slices.Delete(m.served, i, i+1)
	}
	return len(m.accused) < s.cfg.Strikes || len(m.accused) <= len(m.served)
}

// serves notes that h has sent n what it should.
func (s *State) serves(h, n *node) {
	if i := slices.Index(n.machine.hung, h.id); i >= 0 {
		n.machine.hung = slices.Delete(n.machine.hung, i, i+1)
	}
	if slices.Contains(h.pleased, n.machine.name) && slices.Contains(n.machine.served, h.id) {
		return // the usual case
	}
	if s.now >= h.pleasedAt+s.cfg.Quarantine {
		h.pleased, h.pleasedAt = nil, s.now
	}
	if !slices.Contains(h.strikes, n.machine.name) {
		h.pleased = voice(h.pleased, n.machine.name)
	}
	s.fresh(n.machine)
	if !slices.Contains(n.machine.accused, h.id) {
		n.machine.served = voice(n.machine.served, h.id)
	}
}

func voice(list []string, name string) []string {
	if len(list) >= maxVoices || slices.Contains(list, name) {
		return list
	}
	return append(list, name)
}

// lastSeed tells whether no other seed attends that is not shut out.
func (s *State) lastSeed(n *node) bool {
	if !n.seed {
		return false
	}
	for _, o := range s.seeds {
		if o != n && !o.quarantined {
			return false
		}
	}
	return true
}

// doubtTime is how long another machine has to find links wrong until the one that said
// so first is enough.
const doubtTime = 30 * Second

// doubt notes that m has found the links of b wrong, by the origin's bytes, and tells
// whether they fall. Where nobody has got a piece by them, but who said them, nothing
// is lost with them. Else one that says so may lie: two machines show that the links do,
// or one where no other could look, or none has when it looks again.
func (s *State) doubt(b *swarm, m *member) bool {
	if !b.backed(m) {
		return true
	}
	if slices.Contains(b.doubts, m.n.machine.name) {
		return s.now >= b.doubtedAt+doubtTime
	}
	b.doubts, b.doubtedAt = append(b.doubts, m.n.machine.name), s.now
	return len(b.doubts) > 1 || !s.substitute(b, m.n)
}

// backed tells whether somebody but m stands for the links of b: who has got pieces by them
// and did not say them, who reads the origin now and brings some, or a seed.
func (b *swarm) backed(m *member) bool {
	return slices.ContainsFunc(b.members, func(o *member) bool {
		return o != m && o.counted && (!o.told || o == b.reader || o.n.seed)
	})
}
