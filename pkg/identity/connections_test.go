package identity

import (
	"testing"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

func TestDisconnectEndsTheCallsOfOneNode(t *testing.T) {
	ca := testCA(t)
	scheduler := testIdentity(t, ca, RoleScheduler)
	service, err := ca.Server(Options{})
	if err != nil {
		t.Fatal(err)
	}
	address, _ := serve(t, scheduler, service)
	nodes := map[string]damselflyv1.PeerClient{}
	var out, stays string
	for range 2 {
		id := testIdentity(t, ca, RoleNode)
		nodes[id.ID()] = damselflyv1.NewPeerClient(dial(t, address, id.ClientCredentials(anyRole())))
		if _, err := nodes[id.ID()].Holdings(t.Context(), &damselflyv1.HoldingsRequest{}); err != nil {
			t.Fatal(err)
		}
		out, stays = stays, id.ID()
	}
	if n := scheduler.Disconnect(func(string) bool { return false }); n != 0 {
		t.Errorf("%d connections of nobody were closed", n)
	}
	if n := scheduler.Disconnect(func(id string) bool { return id == out }); n != 1 {
		t.Errorf("%d connections were closed, want that of one node", n)
	}
	if _, err := nodes[stays].Holdings(t.Context(), &damselflyv1.HoldingsRequest{}); err != nil {
		t.Errorf("the other node's call: %v", err)
	}
	if n := scheduler.Disconnect(func(id string) bool { return id == out }); n != 0 {
		t.Errorf("%d closed connections are still counted", n)
	}
	if n := scheduler.Disconnect(func(id string) bool { return id == stays }); n != 1 {
		t.Errorf("%d connections were closed, want the other node's", n)
	}
}
