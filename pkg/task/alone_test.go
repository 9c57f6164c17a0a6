package task_test

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Without a scheduler a crowd finds each other by the seeds that it was told of, one
// of it reads the origin, and all exchange what they have.
func TestCrowdWithoutScheduler(t *testing.T) {
	for _, nodes := range []int{1, 2, 8} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t, crowdPieces)
				w.settle("seed", identity.RoleSeed)
				var all []*resident
				for i := range nodes {
					all = append(all, w.settle(fmt.Sprint("n", i), identity.RoleNode))
				}
				took := w.pull(all...)
				bound := crowdPieces * pieceTime
				t.Logf("%d nodes: %.2f times the bound, the origin sent it %.2f times", nodes, float64(took)/float64(bound), w.copies())
				if w.copies() > 1.1 {
					t.Errorf("the origin sent the blob %.2f times", w.copies())
				}
				if took > bound*22/10 { // the start and the end of so small a blob
					t.Errorf("it took %v, the bound is %v", took, bound)
				}
			})
		})
	}
}

// Where holders are known, the origin is not read at all, whoever they are.
func TestHoldersAreAskedWithoutScheduler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 16)
		seed := w.settle("seed", identity.RoleSeed)
		even, odd := w.settle("even", identity.RoleNode), w.settle("odd", identity.RoleNode)
		n := w.settle("n", identity.RoleNode)
		for i := range w.l.Pieces() {
			[]*resident{even, odd}[i%2].hold(blob.Run{First: i, Count: 1})
		}
		seed.Meet(w.d, odd.self) // the seed tells of one, and that one of the other
		odd.Meet(w.d, even.self)
		w.pull(n)
		if w.served > 0 {
			t.Errorf("the origin sent %d bytes", w.served)
		}
	})
}

// A seed that reads the origin reads on for all; when it gets stuck, another reads.
func TestReaderIsWaitedForWithoutScheduler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 16)
		seed, n := w.settle("seed", identity.RoleSeed), w.settle("n", identity.RoleNode)
		layout, _ := blob.NewLayout(w.l.Size())
		seed.Handle(control.Lease{ID: 1, Digest: w.d, Layout: layout, Run: layout.All(),
			Origin: &damselflyv1.Origin{Kind: damselflyv1.Origin_KIND_BLOB, Registry: "r.example.com", Repository: "app"}})
		pass(2 * pieceTime)
		w.pull(n)
		if w.copies() > 1 {
			t.Errorf("the origin sent the blob %.2f times", w.copies())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 16)
		seed, n := w.settle("seed", identity.RoleSeed), w.settle("n", identity.RoleNode)
		seed.down <- struct{}{} // nothing comes any more
		layout, _ := blob.NewLayout(w.l.Size())
		seed.Handle(control.Lease{ID: 1, Digest: w.d, Layout: layout, Run: layout.All(),
			Origin: &damselflyv1.Origin{Kind: damselflyv1.Origin_KIND_BLOB, Registry: "r.example.com", Repository: "app"}})
		took := w.pull(n)
		if took < 3*time.Second || took > 5*time.Second {
			t.Errorf("a reader that gets nothing was waited for %v", took)
		}
	})
}

