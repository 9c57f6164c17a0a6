package core

import (
	"fmt"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// A node that began to wait while runs were short gets the one piece that it wants
// although runs have become long since, and nobody has the rest of the piece's group.
func TestTornGroupReachesWhoWaitedBefore(t *testing.T) {
	w := newWorld(t, Config{LeaseRate: 20}, 1, worldOptions{})
	b := w.blob("x", 8*testPiece)
	size := b.layout.Size()
	var links []byte
	for i := 1; i < 8; i++ {
		links = append(links, b.link(0, i)...)
	}
	only := func(p int) []blob.Run { return []blob.Run{{First: p, Count: 1}} }
	var out []Decision
	now := Time(0)
	lease := func(node string) (id uint64) { // of the last decisions
		for _, d := range out {
			if d.Kind == Lease && d.To == node {
				id = d.ID
			}
		}
		return id
	}
	tell := func(e Event) {
		now += Millisecond
		out = w.s.Apply(now, e, out[:0])
		checkState(t, w.s)
	}
	for _, id := range []string{"waits", "has", "busy", "other", "many"} {
		tell(&Attend{Node: id, Address: id, UploadSlots: 1, DownloadSlots: 4})
	}
	var small [4]*simBlob
	for i := range small {
		small[i] = w.blob(fmt.Sprint("small", i), testPiece)
		tell(&Have{Node: "many", Digest: small[i].digest, Size: testPiece, Sealed: true})
	}
	tell(&Have{Node: "busy", Digest: small[0].digest, Size: testPiece, Sealed: true})

	// The one that holds the piece serves somebody else.
	tell(&Have{Node: "busy", Digest: b.digest, Size: size, Runs: only(2), FirstLink: 1, Links: links})
	tell(&Slots{Node: "many"})
	tell(&Want{Node: "other", Digest: small[0].digest, Size: testPiece})
	if lease("other") == 0 {
		t.Fatal("no lease from the busy node")
	}
	tell(&Slots{Node: "many", Upload: 1, Download: 4})
	tell(&Want{Node: "waits", Digest: b.digest, Size: size, Runs: only(2)})
	tell(&Have{Node: "busy", Digest: b.digest, Size: size, Runs: only(2), FirstLink: 1, Links: links})

	// Leases of other blobs make runs long.
	for i, d := range small[1:] {
		if i == 2 {
			now += paceWindow
		}
		tell(&Want{Node: "other", Digest: d.digest, Size: testPiece})
		tell(&Done{Node: "other", Lease: lease("other"), Bytes: testPiece, Time: Millisecond})
	}
	if w.s.pace.factor == 1 || lease("waits") != 0 {
		t.Fatalf("runs are %d times longer, lease %d", w.s.pace.factor, lease("waits"))
	}
	tell(&Have{Node: "has", Digest: b.digest, Size: size, Runs: only(2), FirstLink: 1, Links: links})
	for range 3 {
		if lease("waits") != 0 {
			return
		}
		now += w.s.cfg.NearTime
		tell(&Tick{})
	}
	t.Error("it waits on")
}
