package control

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Whatever a scheduler sends, what reaches the handler fits its blob.
func FuzzDecode(f *testing.F) {
	seed, _ := proto.Marshal(&damselflyv1.Decision{Decision: &damselflyv1.Decision_Lease{Lease: &damselflyv1.Lease{
		Id: 1, Digest: blob.FromBytes(nil).String(), Size: 1 << 20, Run: &damselflyv1.Run{First: 1, Count: 2},
		Holder: &damselflyv1.Holder{Node: "n", Address: "a:1"}, FirstLink: 1, Links: make([]byte, 64),
	}}})
	f.Add(seed)
	cancel, _ := proto.Marshal(&damselflyv1.Decision{Decision: &damselflyv1.Decision_Cancel{Cancel: &damselflyv1.Cancel{Leases: []uint64{1, 2}}}})
	f.Add(cancel)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var d damselflyv1.Decision
		if proto.Unmarshal(raw, &d) != nil {
			return
		}
		out, err := decode(&d)
		if err != nil && len(out) > 0 {
			t.Fatal("decisions came with an error")
		}
		for _, d := range out {
			if l, ok := d.(Lease); ok {
				if err := l.Layout.Check(l.Run); err != nil {
					t.Fatalf("a lease outside of its blob: %v", err)
				}
				if _, err := blob.ParseDigest(l.Digest.String()); err != nil {
					t.Fatal(err)
				}
				if (l.Holder == nil) == (l.Origin == nil) {
					t.Fatal("a lease without one source")
				}
				if len(l.Links) > l.Layout.Pieces()*l.Digest.LinkSize() {
					t.Fatal("more links than the chain has")
				}
			}
		}
	})
}
