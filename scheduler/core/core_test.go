package core

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

const testPiece = blob.MinPieceLength

// calm is a cluster in which nothing fails.
func calm(t testing.TB, seed uint64, seeds, nodes, blobs int, keepLog bool) *world {
	w := newWorld(t, Config{}, seed, worldOptions{
		delay: 2 * Millisecond, rate: 60 << 20, originRate: 100 << 20, jitter: 0.2, batch: 1 + int(seed%4), keepLog: keepLog,
	})
	for i := range blobs {
		w.blob(fmt.Sprintf("blob%d", i), 1+w.rng.Int64N(20*testPiece))
	}
	for range seeds {
		w.attend(w.node(true, 4, 8))
	}
	for range nodes {
		n := w.node(false, 2, 2)
		w.attend(n)
		for _, b := range w.blobs {
			if w.rng.IntN(4) == 0 && blobs > 1 {
				continue
			}
			var runs []blob.Run
			if w.rng.IntN(4) == 0 {
				first := w.rng.IntN(b.layout.Pieces())
				runs = []blob.Run{{First: first, Count: 1 + w.rng.IntN(b.layout.Pieces()-first)}}
			}
			w.after(w.between(0, 300*Millisecond), func() { w.want(n, b, runs) })
		}
	}
	return w
}

func TestCalmClusterReadsTheOriginOnce(t *testing.T) {
	rounds := 1000
	if testing.Short() {
		rounds = 50
	}
	for seed := range uint64(rounds) {
		w := calm(t, seed, int(seed%4), 1+int(seed%9), 1+int(seed%3), false)
		w.check = func() { checkState(t, w.s) }
		w.run(600 * Second)
		for _, n := range w.nodes {
			for _, h := range n.holds {
				if h.waits() || h.refused {
					t.Fatalf("seed %d: %s waits for %s at the end (refused: %v)", seed, n.id, h.b.origin.Repository, h.refused)
				}
			}
		}
		for _, b := range w.blobs {
			for p := range b.layout.Pieces() {
				// The last piece is served by nobody who does not hold all others;
				// of a blob of which everybody wanted parts, it may come twice.
				if times := w.originPieces[fmt.Sprint(b.origin.Repository, p)]; times > 1 && (p < b.layout.Pieces()-1 || seed%4 > 0) {
					t.Fatalf("seed %d: piece %d of %s was read %d times from the origin", seed, p, b.origin.Repository, times)
				}
			}
		}
		if st := w.s.Stats(); st.Leases != 0 || st.Wants != 0 || st.Parked != 0 {
			t.Fatalf("seed %d: left over: %+v", seed, st)
		}
	}
}

func TestSameEventsSameDecisions(t *testing.T) {
	for seed := range uint64(20) {
		a, b := calm(t, seed, 1, 8, 2, true), calm(t, seed, 1, 8, 2, true)
		a.run(600 * Second)
		b.run(600 * Second)
		if len(a.log) == 0 || !bytes.Equal(a.log, b.log) {
			t.Fatalf("seed %d: decisions differ", seed)
		}
	}
}

// A node that wants again and again what it holds costs one timer.
func TestWantsOfWhatIsHeldPileUpNoTimers(t *testing.T) {
	w := newWorld(t, Config{}, 1, worldOptions{})
	b := w.blob("x", testPiece)
	var out []Decision
	out = w.s.Apply(0, &Attend{Node: "n", Address: "n"}, out[:0])
	out = w.s.Apply(0, &Have{Node: "n", Digest: b.digest, Size: testPiece, Sealed: true}, out[:0])
	for i := range 1000 {
		out = w.s.Apply(Time(i)*Millisecond, &Want{Node: "n", Digest: b.digest, Size: testPiece}, out[:0])
	}
	if n := len(w.s.timers.heap); n > 2 {
		t.Errorf("%d timers", n)
	}
	idle := w.s.cfg.IdleTime
	out = w.s.Apply(idle, &Tick{}, out[:0])
	if w.s.swarmOf(b.digest, testPiece).active == nil {
		t.Error("given up too early")
	}
	w.s.Apply(idle+Second, &Tick{}, out[:0])
	checkState(t, w.s)
	if w.s.swarmOf(b.digest, testPiece).active != nil {
		t.Error("a blob that nobody wants any more keeps its counts")
	}
}
