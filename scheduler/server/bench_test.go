package server

import (
	"io"
	"testing"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// BenchmarkTrace is what one lease costs the owner in its trace: Have, Done, and the
// lease that follows.
func BenchmarkTrace(b *testing.B) {
	const node = "12D3KooWFNxu3Xnz6EYgtGHbBXhUsWHKiLVoRmF74t2Cgrayvwtw"
	g := blob.FromBytes([]byte("a blob"))
	t := newTracer(io.Discard, zap.NewNop())
	defer t.close()
	have := &core.Have{Node: node, Digest: g, Size: 64 << 18, Runs: []blob.Run{{First: 7, Count: 1}}}
	done := &core.Done{Node: node, Lease: 1 << 60, Bytes: 1 << 18, Time: core.Second}
	lease := []core.Decision{{
		Kind: core.Lease, To: node, Digest: g, ID: 1 << 60, Size: 64 << 18, Run: blob.Run{First: 8, Count: 1},
		Holder: core.Peer{Node: node, Address: "192.0.2.1:65010"}, Deadline: core.Second, FirstLink: 8, Links: make([]byte, 64),
	}}
	b.ReportAllocs()
	for b.Loop() {
		t.event(1, have)
		t.event(1, done)
		t.decisions(lease)
		t.flush(1)
	}
}

// BenchmarkDecode is what the end of a lease costs who decodes it.
func BenchmarkDecode(b *testing.B) {
	m := &damselflyv1.NodeMessage{Events: []*damselflyv1.NodeEvent{
		{Event: &damselflyv1.NodeEvent_Have{Have: &damselflyv1.Have{
			Digest: blob.FromBytes(nil).String(), Size: 64 << 18, Runs: []*damselflyv1.Run{{First: 7, Count: 1}},
		}}},
		{Event: &damselflyv1.NodeEvent_Done{Done: &damselflyv1.Done{Lease: 1 << 60, Bytes: 1 << 18, Microseconds: 1 << 20}}},
	}}
	wire, err := proto.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	d, kept := decoder{node: "n"}, &memory{}
	b.Run("raw", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := d.raw(wire, kept); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("generated", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var m damselflyv1.NodeMessage
			if err := proto.Unmarshal(wire, &m); err != nil {
				b.Fatal(err)
			}
			if _, err := d.message(&m); err != nil {
				b.Fatal(err)
			}
		}
	})
}
