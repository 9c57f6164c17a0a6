package sim

import (
	"math"
	"math/rand/v2"
	"testing"
)

// street is a world with nothing but places and flows.
type street struct {
	world
	all []*lease
}

// start opens a flow through places.
func (s *street) start(through ...*place) *lease {
	l := &lease{}
	l.left, l.heap = 1e9, -1
	copy(l.places[:], through)
	s.open(l)
	s.all = append(s.all, l)
	return l
}

func (s *street) stop(l *lease) {
	s.shut(l)
	for i, o := range s.all {
		if o == l {
			s.all = append(s.all[:i], s.all[i+1:]...)
			break
		}
	}
}

func rates(flows ...*lease) []float64 {
	var r []float64
	for _, l := range flows {
		r = append(r, l.rate)
	}
	return r
}

func near(a, b, part float64) bool { return math.Abs(a-b) <= part*math.Max(math.Abs(a), math.Abs(b)) }

func wantRates(t *testing.T, what string, got []float64, want ...float64) {
	t.Helper()
	for i := range want {
		if !near(got[i], want[i], 1e-9) {
			t.Errorf("%s: rates %v, want %v", what, got, want)
			return
		}
	}
}

func TestFlowsShareALink(t *testing.T) {
	s, up, down, other := &street{}, &place{rate: 10}, &place{rate: 10}, &place{rate: 4}
	a := s.start(up, down)
	wantRates(t, "alone", rates(a), 10)
	b := s.start(up, other)
	wantRates(t, "one held up at 4 leaves 6", rates(a, b), 6, 4)
	c := s.start(up, &place{rate: 10})
	wantRates(t, "three in equal parts", rates(a, b, c), 10./3, 10./3, 10./3)
	s.stop(a)
	wantRates(t, "the two that are left", rates(b, c), 4, 6)
	s.stop(c)
	wantRates(t, "the last", rates(b), 4)
}

// What a flow leaves at one place changes who is held up at the next.
func TestAChangeIsFollowed(t *testing.T) {
	s, first, second, third := &street{}, &place{rate: 2}, &place{rate: 10}, &place{rate: 20}
	a := s.start(first, second)
	b := s.start(second, third)
	c := s.start(third, &place{rate: 100})
	wantRates(t, "held up at the first place", rates(a, b, c), 2, 8, 12)
	d := s.start(first, &place{rate: 100})
	wantRates(t, "two at the first place", rates(a, b, c, d), 1, 9, 11, 1)
	s.stop(a)
	wantRates(t, "without it", rates(b, c, d), 10, 10, 2)
}

func TestARacksLineBinds(t *testing.T) {
	s, out, in := &street{}, &place{rate: 5}, &place{rate: 50}
	var flows []*lease
	for range 4 {
		flows = append(flows, s.start(&place{rate: 10}, &place{rate: 10}, out, in))
	}
	inside := s.start(&place{rate: 10}, &place{rate: 10})
	wantRates(t, "four cross, one stays", append(rates(flows...), inside.rate), 1.25, 1.25, 1.25, 1.25, 10)
}

// filled is max-min fairness as textbooks compute it: all rates grow alike until a
// place is full, then those that pass it stay.
func filled(flows []*lease) map[*lease]float64 {
	rate, done := map[*lease]float64{}, map[*lease]bool{}
	for len(done) < len(flows) {
		left, growing := map[*place]float64{}, map[*place]float64{}
		for _, l := range flows {
			for _, p := range l.places {
				if p == nil {
					continue
				}
				if _, ok := left[p]; !ok {
					left[p] = p.rate
				}
				left[p] -= rate[l]
				if !done[l] {
					growing[p]++
				}
			}
		}
		step := math.Inf(1)
		for p, n := range growing {
			step = min(step, left[p]/n)
		}
		for _, l := range flows {
			if !done[l] {
				rate[l] += step
			}
		}
		for _, l := range flows {
			for _, p := range l.places {
				if p != nil && growing[p] > 0 && left[p]/growing[p] <= step*(1+1e-9) {
					done[l] = true
				}
			}
		}
	}
	return rate
}

// In random streets every flow has the rate that the textbook gives it, after each
// start and each stop.
func TestSharingIsMaxMinFair(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := &street{}
		ups, downs, lines := make([]place, 2+r.IntN(8)), make([]place, 2+r.IntN(8)), make([]place, 4)
		for _, ps := range [][]place{ups, downs, lines} {
			for i := range ps {
				ps[i].rate = []float64{1, 1, 1, 0.1, 5, r.Float64() + 0.01}[r.IntN(6)] * 1e6
			}
		}
		for step := range 120 {
			if len(s.all) > 0 && r.IntN(5) < 2 {
				s.stop(s.all[r.IntN(len(s.all))])
			} else {
				through := []*place{&ups[r.IntN(len(ups))], &downs[r.IntN(len(downs))]}
				if r.IntN(3) == 0 {
					through = append(through, &lines[r.IntN(2)], &lines[2+r.IntN(2)])
				}
				s.start(through...)
			}
			for l, want := range filled(s.all) {
				if !near(l.rate, want, 1e-6) {
					t.Fatalf("seed %d, step %d: a flow of %d has %g, want %g", seed, step, len(s.all), l.rate, want)
				}
			}
		}
	}
}
