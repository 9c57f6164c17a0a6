package peer_test

import (
	"errors"
	"testing"

	"google.golang.org/grpc"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// crumbs sends the first piece byte by byte.
type crumbs struct {
	damselflyv1.UnimplementedPeerServer
}

func (crumbs) Read(_ *damselflyv1.ReadRequest, stream grpc.ServerStreamingServer[damselflyv1.Chunk]) error {
	for off := uint32(0); ; off++ {
		if err := stream.Send(&damselflyv1.Chunk{Offset: off, Data: []byte{1}}); err != nil {
			return err
		}
	}
}

// Parts of a piece are kept as they came until it is whole, so that crumbs would take
// far more memory than the piece.
func TestCrumbsAreRefused(t *testing.T) {
	h := newStore(t)
	h.keep(t, 0)
	c := h.client(t, identity.RoleNode)
	l, err := blob.NewLayout(1 << 30)
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	err = c.Read(t.Context(), serve(t, h, crumbs{}), h.digest, l, blob.Run{Count: 1},
		func(peer.Sender, int) peer.Taker { return away{} }, func(n int) { got += n })
	if !errors.Is(err, peer.ErrMalformed) || got > 0 {
		t.Errorf("%d bytes taken, %v", got, err)
	}
}
