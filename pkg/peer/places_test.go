package peer_test

import (
	"slices"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
)

// A holder says with its pieces where an origin has served the blob, as many places as are
// kept.
func TestPlacesComeWithPieces(t *testing.T) {
	h := newHolder(t, 4)
	h.keep(t, 2)
	c := h.client(t, identity.RoleNode)
	b, ok := h.store.Get(h.digest)
	if !ok {
		t.Fatal("nothing is kept")
	}
	defer b.Release()
	for n := range blob.MaxPlaces + 2 {
		var got []blob.Place
		err := c.Read(t.Context(), h.Holder, h.digest, h.layout, blob.Run{Count: 2}, func(from peer.Sender, _ int) peer.Taker {
			got = from.Places
			return away{}
		}, nil)
		if err != nil || !slices.Equal(got, b.Places()) || len(got) != min(n, blob.MaxPlaces) {
			t.Fatalf("with %d places: %d came, %v", n, len(got), err)
		}
		b.AddPlace(blob.PlaceOf(h.digest, string(rune('a'+n))), false)
	}
}
