package sim

import "testing"

// books checks what the world keeps count of against what is there.
func books(t *testing.T, w *world, world uint64) {
	t.Helper()
	serving := make([]int, len(w.nodes))
	for _, n := range w.nodes {
		running := 0
		for _, l := range n.leases {
			if l.begun {
				running++
			}
			if l.served {
				serving[l.holder.index]++
			}
			if l.ended || l.node != n || !n.alive {
				t.Fatalf("world %d at %d: %s has a lease that has ended, or is another's, or it is dead", world, w.now, n.id)
			}
		}
		if running != n.running || running > 2*n.slots[1] {
			t.Fatalf("world %d at %d: %s runs %d leases, counts %d, has %d slots", world, w.now, n.id, running, n.running, n.slots[1])
		}
	}
	for i, n := range w.nodes {
		if serving[i] != n.serving || n.serving > 3*n.slots[0] {
			t.Fatalf("world %d at %d: %s serves %d leases, counts %d, has %d slots", world, w.now, n.id, serving[i], n.serving, n.slots[0])
		}
		for _, p := range []*place{&n.up, &n.down} {
			if used := p.used(); used > p.rate*(1+1e-6) {
				t.Fatalf("world %d at %d: a link of %s carries %g of %g", world, w.now, n.id, used, p.rate)
			}
		}
	}
	for i := range w.lines {
		if p := &w.lines[i]; p.used() > p.rate*(1+1e-6) {
			t.Fatalf("world %d at %d: line %d carries %g of %g", world, w.now, i, p.used(), p.rate)
		}
	}
	if w.origin.used() > w.origin.rate*(1+1e-6) {
		t.Fatalf("world %d at %d: the origin sends %g of %g", world, w.now, w.origin.used(), w.origin.rate)
	}
}

func (p *place) used() float64 {
	sum := 0.0
	for _, l := range p.flows {
		sum += l.rate
	}
	return sum
}

// After each event of random worlds with faults no link carries more than it can, no
// node runs or serves more than it may, time does not run back, and every flow moves.
func TestBooks(t *testing.T) {
	for seed := range uint64(40) {
		s := random(seed)
		s.setDefaults()
		s.Limit = 20*s.Bound() + s.arrivalSpan()
		w, err := newWorld(s, nil)
		if err != nil {
			t.Fatal(err)
		}
		for before := w.now; w.waiting > 0 && w.step(); before = w.now {
			if w.now < before {
				t.Fatalf("world %d: time runs from %d to %d", seed, before, w.now)
			}
			books(t, w, seed)
		}
		for _, l := range w.flows {
			if l.rate <= 0 {
				t.Errorf("world %d: a flow stands still", seed)
			}
		}
	}
}
