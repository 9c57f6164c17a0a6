package core

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// A node and a blob cost a kilobyte at most, beside the bitmaps: a bit a piece for
// what it holds, and one for what is on its way.
func TestStateIsSmall(t *testing.T) {
	const nodes, blobs, pieces = 2000, 8, 256
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	ids := make([]string, nodes)
	for i := range ids {
		ids[i] = fmt.Sprintf("12D3KooWnode%06d", i)
	}
	before := heap()
	s := New(Config{}, 1)
	origin := &Origin{Kind: BlobOrigin, Registry: "r.test", Repository: "a"}
	var out []Decision
	for _, id := range ids {
		out = s.Apply(0, &Attend{Node: id, Address: "10.0.0.1:65010"}, out[:0])
	}
	for b := range blobs {
		d := blob.FromBytes([]byte{byte(b)})
		for _, id := range ids {
			out = s.Apply(0, &Want{Node: id, Digest: d, Size: pieces * testPiece, Origin: origin}, out[:0])
			out = s.Apply(0, &Have{Node: id, Digest: d, Size: pieces * testPiece, Runs: []blob.Run{{First: b, Count: 100}}}, out[:0])
		}
	}
	each := float64(heap()-before) / (nodes * blobs)
	bitmaps := 2.0 * pieces / 8
	t.Logf("%.0f bytes a node and blob, bitmaps among them", each)
	if each > 1024+bitmaps {
		t.Errorf("%.0f bytes a node and blob, want at most 1024 and the bitmaps of %.0f", each, bitmaps)
	}
	runtime.KeepAlive(s)
	runtime.KeepAlive(ids)
}
