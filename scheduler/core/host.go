package core

// host is one registry host: the budget of origin leases.
type host struct {
	name    string
	refs    int  // wants and leases
	running int  // origin leases
	until   Time // pause
	strikes int  // pauses in a row
}

// setOrigin keeps the want's origin and counts its host.
func (s *State) setOrigin(rx *receiver, o *Origin) {
	if rx.host != nil {
		s.unrefHost(rx.host)
	}
	rx.origin, rx.host = o, nil
	if o == nil {
		return
	}
	name := o.host()
	h := s.hosts[name]
	if h == nil {
		h = &host{name: name}
		s.hosts[name] = h
	}
	h.refs++
	rx.host = h
}

func (s *State) unrefHost(h *host) {
	h.refs--
	s.forgetHost(h)
}

func (s *State) forgetHost(h *host) {
	if h.refs == 0 && s.now >= h.until && s.hosts[h.name] == h {
		delete(s.hosts, h.name)
	}
}

// closed tells whether no further origin lease may start at h now.
func (s *State) closed(h *host) bool {
	return h.running >= s.cfg.HostLeases || s.now < h.until
}

// pauseHost keeps the whole cluster from a registry host. It tells false when
// the origin asks for longer than anybody should wait.
func (s *State) pauseHost(h *host, wait Time) bool {
	pause := wait
	if pause <= 0 {
		pause = Second << min(h.strikes, 16)
	}
	h.strikes++
	h.until = max(h.until, s.now+min(pause, s.cfg.MaxPause))
	s.timers.push(timer{at: h.until, host: h})
	return wait <= s.cfg.MaxPause
}
