package core

import (
	"fmt"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// troubled is a cluster in which anything may happen: deaths, silences, liars,
// forgers, evictions, clients that give up, origins that refuse, fail, ask to
// wait or serve wrong bytes.
func troubled(t testing.TB, seed uint64, keepLog bool) *world {
	w := newWorld(t, Config{HostLeases: 1 + int(seed%3), IdleTime: Second, Quarantine: 60 * Second}, seed, worldOptions{
		delay: 5 * Millisecond, rate: 60 << 20, originRate: 100 << 20, jitter: 0.5, batch: 1 + int(seed%4), keepLog: keepLog,
	})
	for i := range 1 + w.rng.IntN(3) {
		b := w.blob(fmt.Sprintf("blob%d", i), 1+w.rng.Int64N(16*testPiece))
		b.origin.Private = w.rng.IntN(3) == 0
		if w.rng.IntN(12) == 0 {
			w.badOrigin[string(b.digest)] = 1 + w.rng.IntN(3)
		}
	}
	for range w.rng.IntN(4) {
		w.troubleNode(w.node(true, 4, 4))
	}
	for range 2 + w.rng.IntN(8) {
		n := w.node(false, 1+w.rng.IntN(3), 1+w.rng.IntN(3))
		w.troubleNode(n)
		for _, b := range w.blobs {
			w.troubleWant(n, b)
		}
	}
	// From here on nothing new goes wrong, and everything must end.
	w.after(20*Second, func() {
		for _, n := range w.nodes {
			n.liar, n.forger, n.mute, n.denied = false, false, false, false
			if !n.alive {
				w.attend(n)
			}
		}
	})
	return w
}

func (w *world) troubleNode(n *simNode) {
	odds := func(k int) bool { return w.rng.IntN(k) == 0 }
	n.liar, n.forger, n.mute, n.denied = odds(8), odds(12), odds(12), odds(8)
	n.terse = odds(4)
	w.attend(n)
	for odds(2) {
		at := w.between(0, 3*Second)
		back := w.between(0, 2*Second)
		silence := w.between(0, 1500*Millisecond)
		if odds(2) {
			silence = 0
		}
		w.after(at, func() {
			w.crash(n, silence)
			w.after(back, func() {
				if !n.alive {
					w.attend(n)
				}
			})
		})
	}
	if odds(3) {
		w.after(w.between(0, 2*Second), func() { w.dropSome(n) })
	}
}

// dropSome evicts whatever the node holds of a blob that it does not want.
func (w *world) dropSome(n *simNode) {
	for _, h := range n.holds {
		if n.alive && !h.want {
			h.forget()
			w.tell(n, &Drop{Node: n.id, Digest: h.b.digest})
			return
		}
	}
}

func (w *world) troubleWant(n *simNode, b *simBlob) {
	if w.rng.IntN(4) == 0 {
		return
	}
	var runs []blob.Run
	if w.rng.IntN(4) == 0 {
		first := w.rng.IntN(b.layout.Pieces())
		runs = []blob.Run{{First: first, Count: 1 + w.rng.IntN(b.layout.Pieces()-first)}}
	}
	w.after(w.between(0, 2*Second), func() { w.want(n, b, runs) })
	if w.rng.IntN(4) > 0 {
		return
	}
	w.after(w.between(0, 3*Second), func() {
		h := n.holding(b)
		h.want = false
		for _, l := range n.leases {
			if l.d.Digest == b.digest {
				w.finish(n, l)
			}
		}
		if n.alive {
			w.tell(n, &Unwant{Node: n.id, Digest: b.digest})
		}
		if w.rng.IntN(2) == 0 {
			w.after(w.between(0, Second), func() { w.want(n, b, nil) })
		}
	})
}

// flaky makes origin leases of the world fail in all ways that there are.
func (w *world) flaky() {
	for i := range w.rng.IntN(8) {
		w.after(w.between(0, 3*Second)*Time(i+1)/4, func() {
			for _, n := range w.nodes {
				for id := uint64(0); ; {
					l := n.nextLease(id)
					if l == nil {
						break
					}
					id = l.d.ID
					if l.d.Origin == nil || w.rng.IntN(2) == 0 {
						continue
					}
					w.fail(n, l, []Failed{
						{Reason: OriginError, Status: 404}, {Reason: OriginError, Status: 429, RetryAfter: Second},
						{Reason: OriginError, Status: 503}, {Reason: OriginError, Status: 429, RetryAfter: 3600 * Second},
						{Reason: Unreachable}, {Reason: StoreError}, {Reason: Cancelled}, {Reason: Unspecified},
						{Reason: 200, Status: -7, RetryAfter: -5},
					}[w.rng.IntN(9)])
				}
			}
		})
	}
}

// nextLease is the node's running lease with the lowest ID above id.
func (n *simNode) nextLease(id uint64) *simLease {
	var next *simLease
	for _, l := range n.leases {
		if l.d.ID > id && (next == nil || l.d.ID < next.d.ID) {
			next = l
		}
	}
	return next
}

func TestNobodyIsStuckInTrouble(t *testing.T) {
	rounds := 2000
	if testing.Short() {
		rounds = 200
	}
	refused, fulfilled, current := 0, 0, uint64(0)
	defer func() {
		if t.Failed() {
			t.Logf("at seed %d", current)
		}
	}()
	for seed := range uint64(rounds) {
		current = seed
		w := troubled(t, seed, false)
		w.check = func() { checkState(t, w.s) }
		w.flaky()
		w.run(3600 * Second)
		for _, n := range w.nodes {
			for _, h := range n.holds {
				switch {
				case h.refused:
					refused++
				case h.finished > 0:
					fulfilled++
				}
				if h.waits() {
					t.Fatalf("seed %d: %s waits for %s at the end", seed, n.id, h.b.origin.Repository)
				}
			}
		}
		if st := w.s.Stats(); st.Leases != 0 || st.Wants != 0 || st.Parked != 0 || st.OriginLeases != 0 {
			t.Fatalf("seed %d: left over: %+v", seed, st)
		}
		if len(w.s.hosts) != 0 || w.s.pieces != 0 || len(w.s.timers.heap) != 0 {
			t.Fatalf("seed %d: %d hosts, %d pieces and %d timers stay", seed, len(w.s.hosts), w.s.pieces, len(w.s.timers.heap))
		}
	}
	t.Logf("%d wants fulfilled, %d refused", fulfilled, refused)
	if refused*10 > fulfilled {
		t.Errorf("%d wants were refused, only %d fulfilled", refused, fulfilled)
	}
}