// Neither wrong bytes nor wrong links nor silence keeps a node from the blob.
func TestLiarsWithoutScheduler(t *testing.T) {
	for _, lie := range []string{"bytes", "links", "silence"} {
		t.Run(lie, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t, 16)
				var all []peer.Holder
				for i := range 5 {
					r := w.settle(fmt.Sprint("h", i), identity.RoleNode)
					r.hold(w.l.All())
					all = append(all, r.self)
					if i < 2 {
						r.lie, r.dead = lie, lie == "silence"
					}
				}
				n := w.settle("n", identity.RoleNode)
				n.seeds = all
				took := w.pull(n)
				t.Logf("took %v, the origin sent it %.2f times", took, w.copies())
				if took > 5*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// Holders that prove nothing, or prove a lie to the end, or send nothing, keep nobody
// from the origin: not even where no other node is known.
func TestOnlyLiarsWithoutScheduler(t *testing.T) {
	for _, lie := range []string{"no links", "forged chain", "silence"} {
		t.Run(lie, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t, 16)
				liar := w.settle("liar", identity.RoleSeed)
				liar.hold(w.l.All())
				liar.lie = lie
				n := w.settle("n", identity.RoleNode)
				started := time.Now()
				for tries := 0; ; tries++ { // a client that was cut off comes again
					h, err := n.Open(t.Context(), w.request())
					if err != nil {
						t.Fatal(err)
					}
					r := <-read(h)
					if r.err == nil && !bytes.Equal(r.data, w.data) {
						t.Fatal("wrong bytes came to their end")
					}
					if r.err == nil {
						break
					}
					if tries == 3 {
						t.Fatal(r.err)
					}
				}
				if took := time.Since(started); took > 15*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// A node without room for a blob gives its client what other nodes have, while they
// get it, and takes nothing from the origin that they have.
func TestNoRoomIsFedByTheSwarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 32)
		seed := w.settle("seed", identity.RoleSeed)
		w.room = 1
		full := w.settle("full", identity.RoleNode)
		seed.Handle(control.Lease{ID: 1, Digest: w.d, Layout: w.l, Run: w.l.All(),
			Origin: &damselflyv1.Origin{Kind: damselflyv1.Origin_KIND_BLOB, Registry: "r.example.com", Repository: "app"}})
		pass(2 * pieceTime)
		w.pull(full)
		if w.copies() > 1 {
			t.Errorf("the origin sent the blob %.2f times", w.copies())
		}
	})
	synctest.Test(t, func(t *testing.T) { // nobody has it
		w := newTown(t, 8)
		w.settle("seed", identity.RoleSeed)
		w.room = 1
		if took := w.pull(w.settle("full", identity.RoleNode)); took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// When a scheduler answers, it decides again.
func TestSchedulerTakesOver(t *testing.T) {
	for name, answers := range map[string]control.Decision{
		"one that has come":     control.Joined{Concerns: everything},
		"one that speaks again": control.Spoke{Concerns: everything},
	} {
		t.Run(name, func(t *testing.T) { schedulerTakesOver(t, answers) })
	}
}

func schedulerTakesOver(t *testing.T, answers control.Decision) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, 16)
		a, n := w.settle("a", identity.RoleNode), w.settle("n", identity.RoleNode)
		a.hold(blob.Run{Count: 8})
		n.seeds = []peer.Holder{a.self}
		a.lie = "silence" // so that it is waited for
		h, err := n.Open(t.Context(), w.request())
		if err != nil {
			t.Fatal(err)
		}
		out := read(h)
		pass(4 * pieceTime)
		n.scheduler.mu.Lock()
		n.scheduler.joined = true
		n.scheduler.mu.Unlock()
		wanted := len(told[control.Want](n.scheduler))
		n.Handle(answers)
		n.Handle(control.Queued{Digest: w.d})
		synctest.Wait()
		before := w.served
		pass(5 * time.Second)
		if w.served != before {
			t.Errorf("the origin was read on, from %d to %d bytes, although a scheduler answers", before, w.served)
		}
		if len(told[control.Want](n.scheduler)) == wanted {
			t.Error("the scheduler was told of no want")
		}
		n.scheduler.mu.Lock()
		n.scheduler.joined = false
		n.scheduler.mu.Unlock()
		n.Handle(control.Lost{Concerns: everything})
		if r := <-out; r.err != nil || !bytes.Equal(r.data, w.data) {
			t.Errorf("read %d bytes, %v", len(r.data), r.err)
		}
	})
}

// A seed reads no further ahead than nodes take what it reads, but where no scheduler
// tells them what there is.
func TestSeedWaitsForItsReaders(t *testing.T) {
	for joined, most := range map[bool]int{true: 5 << 20, false: 16 << 20} {
		synctest.Test(t, func(t *testing.T) {
			w := newTown(t, 64)
			seed := w.settle("seed", identity.RoleSeed)
			seed.scheduler.mu.Lock()
			seed.joined = joined
			seed.scheduler.mu.Unlock()
			seed.Handle(control.Lease{ID: 1, Digest: w.d, Layout: w.l, Run: w.l.All(),
				Origin: &damselflyv1.Origin{Kind: damselflyv1.Origin_KIND_BLOB, Registry: "r.example.com", Repository: "app"}})
			taken := 0
			for ; taken < 40; taken++ {
				pass(2 * pieceTime)
				seed.Given(w.d, taken)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if ahead := w.served - taken*blob.MinPieceLength; ahead > most || most > 8<<20 && ahead < 5<<20 {
				t.Errorf("with a scheduler %v: %d bytes ahead of those who take them", joined, ahead)
			}
		})
	}
}
