package sim

import (
	"fmt"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// node is a node or a seed: what pkg/task, pkg/peer and pkg/control make of a real
// one.
type node struct {
	index   int
	id      string
	seed    bool
	slow    bool
	rack    int  // -1 for none
	placed  bool // schedulers are told the rack
	up      place
	down    place
	slots   [2]int // upload, download
	alive   bool
	epoch   int
	lies    bool
	hangs   bool
	drips   bool
	evicts  bool
	holds   []holding
	leases  []*lease // that it runs, or has waiting
	running int      // of these, those that it has begun
	serving int      // leases that read from it
	serves  []int    // the same, by State

	sentAt, gotAt []core.Time // by State: streams keep order
	told          [][2]int    // slots that each State was told
	telling       bool

	next        int // layer that it wants next
	came, whole core.Time
}

// holding is what a node has of a layer.
type holding struct {
	have   []uint64
	count  int
	wanted bool
}

func (h *holding) has(p int) bool { return h.count > 0 && h.have[p>>6]>>(p&63)&1 == 1 }

// lease is one that a node carries out.
type lease struct {
	flow
	number uint64
	state  *state
	node   *node
	holder *node // nil for the origin
	layer  *layer
	id     uint64
	run    blob.Run
	piece  int // the next to come
	begun  bool
	ended  bool
	served bool    // counted at its holder
	work   float64 // bytes of the piece that comes, jitter included
	mayEnd bool    // Ending has not been said yet
	start  core.Time
	span   core.Time // that it may take
}

func (w *world) addNode(i int, seed bool) {
	s := &w.s
	n := &node{index: i, id: fmt.Sprintf("n%d", i), seed: seed, alive: true, rack: -1, holds: make([]holding, len(w.layers))}
	rate, slots := s.Rate, 1.0
	if seed {
		rate, slots = s.SeedRate, max(s.SeedRate/s.Rate, 1)
	}
	n.up.rate, n.down.rate = rate, rate
	n.slots = [2]int{roundUp(slots * float64(s.UploadSlots)), roundUp(slots * float64(s.DownloadSlots))}
	if s.Racks > 0 {
		n.rack, n.placed = i%s.Racks, !s.NoPlaces
	}
	w.nodes = append(w.nodes, n)
	w.byID[n.id] = n
	for _, st := range w.states {
		n.know(st)
	}
}

// know makes room for what a node remembers of a State.
func (n *node) know(st *state) {
	for len(n.sentAt) <= st.index {
		n.sentAt, n.gotAt = append(n.sentAt, 0), append(n.gotAt, 0)
		n.serves, n.told = append(n.serves, 0), append(n.told, n.slots)
	}
}

func (n *node) attend() *core.Attend {
	a := &core.Attend{Node: n.id, Address: n.id + ":1", UploadSlots: n.slots[0], DownloadSlots: n.slots[1], Seed: n.seed}
	if n.placed {
		a.Zone, a.Rack = "zone", fmt.Sprintf("rack-%d", n.rack)
	}
	return a
}

// counts tells whether the node must be whole in the end.
func (n *node) counts() bool { return !n.seed && n.alive && !n.lies && !n.hangs }

// wantMore wants as many layers as the node fetches at a time.
func (w *world) wantMore(n *node) {
	running := 0
	for i := range n.holds {
		if n.holds[i].wanted {
			running++
		}
	}
	for n.alive && n.next < len(w.layers) && (w.s.Parallel == 0 || running < w.s.Parallel) {
		l := w.layers[n.next]
		n.next++
		running++
		n.holds[l.index].wanted = true
		w.want(n, l)
	}
}

func (w *world) want(n *node, l *layer) {
	if l.owner != nil && n.alive && n.holds[l.index].wanted {
		w.tellEvent(n, l.owner, &core.Want{Node: n.id, Digest: l.digest, Size: l.layout.Size(), Origin: l.origin})
	}
}

// decided is what a node does with a decision.
func (w *world) decided(m *message) {
	n := m.node
	switch m.order.kind {
	case core.Lease:
		n.leases = append(n.leases, m.lease)
		if len(w.states) == 1 || n.running < 2*n.slots[1] {
			w.begun(m.lease)
		}
		w.tellSlots(n)
	case core.Cancel:
		for _, l := range n.leases {
			if l.id == m.order.id && l.state == m.state {
				w.finish(l)
				break
			}
		}
	case core.Refuse:
		w.after(max(m.order.waitMs, core.Second), func() { w.want(n, m.order.layer) })
	case core.Tell:
		w.tellHolding(n, m.order.layer, m.state, true)
	case core.Revoke:
		h := &n.holds[m.order.layer.index]
		if h.count < m.order.layer.layout.Pieces() {
			w.lose(n, m.order.layer)
			w.want(n, m.order.layer)
		}
	}
}

// tellHolding says what a node has of a layer, with its links.
func (w *world) tellHolding(n *node, l *layer, st *state, links bool) {
	h := &n.holds[l.index]
	if h.count == 0 {
		return
	}
	e := &core.Have{Node: n.id, Digest: l.digest, Size: l.layout.Size(), Sealed: h.count == l.layout.Pieces()}
	for p := 0; p < l.layout.Pieces() && !e.Sealed; p++ {
		if h.has(p) {
			e.Runs = append(e.Runs, blob.Run{First: p, Count: 1})
		}
	}
	if links {
		e.Links = l.links
	}
	w.tellEvent(n, st, e)
}

// store takes a piece that has come.
func (w *world) store(n *node, l *layer, p int) {
	h := &n.holds[l.index]
	if h.has(p) {
		w.waste += l.layout.Length(p)
		return
	}
	if h.have == nil {
		h.have = make([]uint64, (l.layout.Pieces()+63)/64)
	}
	h.have[p>>6] |= 1 << (p & 63)
	h.count++
	if n.seed {
		return
	}
	w.got += l.layout.Length(p)
	for len(w.points) > 0 && w.got >= w.points[0].at {
		do := w.points[0].do
		w.points = w.points[1:]
		do()
	}
	if h.count < l.layout.Pieces() || !h.wanted {
		return
	}
	h.wanted = false
	if n.evicts {
		n.evicts = false
		w.after(core.Time(w.rng.Int64N(int64(core.Second))), func() { w.lose(n, l) })
	}
	w.wantMore(n)
	if n.whole > 0 || n.next < len(w.layers) {
		return
	}
	for i := range n.holds {
		if n.holds[i].wanted {
			return
		}
	}
	n.whole = w.now
	if n.counts() {
		w.waiting--
	}
}

// lose drops a layer and says so.
func (w *world) lose(n *node, l *layer) {
	h := &n.holds[l.index]
	clear(h.have)
	h.count = 0
	if n.alive && l.owner != nil {
		w.tellEvent(n, l.owner, &core.Drop{Node: n.id, Digest: l.digest})
	}
}
