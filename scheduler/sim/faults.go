package sim

import (
	"cmp"
	"math"
	"slices"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// partOf is how many of n a fraction is. Numbers are exact and only who is hit is
// random, so that a small crowd has what its scenario says.
func partOf(fraction float64, n int) int { return int(math.Round(fraction * float64(n))) }

// crowd is the nodes in random order.
func (w *world) crowd() []*node {
	nodes := make([]*node, w.s.Nodes)
	for i, k := range w.rng.Perm(w.s.Nodes) {
		nodes[i] = w.nodes[k]
	}
	return nodes
}

// cast says which nodes are slow, and which do wrong: each in one way at most.
func (w *world) cast() {
	s, f := &w.s, &w.s.Faults
	for _, n := range w.crowd()[:partOf(s.Slow, s.Nodes)] {
		n.slow = true
		n.up.rate *= s.SlowFactor
		n.down.rate = n.up.rate
	}
	nodes, upTo, done := w.crowd(), 0.0, 0
	for _, part := range []struct {
		fraction float64
		do       func(*node)
	}{
		{f.Lie, func(n *node) { n.lies = true }},
		{f.Hang, func(n *node) { n.hangs = true }},
		{f.Trickle, func(n *node) { n.drips, n.up.rate = true, 1 }},
		{f.Evict, func(n *node) { n.evicts = true }},
	} {
		upTo += part.fraction
		for ; done < partOf(upTo, s.Nodes); done++ {
			part.do(nodes[done])
		}
	}
}

// plan has what the scenario says go wrong at its time.
func (w *world) plan() {
	f := &w.s.Faults
	bound := w.s.Bound()
	for _, n := range w.crowd()[:partOf(f.Die, w.s.Nodes)] {
		w.after(core.Time(w.rng.Int64N(int64(bound)+1)), func() { w.kill(n) })
	}
	at := func(progress float64, do func()) {
		if progress > 0 {
			w.points = append(w.points, point{int64(progress * float64(w.wanted)), do})
		}
	}
	at(f.SeedDies, w.killReader)
	at(f.SchedulerDies, w.killState)
	at(f.SchedulerJoins, w.joinState)
	slices.SortFunc(w.points, func(a, b point) int { return cmp.Compare(a.at, b.at) })
}

// kill ends a node. Who reads from it notices at once, as its connections break;
// the schedulers after a while.
func (w *world) kill(n *node) {
	if !n.alive {
		return
	}
	if n.counts() && n.whole == 0 {
		w.waiting--
	}
	n.alive = false
	for len(n.leases) > 0 {
		w.finish(n.leases[0])
	}
	for _, o := range w.nodes {
		for i := len(o.leases) - 1; i >= 0; i-- {
			if l := o.leases[i]; l.holder == n && l.served {
				w.fail(l, core.Unreachable, 0, 0)
				i = min(i, len(o.leases))
			}
		}
	}
	w.after(w.s.Faults.Detect, func() {
		for _, st := range w.states {
			if st.alive {
				w.apply(st, []core.Event{&core.Leave{Node: n.id}})
			}
		}
	})
}

// killReader ends the seed that reads the origin; any seed when none does now, and
// a node where there are no seeds.
func (w *world) killReader() {
	var victim *node
	for _, n := range w.nodes {
		reads := slices.ContainsFunc(n.leases, func(l *lease) bool { return l.holder == nil })
		if n.alive && (reads || victim == nil && n.seed) {
			victim = n
			if reads {
				break
			}
		}
	}
	if victim != nil {
		w.kill(victim)
	}
}

// killState ends one scheduler. Its nodes notice after a while, and turn to who
// owns its blobs then; the only one has a successor, who knows nothing.
func (w *world) killState() {
	st := w.states[0]
	if owner := w.layers[0].owner; owner != nil {
		st = owner
	}
	st.alive = false
	w.after(w.s.Faults.Detect, func() {
		if !slices.ContainsFunc(w.states, func(st *state) bool { return st.alive }) {
			w.introduce(w.addState())
		}
		for _, n := range w.nodes {
			for _, l := range slices.Clone(n.leases) {
				switch {
				case l.state != st:
				case l.holder == nil:
					w.finish(l) // who comes after has the origin read from there on
				default: // nobody is left to take it back
					w.after(l.span, func() { w.finish(l) })
				}
			}
		}
		w.move()
	})
}

// joinState adds a scheduler.
func (w *world) joinState() {
	w.introduce(w.addState())
	w.move()
}

func (w *world) introduce(st *state) {
	for _, n := range w.nodes {
		if n.alive {
			w.tellEvent(n, st, n.attend())
		}
	}
}

// move has every node tell the new owners of blobs what it holds and wants, and the
// old ones that it wants nothing of them any more.
func (w *world) move() {
	before := make([]*state, len(w.layers))
	for i, l := range w.layers {
		before[i] = l.owner
	}
	w.look()
	for i, l := range w.layers {
		if l.owner == before[i] {
			continue
		}
		for _, n := range w.nodes {
			if !n.alive {
				continue
			}
			if h := &n.holds[l.index]; h.wanted && before[i] != nil && before[i].alive {
				w.leave(n, l, before[i])
			}
			if l.owner != nil {
				w.tellHolding(n, l, l.owner, n.holds[l.index].count < l.layout.Pieces())
				w.want(n, l)
			}
		}
	}
}

// leave takes a want back, and ends the leases that it gave.
func (w *world) leave(n *node, l *layer, st *state) {
	for i := len(n.leases) - 1; i >= 0; i-- {
		if o := n.leases[i]; o.layer == l && o.state == st {
			w.finish(o)
			i = min(i, len(n.leases))
		}
	}
	w.tellEvent(n, st, &core.Unwant{Node: n.id, Digest: l.digest})
}
