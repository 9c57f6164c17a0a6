package core

import (
	"fmt"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Those at the front of a long queue have what comes within reach, and many behind
// them lack it: each of these is served as long as anybody has a free slot.
func TestNobodyBehindTheFrontIsPassedOver(t *testing.T) {
	for seed := range uint64(10) {
		passedOver(t, seed)
	}
}

func passedOver(t *testing.T, seed uint64) {
	const holders, front, back = 40, nearSteps, 256
	w := newWorld(t, Config{}, seed, worldOptions{})
	b := w.blob("x", 3*testPiece)
	size := b.layout.Size()
	piece1 := []blob.Run{{First: 1, Count: 1}}
	now, leases := Time(0), 0
	var out []Decision
	tell := func(e Event) {
		now += Microsecond
		out = w.s.Apply(now, e, out[:0])
		for _, d := range out {
			if d.Kind == Lease {
				leases++
			}
		}
		checkState(t, w.s)
	}
	for i := range holders {
		id := fmt.Sprint("holder", i)
		tell(&Attend{Node: id, Address: id, UploadSlots: 8, DownloadSlots: 2})
	}
	for i := range front + back {
		id := fmt.Sprint("n", i)
		tell(&Attend{Node: id, Address: id, UploadSlots: 1, DownloadSlots: 2})
		e := &Want{Node: id, Digest: b.digest, Size: size}
		if i < front { // misses two pieces, the others one
			tell(&Have{Node: id, Digest: b.digest, Size: size, Runs: piece1})
		} else {
			e.Runs = piece1
		}
		tell(e)
	}
	for i := range holders {
		tell(&Have{Node: fmt.Sprint("holder", i), Digest: b.digest, Size: size, Runs: piece1})
	}
	if leases != 0 {
		t.Fatalf("%d leases of a piece that nothing proves", leases)
	}
	for i := range holders { // one of them was asked what proves it
		links := append(append([]byte(nil), b.link(0, 1)...), b.link(0, 2)...)
		tell(&Have{Node: fmt.Sprint("holder", i), Digest: b.digest, Size: size, Runs: piece1, FirstLink: 1, Links: links})
	}
	for i := range front {
		links := append(append([]byte(nil), b.link(0, 1)...), b.link(0, 2)...)
		tell(&Have{Node: fmt.Sprint("n", i), Digest: b.digest, Size: size, Runs: piece1, FirstLink: 1, Links: links})
	}
	if leases < back {
		t.Errorf("seed %d: %d of %d got a lease", seed, leases, back)
	}
}
