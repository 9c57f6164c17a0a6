package task

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// readAll reads pieces from one on as fast as lead lets it, until ctx ends or all are read, and
// returns how many it has read.
func readAll(ctx context.Context, l *lead, from, pieces int) (read func() int) {
	n := make(chan int, 1)
	n <- 0
	go func() {
		for i := from; i < pieces; i++ {
			l.wait(ctx)
			if ctx.Err() != nil {
				return
			}
			l.read(i)
			<-n
			n <- i + 1
		}
	}()
	return func() int {
		synctest.Wait()
		got := <-n
		n <- got
		return got
	}
}

// primed is how many pieces nodes take at once until a read waits for them.
const primed = leadRate / blob.MinPieceLength

func giveAll(l *lead, first, count int) {
	for i := range count {
		l.give(first + i)
	}
}

// Slow nodes hold no read up: others wait for its place at the host.
func TestLeadLeavesSlowNodesBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLead(t, 64<<20)
		l.give(0)
		read := readAll(t.Context(), l, 0, l.layout.Pieces())
		for i := 1; i < 20; i++ {
			time.Sleep(leadPatience - time.Millisecond)
			l.give(i)
		}
		if got := read(); got != l.layout.Pieces() {
			t.Errorf("read %d pieces", got)
		}
	})
}

func newTestLead(t *testing.T, size int64) *lead {
	t.Helper()
	l, err := blob.NewLayout(size)
	if err != nil {
		t.Fatal(err)
	}
	return newLead(l)
}

// A read of the origin stays within its lead of the nodes that take what it brings, at
// any rate of theirs.
func TestLeadIsBounded(t *testing.T) {
	for name, every := range map[string]time.Duration{"10 MB/s": 25 * time.Millisecond, "250 MB/s": time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newTestLead(t, 1<<30)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				const unwanted = 100 // pieces before those that nodes want
				for i := range unwanted {
					l.wait(ctx)
					l.read(i)
				}
				giveAll(l, unwanted, primed)
				read := readAll(ctx, l, unwanted, l.layout.Pieces())
				perSecond := (int64(time.Second/every) + primed) * l.layout.PieceLength()
				for given := unwanted + primed; given < 900; given++ {
					time.Sleep(every)
					l.give(given)
					ahead := int64(read()-given) * l.layout.PieceLength()
					if most := max(leastLead, perSecond/2) + l.layout.PieceLength(); ahead > most {
						t.Fatalf("%d bytes ahead after %d pieces, want %d", ahead, given, most)
					}
					if ahead < 0 {
						t.Fatalf("nodes waited for piece %d", given)
					}
				}
			})
		})
	}
}

// What was given again is not news, and nodes that take nothing more hold nothing up.
func TestLeadIsNotWaitedForInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLead(t, 64<<20)
		all := l.layout.Pieces()
		if got := readAll(t.Context(), l, 0, all)(); got != all {
			t.Errorf("read %d of %d pieces for nobody", got, all)
		}

		l = newTestLead(t, 64<<20)
		giveAll(l, 0, primed)
		read := readAll(t.Context(), l, 0, all)
		for range 10 {
			time.Sleep(leadPatience / 11)
			giveAll(l, 0, primed)
		}
		if got := read(); got != primed+int(leastLead/l.layout.PieceLength()) {
			t.Errorf("read %d pieces ahead of those who take no more", got)
		}
		time.Sleep(leadPatience / 10)
		if got := read(); got != all {
			t.Errorf("read %d of %d pieces after they took nothing new", got, all)
		}
	})
}

// Nodes that want only parts of what is read, or have the rest, do not make its read
// slow.
func TestLeadOfWhatIsNotWanted(t *testing.T) {
	for name, c := range map[string]struct {
		wanted func(i, pieces int) bool
		waits  int
	}{
		"the second half": {func(i, pieces int) bool { return i >= pieces/2 }, 0},
		"both ends":       {func(i, pieces int) bool { return i < 2*primed || i >= pieces/2 }, 1},
		"every other":     {func(i, _ int) bool { return i%2 == 0 }, 9}, // 1 GiB is 2^8 times leastLead
		"few":             {func(i, _ int) bool { return i%50 == 0 }, 9},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newTestLead(t, 1<<30)
				started, pieces := time.Now(), l.layout.Pieces()
				for i := range pieces {
					l.wait(t.Context())
					l.read(i)
					if c.wanted(i, pieces) {
						l.give(i)
					}
				}
				if waited := time.Since(started); waited > time.Duration(c.waits)*leadPatience {
					t.Errorf("waited %v for nodes that want no more", waited)
				}
			})
		})
	}
}

func TestLeadEndsWithItsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLead(t, 64<<20)
		giveAll(l, 0, primed)
		ctx, cancel := context.WithCancel(t.Context())
		readAll(ctx, l, 0, l.layout.Pieces())()
		started := time.Now()
		cancel()
		l.wait(ctx)
		if waited := time.Since(started); waited != 0 {
			t.Errorf("waited %v", waited)
		}
	})
}
