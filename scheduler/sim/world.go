package sim

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/ring"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// world is a scenario under way.
type world struct {
	s     Scenario
	rng   *rand.Rand
	clock func() int64

	now       core.Time
	sent      uint64 // counts messages and leases
	messages  messageHeap
	flows     flowHeap
	notes     []*note
	touched   []*lease // of the change at hand
	unsettled []*place

	states []*state
	view   []string // the live schedulers, as nodes know them
	nodes  []*node  // the seeds last
	byID   map[string]*node
	layers []*layer
	byName map[blob.Digest]*layer
	origin place
	lines  []place // of racks: up, down, up, …

	wanted  int64 // bytes of all nodes
	got     int64
	points  []point // what happens at which progress, the next first
	waiting int     // nodes that are to become whole and are not
	arrived core.Time
	tally
}

// tally is what a Result is made of.
type tally struct {
	decisions, leases, cancels, events int
	hash                               uint64
	applyNs                            int64
	busy, over                         int
	originBytes, seedBytes             int64
	crossBytes, waste, moved           int64
	originReads                        int
}

// point is something that happens when so many bytes have come.
type point struct {
	at int64
	do func()
}

// state is one scheduler.
type state struct {
	index   int
	id      string
	core    *core.State
	alive   bool
	ticking core.Time // 0 while no timer is set
	out     []core.Decision
}

// layer is a blob that every node wants.
type layer struct {
	index  int
	digest blob.Digest
	layout blob.Layout
	origin *core.Origin
	links  []byte
	owner  *state // as nodes know it
}

func newWorld(s Scenario, clock func() int64) (*world, error) {
	w := &world{
		s: s, clock: clock, rng: rand.New(rand.NewPCG(s.Random, 0x73696d)),
		byID: map[string]*node{}, byName: map[blob.Digest]*layer{}, origin: place{rate: s.OriginRate},
	}
	w.hash = 14695981039346656037
	for _, b := range s.Blobs {
		for range b.Count {
			if err := w.addLayer(b.Size); err != nil {
				return nil, err
			}
		}
	}
	for range s.Schedulers {
		w.addState()
	}
	w.lines = make([]place, 2*s.Racks)
	for i := range s.Nodes + max(s.Seeds, 0) {
		w.addNode(i, i >= s.Nodes)
	}
	w.cast()
	for i := range w.lines {
		rate := 0.0
		for _, n := range w.nodes {
			if n.rack == i/2 {
				rate += n.down.rate
			}
		}
		w.lines[i].rate = rate / s.Oversubscribed
	}
	w.look()
	for _, n := range w.nodes {
		for _, st := range w.states {
			w.apply(st, []core.Event{n.attend()}) // they have been there for long
		}
	}
	if s.Warm {
		w.warm()
	}
	w.arrive()
	w.plan()
	return w, nil
}

func (w *world) addLayer(size int64) error {
	l, err := blob.NewLayout(size)
	if err != nil {
		return fmt.Errorf("blobs: %w", err)
	}
	i := len(w.layers)
	name := fmt.Sprintf("layer %d", i)
	o := &layer{
		index: i, digest: blob.FromBytes([]byte(name)), layout: l,
		origin: &core.Origin{Kind: core.BlobOrigin, Registry: "registry.test", Repository: "image"},
		links:  make([]byte, 32*l.Pieces()),
	}
	// Made up: the core joins links, and never looks into them.
	copy(o.links, o.digest.FirstLink())
	for p := 1; p < l.Pieces(); p++ {
		link := o.links[32*p : 32*p+32]
		for k := range 8 {
			link[k] = byte(p >> (8 * (k % 4)))
		}
		link[8] = byte(i)
	}
	w.layers = append(w.layers, o)
	w.byName[o.digest] = o
	return nil
}

func (w *world) addState() *state {
	i := len(w.states)
	st := &state{index: i, id: fmt.Sprintf("scheduler-%d", i), alive: true, core: core.New(w.s.Core, w.s.Random+uint64(i))}
	w.states = append(w.states, st)
	for _, n := range w.nodes {
		n.know(st)
	}
	return st
}

// warm gives the seeds every blob.
func (w *world) warm() {
	for _, n := range w.nodes {
		for _, l := range w.layers {
			if !n.seed {
				continue
			}
			for p := range l.layout.Pieces() {
				w.store(n, l, p)
			}
			w.apply(l.owner, []core.Event{&core.Have{Node: n.id, Digest: l.digest, Size: l.layout.Size(), Sealed: true}})
		}
	}
}

// look is what nodes know of the schedulers from now on.
func (w *world) look() {
	w.view = w.view[:0]
	byID := map[string]*state{}
	for _, st := range w.states {
		if st.alive {
			w.view = append(w.view, st.id)
			byID[st.id] = st
		}
	}
	for _, l := range w.layers {
		l.owner = byID[ring.Owner(string(l.digest), w.view)]
	}
}

