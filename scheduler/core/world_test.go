package core

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// world is a small cluster that drives a State: nodes with stores, links with a
// delay, an origin that may fail, and liars. Everything in it is drawn from one
// seed.
type world struct {
	t     testing.TB
	s     *State
	rng   *rand.Rand
	now   Time
	queue eventQueue
	seq   int
	nodes []*simNode
	byID  map[string]*simNode
	blobs []*simBlob
	out   []Decision
	opt   worldOptions
	log   []byte // decisions, when kept
	check func()

	originPieces map[string]int // blob/piece -> times read from the origin
	originLeases map[string]int // blob -> origin leases
	badOrigin    map[string]int // blob -> how many readers get wrong bytes
	applied      int
	leased       int
	ticking      Time
}

type worldOptions struct {
	delay      Time    // most that a message takes
	rate       float64 // bytes per second of every slot
	originRate float64
	jitter     float64
	batch      int // pieces a Have
	keepLog    bool
	record     func(Time, Event)
}

type simBlob struct {
	digest blob.Digest
	layout blob.Layout
	origin *Origin
}

// link is link i of the honest chain (version 0) or of a liar's.
func (b *simBlob) link(version, i int) []byte {
	if i == 0 {
		return b.digest.FirstLink()
	}
	l := make([]byte, 32)
	binary.BigEndian.PutUint32(l, uint32(i))
	binary.BigEndian.PutUint32(l[4:], uint32(version))
	copy(l[8:], b.digest.Hex()[:24])
	return l
}

type simNode struct {
	id         string
	seed       bool
	up, down   int
	alive      bool
	epoch      int // of its attendance
	serves     int // leases that read from it
	ups, downs []*xfer
	holds      []*holding
	leases     map[uint64]*simLease
	sendAt     Time // its stream keeps order
	recvAt     Time
	liar       bool // serves wrong bytes
	forger     bool // publishes a wrong chain
	mute       bool // hangs: takes requests, never answers
	terse      bool // does not answer Revoke with Drop
	denied     bool // the origin answers 403 to it
}

type holding struct {
	b        *simBlob
	want     bool
	refused  bool
	runs     []blob.Run
	store    []bool
	version  []int // of each stored piece
	links    []int // version of each known link, -1 unknown
	sealed   bool
	finished Time
}

type simLease struct {
	d     Decision
	next  int
	ended bool
	epoch int
	start Time
}

type simEvent struct {
	at  Time
	seq int
	do  func()
}

type eventQueue []simEvent

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *eventQueue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

func newWorld(t testing.TB, cfg Config, seed uint64, opt worldOptions) *world {
	return &world{
		t: t, s: New(cfg, seed), rng: rand.New(rand.NewPCG(seed, 1)), opt: opt, byID: map[string]*simNode{},
		originPieces: map[string]int{}, originLeases: map[string]int{}, badOrigin: map[string]int{}, ticking: -1,
	}
}

func (w *world) blob(name string, size int64) *simBlob {
	l, err := blob.NewLayout(size)
	if err != nil {
		w.t.Fatal(err)
	}
	b := &simBlob{digest: blob.FromBytes([]byte(name)), layout: l,
		origin: &Origin{Kind: BlobOrigin, Registry: "registry.test", Repository: name}}
	w.blobs = append(w.blobs, b)
	return b
}

func (w *world) node(seed bool, up, down int) *simNode {
	n := &simNode{id: fmt.Sprintf("n%d", len(w.nodes)), seed: seed, up: up, down: down, leases: map[uint64]*simLease{}}
	if seed {
		n.id = "s" + n.id[1:]
	}
	w.nodes = append(w.nodes, n)
	w.byID[n.id] = n
	return n
}

func (w *world) after(d Time, do func()) {
	w.seq++
	heap.Push(&w.queue, simEvent{w.now + d, w.seq, do})
}

func (w *world) between(a, b Time) Time { return a + Time(w.rng.Int64N(int64(b-a)+1)) }

// run drives the world until nothing happens any more, or until end.
func (w *world) run(end Time) {
	for len(w.queue) > 0 {
		e := heap.Pop(&w.queue).(simEvent)
		if e.at > end {
			return
		}
		w.now = max(w.now, e.at)
		e.do()
	}
}

// apply gives an event to the State and sends out what it decides.
func (w *world) apply(e Event) {
	w.applied++
	if w.opt.record != nil {
		w.opt.record(w.now, e)
	}
	w.out = w.s.Apply(w.now, e, w.out[:0])
	for i := range w.out {
		d := w.out[i]
		if w.opt.keepLog {
			w.log = append(AppendDecision(w.log, &d), '\n')
		}
		n := w.byID[d.To]
		epoch := n.epoch
		n.recvAt = max(n.recvAt, w.now+w.between(0, w.opt.delay))
		w.after(n.recvAt-w.now, func() {
			if n.alive && n.epoch == epoch {
				w.decided(n, d)
			}
		})
	}
	if w.check != nil {
		w.check()
	}
	if at, ok := w.s.Due(); ok && (w.ticking < 0 || at < w.ticking) {
		at = max(at, w.now+Millisecond)
		w.ticking = at
		w.after(at-w.now, func() {
			if w.ticking == at {
				w.ticking = -1
				w.apply(&Tick{})
			}
		})
	}
}

// tell sends an event on the node's stream.
func (w *world) tell(n *simNode, e Event) {
	epoch := n.epoch
	n.sendAt = max(n.sendAt, w.now+w.between(0, w.opt.delay))
	w.after(n.sendAt-w.now, func() {
		if n.epoch == epoch {
			w.apply(e)
		}
	})
}

func (w *world) attend(n *simNode) {
	n.alive = true
	n.epoch++
	n.sendAt, n.recvAt = w.now, w.now
	w.tell(n, &Attend{Node: n.id, Address: n.id + ":1", UploadSlots: n.up, DownloadSlots: n.down, Seed: n.seed})
	for _, h := range n.holds {
		w.tellHoldings(n, h)
		if h.want && !h.refused {
			w.tell(n, &Want{Node: n.id, Digest: h.b.digest, Size: h.b.layout.Size(), Runs: h.runs, Origin: h.b.origin})
		}
	}
}

func (w *world) tellHoldings(n *simNode, h *holding) {
	e := &Have{Node: n.id, Digest: h.b.digest, Size: h.b.layout.Size(), Sealed: h.sealed}
	for p, ok := range h.store {
		if ok && (p < len(h.store)-1 || h.sealed) {
			e.Runs = append(e.Runs, blob.Run{First: p, Count: 1})
		}
	}
	for i := 0; i < len(h.links) && h.links[i] >= 0; i++ {
		e.Links = append(e.Links, h.b.link(h.links[i], i)...)
	}
	if len(e.Runs) > 0 || e.Sealed {
		w.tell(n, e)
	}
}

// crash ends a node; the scheduler hears of it now or after a silence.
func (w *world) crash(n *simNode, silence Time) {
	if !n.alive {
		return
	}
	n.alive = false
	for _, l := range n.leases {
		w.finish(n, l)
	}
	epoch := n.epoch
	w.after(silence, func() {
		if n.epoch == epoch {
			w.apply(&Leave{Node: n.id})
		}
	})
}
