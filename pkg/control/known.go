package control

import (
	"math/rand/v2"
	"slices"
)

// candidates are whom to try, in order. Nodes begin at different ones, so that each
// scheduler gets its share of those that come at once. Those that an earlier process knew
// come last: the starting points may have been changed since.
func (s *Set) candidates() []Holder {
	var starts, out []Holder
	for _, address := range s.cfg.Schedulers {
		starts = append(starts, Holder{Address: address})
	}
	s.mu.Lock()
	if len(s.known) > 1 { // one alone may have come back with another key
		out = slices.Clone(s.known)
	}
	s.mu.Unlock()
	remembered := slices.Clone(s.cfg.Remembered.Schedulers)
	for _, all := range [][]Holder{out, starts, remembered} {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	}
	out = append(out, starts...)
	for _, h := range remembered {
		if !slices.ContainsFunc(out, func(o Holder) bool { return o.Address == h.Address }) {
			out = append(out, h)
		}
	}
	return out
}

// learn tells who is known, where that has changed. The last seeds stay known where there
// is none: a scheduler that has just started has not heard of any yet.
func (s *Set) learn() {
	if s.cfg.Learned == nil {
		return
	}
	s.mu.Lock()
	now := Known{Schedulers: slices.Clone(s.known), Seeds: slices.Clone(s.seeds)}
	if len(now.Seeds) == 0 {
		now.Seeds = s.told.Seeds
	}
	same := len(now.Schedulers) == 0 || slices.Equal(now.Schedulers, s.told.Schedulers) && slices.Equal(now.Seeds, s.told.Seeds)
	if !same {
		s.told = now
	}
	s.mu.Unlock()
	if !same {
		s.cfg.Learned(now)
	}
}
