package main

import (
	"context"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/node"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// claimer attends the schedulers and tells them what it has invented. It carries out
// no lease.
type claimer struct {
	set    *control.Set
	in     *invented
	counts counts
	log    *zap.Logger
}

// newClaimer returns one that attends nobody yet. Others reach the rogue's Peer
// service at address.
func newClaimer(cfg node.Config, id *identity.Identity, address string, in *invented, c counts, log *zap.Logger) *claimer {
	return &claimer{set: newSet(cfg, id, address, log), in: in, counts: c, log: log}
}

// newSet attends nobody yet.
func newSet(cfg node.Config, id *identity.Identity, address string, log *zap.Logger) *control.Set {
	attend := &damselflyv1.Attend{
		Address: address, UploadSlots: uint32(cfg.Peer.UploadSlots), DownloadSlots: uint32(cfg.Peer.DownloadSlots),
		Region: cfg.Topology.Region, Zone: cfg.Topology.Zone, Rack: cfg.Topology.Rack, Release: "rogue",
	}
	never := func() bool { return false }
	return control.New(control.Config{Schedulers: cfg.Scheduler, Attend: attend, Waiting: never}, connector{id}, log.Named("control"))
}

// run claims and attends until ctx ends.
func (c *claimer) run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-c.in.begin.came:
			c.claim(func(blob.Digest) bool { return true })
		case <-ctx.Done():
		}
	}()
	err := c.set.Run(ctx, c)
	<-done
	return err
}

// Handle implements control.Handler.
func (c *claimer) Handle(d control.Decision) {
	switch d := d.(type) {
	case control.Joined:
		c.claim(d.Concerns)
	case control.Tell:
		c.claim(func(g blob.Digest) bool { return g == d.Digest })
	case control.Lease:
		c.set.Tell(control.Failed{Lease: d.ID, Reason: damselflyv1.Failed_REASON_UNREACHABLE})
	}
}

// claim tells of those blobs, once the rogue has begun. Where nobody attends yet, what
// it says is lost, and said again when somebody does.
func (c *claimer) claim(those func(blob.Digest) bool) {
	if !c.in.begin.begun() {
		return
	}
	for d, f := range c.in.blobs {
		if !those(d) || !c.set.Joined(d) {
			continue
		}
		c.set.Tell(control.Have{
			Digest: d, Size: f.layout.Size(), Runs: []blob.Run{f.layout.All()}, Sealed: f.sealed, FirstLink: 1, Links: f.links,
		})
		c.counts.claims.Inc()
		c.log.Info("claimed a blob", zap.Stringer("digest", d), zap.Int("links", len(f.links)/d.LinkSize()))
	}
}

// connector opens connections to schedulers, as this node.
type connector struct{ id *identity.Identity }

// conn is one of them.
type conn struct {
	damselflyv1.SchedulerClient
	cc *grpc.ClientConn
}

// Connect implements control.Connector.
func (c connector) Connect(to control.Holder) (control.Conn, error) {
	expect := identity.Expect{Roles: []identity.Role{identity.RoleScheduler}, ID: to.ID}
	cc, err := grpc.NewClient("dns:///"+to.Address, grpc.WithTransportCredentials(c.id.ClientCredentials(expect)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}), grpc.WithNoProxy())
	if err != nil {
		return nil, err
	}
	return &conn{damselflyv1.NewSchedulerClient(cc), cc}, nil
}

// ID implements control.Conn.
func (*conn) ID(stream context.Context) string {
	p, _ := identity.PeerFromContext(stream)
	return p.ID
}

// Close implements control.Conn.
func (c *conn) Close() error { return c.cc.Close() }
