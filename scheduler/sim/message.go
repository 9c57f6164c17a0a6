package sim

import (
	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// messageKind is what happens when a message arrives or a timer fires.
type messageKind uint8

const (
	toState    messageKind = iota // events reach a State
	toNode                        // a decision reaches a node
	toHolder                      // a request reaches who is asked for pieces
	firstByte                     // the answer begins
	refusal                       // the answer is that there is none
	stateTimer                    // a State is due
	alarm                         // whatever do says
)

// message is on its way, or waits for its time.
type message struct {
	at     core.Time
	number uint64 // equal times in the order in which they were sent
	kind   messageKind
	state  *state
	node   *node
	epoch  int // of the node's attendance
	note   *note
	lease  *lease
	order  order
	reason core.Reason
	do     func()
}

// order is the part of a decision that a node needs, beside a lease.
type order struct {
	kind   core.DecisionKind
	id     uint64
	layer  *layer
	waitMs core.Time
}

// note is the events of one message; it is used again and again, as Apply keeps
// none of it.
type note struct {
	events []core.Event
	have   core.Have
	done   core.Done
	failed core.Failed
	ending core.Ending
	runs   [1]blob.Run
}

func (w *world) note() *note {
	if k := len(w.notes); k > 0 {
		n := w.notes[k-1]
		w.notes = w.notes[:k-1]
		n.events = n.events[:0]
		return n
	}
	return &note{}
}

// messageHeap is a binary heap, the soonest first.
type messageHeap []message

func (h messageHeap) less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].number < h[j].number
}

func (h *messageHeap) push(m message) {
	*h = append(*h, m)
	q := *h
	for i := len(q) - 1; i > 0; {
		up := (i - 1) / 2
		if !q.less(i, up) {
			break
		}
		q[i], q[up] = q[up], q[i]
		i = up
	}
}

func (h *messageHeap) pop() message {
	q := *h
	m, last := q[0], len(q)-1
	q[0] = q[last]
	q[last] = message{}
	q = q[:last]
	*h = q
	for i := 0; ; {
		down := 2*i + 1
		if down >= last {
			return m
		}
		if down+1 < last && q.less(down+1, down) {
			down++
		}
		if !q.less(down, i) {
			return m
		}
		q[i], q[down] = q[down], q[i]
		i = down
	}
}

// send puts a message under way.
func (w *world) send(m message) {
	w.sent++
	m.number = w.sent
	w.messages.push(m)
}

// after has something done at a later time; for what happens rarely.
func (w *world) after(d core.Time, do func()) {
	w.send(message{at: w.now + d, kind: alarm, do: do})
}

// trip is how long a message takes one way.
func (w *world) trip() core.Time {
	if w.s.Latency <= 0 {
		return 0
	}
	return core.Time(float64(w.s.Latency) * (0.75 + w.rng.Float64()/2))
}

// roundTrip is how long it takes from telling a State something until what it
// decided has begun to flow.
func (w *world) roundTrip() core.Time { return 4 * max(w.s.Latency, 0) }

// tell sends a note to a State, after what the node sent it before.
func (w *world) tell(n *node, st *state, t *note) {
	if !n.alive {
		return
	}
	at := max(n.sentAt[st.index], w.now+w.trip())
	n.sentAt[st.index] = at
	w.send(message{at: at, kind: toState, state: st, node: n, epoch: n.epoch, note: t})
}

// tellEvent sends a single event.
func (w *world) tellEvent(n *node, st *state, e core.Event) {
	t := w.note()
	t.events = append(t.events, e)
	w.tell(n, st, t)
}
