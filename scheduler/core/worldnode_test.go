package core

import (
	"encoding/binary"
	"fmt"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// How a node of the world acts on decisions.

func (n *simNode) holding(b *simBlob) *holding {
	for _, h := range n.holds {
		if h.b == b {
			return h
		}
	}
	h := &holding{b: b, store: make([]bool, b.layout.Pieces()), version: make([]int, b.layout.Pieces()), links: make([]int, b.layout.Pieces())}
	h.forget()
	n.holds = append(n.holds, h)
	return h
}

func (h *holding) forget() {
	for p := range h.store {
		h.store[p], h.links[p] = false, -1
	}
	h.links[0] = 0
	h.sealed = false
}

func (w *world) want(n *simNode, b *simBlob, runs []blob.Run) {
	h := n.holding(b)
	h.want, h.runs, h.refused = true, runs, false
	if n.alive {
		w.tell(n, &Want{Node: n.id, Digest: b.digest, Size: b.layout.Size(), Runs: runs, Origin: b.origin})
	}
}

func (h *holding) wants(p int) bool {
	if !h.want || h.refused {
		return false
	}
	if len(h.runs) == 0 {
		return true
	}
	for _, r := range h.runs {
		if r.Contains(p) {
			return true
		}
	}
	return false
}

// waits tells whether the node's want is neither fulfilled nor refused.
func (h *holding) waits() bool {
	for p, ok := range h.store {
		if !ok && h.wants(p) {
			return true
		}
	}
	return false
}

func (w *world) blobOf(d blob.Digest) *simBlob {
	for _, b := range w.blobs {
		if b.digest == d {
			return b
		}
	}
	return nil
}

// decided is what a node does with a decision.
func (w *world) decided(n *simNode, d Decision) {
	b := w.blobOf(d.Digest)
	h := n.holding(b)
	switch d.Kind {
	case Lease:
		w.leased++
		l := &simLease{d: d, next: d.Run.First, epoch: n.epoch, start: w.now}
		n.leases[d.ID] = l
		for i := 0; i*32 < len(d.Links); i++ {
			if p := d.FirstLink + i; p < len(h.links) && h.links[p] < 0 {
				h.links[p] = int(binary.BigEndian.Uint32(d.Links[i*32+4:]))
			}
		}
		if d.Origin != nil {
			w.originLeases[string(d.Digest)]++
			w.readOrigin(n, h, l)
			return
		}
		w.readHolder(n, h, l)
	case Cancel:
		if l := n.leases[d.ID]; l != nil {
			w.finish(n, l)
		}
	case Refuse:
		h.refused = true
	case Revoke:
		if !h.sealed {
			h.forget()
			if !n.terse {
				w.tell(n, &Drop{Node: n.id, Digest: b.digest})
			}
			if h.waits() {
				w.want(n, b, h.runs)
			}
		}
	case Tell:
		w.tellHoldings(n, h)
	}
}

// finish ends the lease at its node; false when it has ended before.
func (w *world) finish(n *simNode, l *simLease) bool {
	if l.ended {
		return false
	}
	l.ended = true
	delete(n.leases, l.d.ID)
	if l.d.Origin == nil && l.epoch > 0 {
		w.byID[l.d.Holder.Node].serves--
	}
	return true
}

func (w *world) fail(n *simNode, l *simLease, e Failed) {
	if w.finish(n, l) {
		e.Node, e.Lease = n.id, l.d.ID
		w.tell(n, &e)
	}
}

func (w *world) pieceTime(b *simBlob, p int, rate float64) Time {
	j := 1 + w.opt.jitter*(2*w.rng.Float64()-1)
	return Time(float64(b.layout.Length(p)) / rate * j * float64(Second))
}

// readHolder reads a run from another node, piece by piece.
func (w *world) readHolder(n *simNode, h *holding, l *simLease) {
	src := w.byID[l.d.Holder.Node]
	src.serves++
	if src.serves > src.up && src.alive {
		w.after(w.between(0, w.opt.delay), func() { w.fail(n, l, Failed{Reason: Busy}) })
		return
	}
	epoch := n.epoch
	var step func()
	step = func() {
		if l.ended || !n.alive || n.epoch != epoch {
			return
		}
		p := l.next
		theirs := src.holding(h.b)
		switch {
		case !src.alive:
			w.fail(n, l, Failed{Reason: Unreachable})
		case src.mute:
		case !theirs.store[p]:
			w.fail(n, l, Failed{Reason: Missing})
		case src.liar || !h.proves(p, theirs.version[p]):
			w.fail(n, l, Failed{Reason: BadPiece})
		default:
			w.store(n, h, p, theirs.version[p], l, step)
		}
	}
	w.transfer(src, n, h.b, l.next, step)
}

// xfer is one piece on its way from node to node.
type xfer struct {
	src, dst  *simNode
	rem, rate float64
	last      Time
	version   int
	do        func()
}

// transfer moves a piece at the rate that the links of both ends leave for it, each
// shared by what runs over it, and calls do when it has come.
func (w *world) transfer(src, dst *simNode, b *simBlob, p int, do func()) {
	j := 1 + w.opt.jitter*(2*w.rng.Float64()-1)
	x := &xfer{src: src, dst: dst, rem: float64(b.layout.Length(p)) * j, last: w.now, do: do}
	src.ups = append(src.ups, x)
	dst.downs = append(dst.downs, x)
	w.reshare(src, dst)
}

func (w *world) reshare(src, dst *simNode) {
	for _, x := range src.ups {
		w.rerate(x)
	}
	for _, x := range dst.downs {
		if x.src != src {
			w.rerate(x)
		}
	}
}

func (w *world) rerate(x *xfer) {
	rate := min(2*w.opt.rate/float64(len(x.src.ups)), 2*w.opt.rate/float64(len(x.dst.downs)))
	if rate == x.rate {
		return
	}
	x.rem -= x.rate * float64(w.now-x.last) / 1e9
	x.last, x.rate = w.now, rate
	x.version++
	v := x.version
	w.after(Time(max(x.rem, 0)/rate*1e9), func() {
		if x.version == v {
			x.version = -1
			x.src.ups = without(x.src.ups, x)
			x.dst.downs = without(x.dst.downs, x)
			w.reshare(x.src, x.dst)
			x.do()
		}
	})
}

func without(l []*xfer, x *xfer) []*xfer {
	for i, o := range l {
		if o == x {
			l[i] = l[len(l)-1]
			return l[:len(l)-1]
		}
	}
	return l
}

// proves tells whether a piece of that version fits the links that the node
// knows, and the last one the digest.
func (h *holding) proves(p, version int) bool {
	if p == len(h.store)-1 {
		return version == 0 && h.links[p] == 0 // the digest itself
	}
	return h.links[p+1] == version && (p == 0 || h.links[p] == version)
}

// store takes a piece that has come and goes on with the lease.
func (w *world) store(n *simNode, h *holding, p, version int, l *simLease, step func()) {
	w.put(n, h, p, version)
	l.next++
	done := l.next == l.d.Run.End()
	if (l.next-l.d.Run.First)%w.opt.batch == 0 || done {
		first := max(l.d.Run.First, l.next-w.opt.batch)
		w.announce(n, h, blob.Run{First: first, Count: l.next - first}, false)
	}
	if !done {
		w.transfer(w.byID[l.d.Holder.Node], n, h.b, l.next, step)
		return
	}
	if w.finish(n, l) {
		w.tell(n, &Done{Node: n.id, Lease: l.d.ID, Bytes: h.b.layout.Bytes(l.d.Run), Time: w.now - l.start})
	}
}

// put stores a piece: a want may be fulfilled, the blob whole and proven.
func (w *world) put(n *simNode, h *holding, p, version int) {
	h.store[p], h.version[p] = true, version
	if h.want && !h.waits() {
		h.want = false
		h.finished = w.now
	}
	if h.sealed {
		return
	}
	for p := range h.store {
		if !h.store[p] || h.version[p] != 0 && !n.forger {
			return
		}
	}
	h.sealed = true
}

// announce says Have for a run, with links when they come from the origin.
func (w *world) announce(n *simNode, h *holding, r blob.Run, links bool) {
	last := len(h.store) - 1
	e := &Have{Node: n.id, Digest: h.b.digest, Size: h.b.layout.Size(), Sealed: h.sealed}
	if r.End() > last && !h.sealed {
		r.Count--
	}
	if r.Count > 0 {
		e.Runs = []blob.Run{r}
	}
	if links {
		e.FirstLink = r.First
		for i := r.First; i <= min(r.End(), last) && h.links[i] >= 0; i++ {
			e.Links = append(e.Links, h.b.link(h.links[i], i)...)
		}
	}
	if len(e.Runs) > 0 || e.Sealed {
		w.tell(n, e)
	}
}

// readOrigin reads a run from the origin, in order.
func (w *world) readOrigin(n *simNode, h *holding, l *simLease) {
	epoch := n.epoch
	version := 0
	if n.forger {
		version = 1
	}
	if w.badOrigin[string(h.b.digest)] > 0 {
		w.badOrigin[string(h.b.digest)]--
		version = 2
	}
	if n.denied {
		w.after(w.between(0, w.opt.delay), func() { w.fail(n, l, Failed{Reason: OriginError, Status: 403}) })
		return
	}
	var step func()
	step = func() {
		if l.ended || !n.alive || n.epoch != epoch || n.mute {
			return
		}
		p := l.next
		last := len(h.store) - 1
		v := version
		switch {
		case h.store[p]:
			v = h.version[p]
		default:
			w.originPieces[fmt.Sprint(h.b.origin.Repository, p)]++
		}
		if h.links[p] > 0 && h.links[p] != v || p == last && v != 0 && !n.forger {
			w.fail(n, l, Failed{Reason: BadDigest})
			return
		}
		if p < last && h.links[p+1] < 0 {
			h.links[p+1] = v
		}
		if p < last && h.links[p+1] != v {
			w.fail(n, l, Failed{Reason: BadDigest})
			return
		}
		w.storeOrigin(n, h, p, v, l, step)
	}
	w.after(w.pieceTime(h.b, l.next, w.opt.originRate), step)
}

func (w *world) storeOrigin(n *simNode, h *holding, p, version int, l *simLease, step func()) {
	w.put(n, h, p, version)
	l.next++
	w.announce(n, h, blob.Run{First: p, Count: 1}, true)
	if l.next < l.d.Run.End() {
		w.after(w.pieceTime(h.b, l.next, w.opt.originRate), step)
		return
	}
	if w.finish(n, l) {
		w.tell(n, &Done{Node: n.id, Lease: l.d.ID, Bytes: h.b.layout.Bytes(l.d.Run), Time: w.now - l.start})
	}
}
