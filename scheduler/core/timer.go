package core

// timer wakes one of a swarm, a member, a node or a host. A timer is never taken back:
// what it wakes looks for itself whether there is still anything to do.
type timer struct {
	at     Time
	number uint64 // equal times fire in the order they were set
	swarm  *swarm
	member *member
	node   *node
	host   *host
}

// timers is a binary heap, soonest first.
type timers struct {
	heap   []timer
	number uint64
}

func (t *timers) first() (Time, bool) {
	if len(t.heap) == 0 {
		return 0, false
	}
	return t.heap[0].at, true
}

func (t *timers) less(i, j int) bool {
	a, b := &t.heap[i], &t.heap[j]
	return a.at < b.at || a.at == b.at && a.number < b.number
}

func (t *timers) push(x timer) {
	t.number++
	x.number = t.number
	t.heap = append(t.heap, x)
	for i := len(t.heap) - 1; i > 0; {
		up := (i - 1) / 2
		if !t.less(i, up) {
			break
		}
		t.heap[i], t.heap[up] = t.heap[up], t.heap[i]
		i = up
	}
}

func (t *timers) pop() timer {
	x := t.heap[0]
	last := len(t.heap) - 1
	t.heap[0] = t.heap[last]
	t.heap[last] = timer{}
	t.heap = t.heap[:last]
	for i := 0; ; {
		down := 2*i + 1
		if down >= last {
			break
		}
		if down+1 < last && t.less(down+1, down) {
			down++
		}
		if !t.less(down, i) {
			break
		}
		t.heap[i], t.heap[down] = t.heap[down], t.heap[i]
		i = down
	}
	return x
}

func (s *State) wakeSwarm(b *swarm, at Time)   { s.timers.push(timer{at: at, swarm: b}) }
func (s *State) wakeMember(m *member, at Time) { s.timers.push(timer{at: at, member: m}) }
func (s *State) wakeNode(n *node, at Time)     { s.timers.push(timer{at: at, node: n}) }

func (s *State) wake(m *member) {
	if m.b == nil {
		return // forgotten since
	}
	if m.rx != nil {
		s.enqueue(m, true)
	}
	if m.hushed > 0 && s.now >= m.hushed {
		s.unhush(m)
	}
	if m.revoked && s.now >= m.b.revokedAt+s.cfg.IdleTime {
		m.revoked = false
		s.loosen(m)
	}
}

// expire does what has become due by now.
func (s *State) expire() {
	for {
		at, ok := s.timers.first()
		if !ok || at > s.now {
			break
		}
		switch t := s.timers.pop(); {
		case t.member != nil:
			s.wake(t.member)
		case t.node != nil:
			if t.node.serial != 0 && s.now >= t.node.barredUntil {
				s.unbar(t.node)
			}
		case t.host != nil:
			s.unpark = true
			s.forgetHost(t.host)
		default:
			s.touch(t.swarm)
		}
	}
	if s.leases.running > 0 && s.now >= s.swept+s.cfg.SweepTime {
		s.sweep()
	}
	if s.leases.running == 0 {
		s.swept = s.now
	}
}
