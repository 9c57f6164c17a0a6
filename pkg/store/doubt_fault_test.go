package store_test

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// TestProvingFailsAtTheNthOperation breaks each operation on the disk in turn while
// rotten bytes are found, in each way that they are: by the next use of a file that
// somebody wrote to, by the scrub, by Prove. Whatever breaks, no use of the blob reads
// a wrong byte afterwards, and once the disk is well it can be made whole.
func TestProvingFailsAtTheNthOperation(t *testing.T) {
	c := storetest.Random(t, 1, 2*pieceLength+9)
	for _, way := range []string{"doubt", "scrub", "prove"} {
		for name, how := range faults {
			t.Run(fmt.Sprintf("%s/%s", way, name), func(t *testing.T) {
				t.Parallel()
				for n, hit := 1, true; hit && !t.Failed(); n++ {
					synctest.Test(t, func(t *testing.T) {
						k := &breaker{how: how}
						cfg := store.Config{Dir: t.TempDir(), ScrubRate: 4 * pieceLength, ScrubEvery: time.Hour}
						s := tapped(t, cfg, k)
						storetest.Fill(t, s, c)
						flip(t, pathOf(cfg.Dir, c.Digest, ""), pieceLength+3)
						k.mu.Lock()
						k.at = k.seen + n
						k.mu.Unlock()
						switch way {
						case "scrub":
							stop := runStore(t, s)
							time.Sleep(10 * time.Second)
							stop()
						case "prove":
							_, err := s.Prove(t.Context(), c.Digest)
							clean(t, "prove", err)
						}
						rightOrNot(t, s, c)
						k.mend()
						rightOrNot(t, s, c)
						storetest.Fill(t, s, c)
						whole(t, s, c)
						closeStore(t, s)
						s = tapped(t, cfg, &breaker{})
						whole(t, s, c)
						closeStore(t, s)
						if hit = k.broke; t.Failed() {
							t.Logf("failing operation %d: %+v", n, k.last)
						}
					})
				}
			})
		}
	}
}

// rightOrNot reads every piece of the blob, if it is held: it has the right bytes, or
// there is an error.
func rightOrNot(t *testing.T, s *store.Store, c *storetest.Content) {
	t.Helper()
	b, ok := s.Get(c.Digest)
	if !ok {
		return
	}
	defer b.Release()
	for i := range c.Layout.Pieces() {
		buf := make([]byte, c.Layout.Length(i))
		if err := b.ReadPiece(i, buf); err == nil && !bytes.Equal(buf, c.Piece(i)) {
			t.Fatalf("piece %d reads other bytes", i)
		}
	}
}
