package peer_test

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Identities that read nothing, or a crumb now and then, hold all slots of a node for two
// seconds after somebody else wanted one, and no longer. Who reads keeps its slot.
func TestHoardedSlotsAreTakenBack(t *testing.T) {
	const reads, spare = 4, 1
	h := newHolder(t, reads)
	h.keep(t, h.layout.Pieces())
	var hoard []damselflyv1.Peer_ReadClient
	for range reads + spare {
		stream, err := h.plain(t).Read(t.Context(), h.request(h.layout.All()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		hoard = append(hoard, stream)
	}
	crumb := hoard[0]
	if _, err := crumb.Recv(); err != nil {
		t.Fatal(err)
	}
	c := h.client(t, identity.RoleNode)
	begun := time.Now()
	for {
		_, _, err := h.read(t, c, blob.Run{Count: 1})
		if err == nil {
			break
		}
		if !errors.Is(err, peer.ErrBusy) {
			t.Fatal(err)
		}
	}
	t.Logf("an honest reader had a slot after %s", time.Since(begun))
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("slots that nobody reads with were kept for %s", took)
	}
	lost := 0
	for _, stream := range hoard {
		var err error
		for err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) == codes.ResourceExhausted { // who reads on before its turn to be looked at keeps it
			lost++
		}
	}
	if lost == 0 {
		t.Error("nobody lost its slot")
	}
}
