package sim

import (
	"slices"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// begun starts to carry out a lease.
func (w *world) begun(l *lease) {
	n := l.node
	l.begun, l.start = true, w.now
	n.running++
	if n.running > 2*n.slots[1] {
		w.over++ // a slot can have one lease that runs and one that is ending
	}
	if l.holder == nil {
		w.originReads++
		l.places = [maxPlaces]*place{&w.origin, &n.down}
		w.send(message{at: w.now + w.trip() + w.trip() + w.s.OriginLatency, kind: firstByte, lease: l})
		return
	}
	l.places = [maxPlaces]*place{&l.holder.up, &n.down}
	if l.holder.rack != n.rack {
		l.places[2], l.places[3] = &w.lines[2*l.holder.rack], &w.lines[2*n.rack+1]
	}
	l.mayEnd = !w.s.NoEnding && w.s.Latency > 0
	w.send(message{at: w.now + w.trip(), kind: toHolder, lease: l})
}

// asked is what a holder does with a request.
func (w *world) asked(l *lease) {
	h := l.holder
	switch {
	case l.ended:
		return
	case !h.alive:
		w.send(message{at: w.now + w.trip(), kind: refusal, lease: l, reason: core.Unreachable})
		return
	case h.serving >= 3*h.slots[0]:
		w.busy++
		w.send(message{at: w.now + w.trip(), kind: refusal, lease: l, reason: core.Busy})
		return
	}
	l.served = true
	h.serving++
	h.serves[l.state.index]++
	w.tellSlots(h)
	if !h.hangs {
		w.send(message{at: w.now + w.trip(), kind: firstByte, lease: l})
	}
}

// begin has the next piece of a lease come.
func (w *world) begin(l *lease) {
	if l.holder == nil {
		if f := &w.s.Faults; f.OriginBusy > 0 {
			f.OriginBusy--
			w.fail(l, core.OriginError, 429, f.RetryAfter)
			return
		} else if f.OriginFails > 0 && w.rng.Float64() < f.OriginFails {
			if w.rng.IntN(2) == 0 {
				w.fail(l, core.OriginError, 503, 0)
			} else {
				w.fail(l, core.Unreachable, 0, 0)
			}
			return
		}
	} else if !l.holder.alive || !l.holder.holds[l.layer.index].has(l.piece) {
		reason := core.Missing
		if !l.holder.alive {
			reason = core.Unreachable
		}
		w.fail(l, reason, 0, 0)
		return
	}
	l.left = float64(l.layer.layout.Length(l.piece))
	if w.s.Jitter > 0 {
		l.left *= 1 + w.s.Jitter*(2*w.rng.Float64()-1)
	}
	l.work = l.left
	if l.heap < 0 {
		w.open(l)
		return
	}
	l.since = w.now
	w.aim(l)
}

// advance does what is due for a flow: its node says that it is ending, or a piece
// has come.
func (w *world) advance(l *lease) {
	if l.next < l.end {
		l.mayEnd = false
		t := w.note()
		t.ending = core.Ending{Node: l.node.id, Lease: l.id}
		t.events = append(t.events, &t.ending)
		w.tell(l.node, l.state, t)
		l.next = l.end
		w.flows.fix(l)
		return
	}
	n, p := l.node, l.piece
	bytes := l.layer.layout.Length(p)
	l.left, l.since = 0, w.now
	w.count(l, bytes)
	if l.holder != nil && l.holder.lies {
		w.waste += bytes
		w.fail(l, core.BadPiece, 0, 0)
		return
	}
	w.store(n, l.layer, p)
	if l.ended {
		return // with this piece somebody died
	}
	l.piece++
	t := w.note()
	t.runs[0] = blob.Run{First: p, Count: 1}
	t.have = core.Have{
		Node: n.id, Digest: l.layer.digest, Size: l.layer.layout.Size(), Runs: t.runs[:],
		Sealed: n.holds[l.layer.index].count == l.layer.layout.Pieces(),
	}
	if l.holder == nil && p+1 < l.layer.layout.Pieces() {
		t.have.FirstLink, t.have.Links = p+1, l.layer.links[32*(p+1):32*(p+2)]
	}
	t.events = append(t.events, &t.have)
	last := l.piece == l.run.End()
	if last {
		t.done = core.Done{Node: n.id, Lease: l.id, Bytes: l.layer.layout.Bytes(l.run), Time: w.now - l.start}
		t.events = append(t.events, &t.done)
		w.finish(l)
	}
	to := l.state
	if !to.alive || to != l.layer.owner && l.layer.owner != nil {
		to = l.layer.owner // who owns the blob now
		if last && l.state.alive {
			w.tell(n, l.state, &note{events: []core.Event{&core.Done{Node: n.id, Lease: l.id, Bytes: t.done.Bytes, Time: t.done.Time}}})
		}
		t.events = t.events[:1]
	}
	if to != nil && to.alive {
		w.tell(n, to, t)
	}
	if !last {
		w.begin(l)
	}
}

// count adds bytes to the sums of where they passed.
func (w *world) count(l *lease, bytes int64) {
	w.moved += bytes
	switch {
	case l.holder == nil:
		w.originBytes += bytes
	case l.holder.seed:
		w.seedBytes += bytes
	}
	if l.places[2] != nil {
		w.crossBytes += bytes
	}
}

// breakOff counts what has come of a piece that does not come to its end.
func (w *world) breakOff(l *lease) {
	if l.heap < 0 || l.left <= 0 {
		return
	}
	left := max(l.left-l.rate*float64(w.now-l.since)/float64(core.Second), 0)
	bytes := int64(float64(l.layer.layout.Length(l.piece)) * (1 - left/l.work))
	w.count(l, bytes)
	w.waste += bytes
}

// fail ends a lease that could not be carried out.
func (w *world) fail(l *lease, reason core.Reason, status int, wait core.Time) {
	if l.ended {
		return
	}
	w.finish(l)
	if !l.state.alive {
		return
	}
	t := w.note()
	t.failed = core.Failed{Node: l.node.id, Lease: l.id, Reason: reason, Status: status, RetryAfter: wait}
	t.events = append(t.events, &t.failed)
	w.tell(l.node, l.state, t)
}

// finish takes a lease away, at both ends.
func (w *world) finish(l *lease) {
	if l.ended {
		return
	}
	l.ended = true
	w.breakOff(l)
	w.shut(l)
	n := l.node
	at := slices.Index(n.leases, l)
	n.leases = slices.Delete(n.leases, at, at+1)
	if l.begun {
		n.running--
	}
	if l.served {
		l.holder.serving--
		l.holder.serves[l.state.index]--
		w.tellSlots(l.holder)
	}
	if len(w.states) == 1 {
		return
	}
	for _, o := range n.leases {
		if !o.begun && n.running < 2*n.slots[1] {
			w.begun(o)
		}
	}
	w.tellSlots(n)
}

// slotsTime is how long a node gathers changes of its slots.
const slotsTime = 20 * core.Millisecond

// tellSlots has each State know which of the node's slots are its own, where there
// are several.
func (w *world) tellSlots(n *node) {
	if len(w.states) == 1 || n.telling || !n.alive {
		return
	}
	n.telling = true
	w.after(slotsTime, func() {
		n.telling = false
		for _, st := range w.states {
			if !st.alive {
				continue
			}
			left := n.slots
			for _, l := range n.leases {
				if l.state != st {
					left[1]--
				}
			}
			left[0] -= n.serving - n.serves[st.index]
			left = [2]int{max(left[0], 1), max(left[1], 1)}
			if left != n.told[st.index] {
				n.told[st.index] = left
				w.tellEvent(n, st, &core.Slots{Node: n.id, Upload: left[0], Download: left[1]})
			}
		}
	})
}
