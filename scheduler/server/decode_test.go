package server

import (
	"bytes"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// sameRaw checks that a message means the same to both decoders.
func sameRaw(t *testing.T, raw []byte, m *damselflyv1.NodeMessage, dec decoder) {
	t.Helper()
	want, wantErr := dec.message(m)
	used := &memory{}
	for range 2 { // the second time in used memory
		got, err := dec.raw(raw, used)
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("raw says %v, generated %v", err, wantErr)
		}
		if err != nil {
			return
		}
		if !slices.Equal(got.pings, want.pings) || len(got.events) != len(want.events) {
			t.Fatalf("raw has %v, generated %v", got, want)
		}
		for i := range got.events {
			a, b := core.AppendEvent(nil, 0, got.events[i]), core.AppendEvent(nil, 0, want.events[i])
			if !bytes.Equal(a, b) {
				t.Fatalf("raw has %s\ngenerated %s", a, b)
			}
		}
	}
}

// Whatever a node sends, nothing panics, what reaches the core fits its blob,
// and the core takes it.
func FuzzMessage(f *testing.F) {
	d := blob.FromBytes(nil).String()
	for _, e := range []*damselflyv1.NodeEvent{
		{Event: &damselflyv1.NodeEvent_Want{Want: &damselflyv1.Want{Digest: d, Size: 1 << 20, Runs: []*damselflyv1.Run{{First: 1, Count: 2}}, Origin: &damselflyv1.Origin{Kind: 1, Registry: "r", Repository: "a"}}}},
		{Event: &damselflyv1.NodeEvent_Have{Have: &damselflyv1.Have{Digest: d, Size: 1 << 20, Runs: []*damselflyv1.Run{{First: 0, Count: 1}}, FirstLink: 1, Links: make([]byte, 32)}}},
		{Event: &damselflyv1.NodeEvent_Failed{Failed: &damselflyv1.Failed{Lease: 1, Reason: 6, Status: 429, RetryAfterMs: 1 << 62}}},
		{Event: &damselflyv1.NodeEvent_Done{Done: &damselflyv1.Done{Lease: 1, Bytes: 1 << 63, Microseconds: 1 << 63}}},
		{Event: &damselflyv1.NodeEvent_Ending{Ending: &damselflyv1.Ending{Lease: 7}}},
		{Event: &damselflyv1.NodeEvent_Ping{Ping: &damselflyv1.Ping{Number: 3}}},
	} {
		raw, _ := proto.Marshal(&damselflyv1.NodeMessage{Events: []*damselflyv1.NodeEvent{e}})
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m damselflyv1.NodeMessage
		if proto.Unmarshal(raw, &m) != nil {
			return
		}
		dec := decoder{node: "n"}
		sameRaw(t, raw, &m, dec)
		_, _ = dec.attend(&m)
		msg, err := dec.message(&m)
		if err != nil {
			return
		}
		state := core.New(core.Config{}, 1)
		out := state.Apply(0, &core.Attend{Node: "n", Address: "a:1"}, nil)
		for _, e := range msg.events {
			if h, ok := e.(*core.Have); ok {
				l, err := blob.NewLayout(h.Size)
				if err != nil || h.FirstLink+len(h.Links)/h.Digest.LinkSize() > l.Pieces() {
					t.Fatalf("a have outside of its blob: %v", h)
				}
				for _, r := range h.Runs {
					if err := l.Check(r); err != nil {
						t.Fatal(err)
					}
				}
			}
			out = state.Apply(0, e, out)
		}
		for i := range out {
			if encode(&out[i]) == nil {
				t.Fatal("a decision without a wire form")
			}
		}
	})
}
