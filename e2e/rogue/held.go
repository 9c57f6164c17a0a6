package main

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// held answers with what the node behind the rogue holds.
type held struct {
	node  damselflyv1.PeerClient
	known sync.Map // digests of blobs that are whole
}

// dialHeld connects to the Peer service of a node with the same identity. The caller
// closes the connection.
func dialHeld(id *identity.Identity, address string) (*held, *grpc.ClientConn, error) {
	expect := identity.Expect{Roles: []identity.Role{identity.RoleNode, identity.RoleSeed}, ID: id.ID()}
	cc, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(id.ClientCredentials(expect)),
		grpc.WithNoProxy(), grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(16<<20))
	if err != nil {
		return nil, nil, err
	}
	return &held{node: damselflyv1.NewPeerClient(cc)}, cc, nil
}

// read implements source.
func (h *held) read(ctx context.Context, req *damselflyv1.ReadRequest, send func(*damselflyv1.Chunk) error) error {
	ctx, cancel := context.WithCancel(ctx) // a stream that is left early is torn down
	defer cancel()
	stream, err := h.node.Read(ctx, req)
	if err != nil {
		return err
	}
	for {
		c, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := send(c); err != nil {
			return err
		}
	}
}

// holdings implements source. Who asked stays unknown to the node behind: it would
// take the rogue's own name for the asker's.
func (h *held) holdings(ctx context.Context, req *damselflyv1.HoldingsRequest) (*damselflyv1.HoldingsResponse, error) {
	req.Address = ""
	return h.node.Holdings(ctx, req)
}

// whole implements source.
func (h *held) whole(ctx context.Context, digest string, size uint64) bool {
	if _, ok := h.known.Load(digest); ok {
		return true
	}
	res, err := h.node.Holdings(ctx, &damselflyv1.HoldingsRequest{Digest: digest, Size: size, FirstLink: 1<<32 - 1})
	if err != nil || !res.GetSealed() {
		return false
	}
	h.known.Store(digest, nil)
	return true
}