// arrive has the nodes come.
func (w *world) arrive() {
	at := core.Time(0)
	for i, n := range w.nodes {
		if n.seed {
			continue
		}
		switch w.s.Arrivals {
		case "staggered":
			at = core.Time(w.rng.Int64N(int64(w.s.Span) + 1))
		case "poisson":
			if i > 0 {
				at += core.Time(w.rng.ExpFloat64() * float64(w.s.Span))
			}
		}
		w.arrived = max(w.arrived, at)
		w.after(at, func() {
			n.came = w.now
			w.wantMore(n)
		})
		for _, l := range w.layers {
			w.wanted += l.layout.Size()
		}
		if n.counts() {
			w.waiting++
		}
	}
}

// run goes on until everybody is whole, nothing happens any more, or the limit.
func (w *world) run() {
	for w.waiting > 0 && w.step() {
	}
}

// step has the next thing happen; false when there is none before the limit.
func (w *world) step() bool {
	flows, messages := len(w.flows) > 0, len(w.messages) > 0
	switch {
	case flows && (!messages || w.flows[0].next < w.messages[0].at):
		l := w.flows[0]
		w.now = max(w.now, l.next)
		if w.now > w.s.Limit {
			return false
		}
		w.advance(l)
	case messages:
		m := w.messages.pop()
		w.now = max(w.now, m.at)
		if w.now > w.s.Limit {
			return false
		}
		w.take(&m)
	default:
		return false
	}
	return true
}

func (w *world) take(m *message) {
	switch m.kind {
	case toState:
		if m.state.alive && m.node.epoch == m.epoch {
			w.apply(m.state, m.note.events)
		}
		w.notes = append(w.notes, m.note)
	case toNode:
		if m.node.alive && m.node.epoch == m.epoch {
			w.decided(m)
		}
	case toHolder:
		w.asked(m.lease)
	case firstByte:
		if !m.lease.ended {
			w.begin(m.lease)
		}
	case refusal:
		w.fail(m.lease, m.reason, 0, 0)
	case stateTimer:
		if m.state.ticking == m.at && m.state.alive {
			m.state.ticking = 0
			w.apply(m.state, []core.Event{&core.Tick{}})
		}
	case alarm:
		m.do()
	}
}

// apply gives events to a State and sends out what it decides.
func (w *world) apply(st *state, events []core.Event) {
	started := int64(0)
	if w.clock != nil {
		started = w.clock()
	}
	out := st.out[:0]
	for _, e := range events {
		out = st.core.Apply(w.now, e, out)
	}
	if w.clock != nil {
		w.applyNs += w.clock() - started
	}
	w.tally.events += len(events)
	for i := range out {
		w.decide(st, &out[i])
	}
	st.out = out
	if at, ok := st.core.Due(); ok && (st.ticking == 0 || at < st.ticking) {
		st.ticking = max(at, w.now+core.Millisecond)
		w.send(message{at: st.ticking, kind: stateTimer, state: st})
	}
}

// decide sends a decision to its node.
func (w *world) decide(st *state, d *core.Decision) {
	w.decisions++
	n := w.byID[d.To]
	w.mix(uint64(w.now), uint64(st.index), uint64(d.Kind), d.ID, uint64(n.index), uint64(w.byName[d.Digest].index),
		uint64(d.Run.First), uint64(d.Run.Count), uint64(d.FirstLink), uint64(len(d.Links)), uint64(d.Deadline), uint64(d.RetryAfter))
	m := message{kind: toNode, state: st, node: n, epoch: n.epoch, order: order{kind: d.Kind, id: d.ID, layer: w.byName[d.Digest], waitMs: d.RetryAfter}}
	switch d.Kind {
	case core.Lease:
		w.leases++
		l := &lease{state: st, node: n, id: d.ID, layer: m.order.layer, run: d.Run, piece: d.Run.First}
		l.heap = -1
		l.span = d.Deadline
		w.sent++
		l.number = w.sent
		if d.Origin == nil {
			l.holder = w.byID[d.Holder.Node]
			w.mix(uint64(l.holder.index))
		}
		m.lease = l
	case core.Cancel:
		w.cancels++
	}
	m.at = max(n.gotAt[st.index], w.now+w.trip())
	n.gotAt[st.index] = m.at
	w.send(m)
}

// mix adds to the hash of all decisions (FNV-1a, by words).
func (w *world) mix(words ...uint64) {
	for _, x := range words {
		w.hash = (w.hash ^ x) * 1099511628211
	}
}

func roundUp(x float64) int { return int(math.Ceil(x - 1e-9)) }
