package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e/process"
	"github.com/damselfly-p2p/damselfly/e2e/puller"
	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/node"
)

// rogue is what is the same with and without a node behind.
type rogue struct {
	options
	cfg     node.Config
	log     *zap.Logger
	role    identity.Role
	id      *identity.Identity
	address string // where others reach its Peer service
	begin   *begin
	counts  counts
	metrics *prometheus.Registry

	peers, ops net.Listener
}

// run joins the cluster and misbehaves in it until ctx ends.
func run(ctx context.Context, o options, cfg node.Config, log *zap.Logger) error {
	if len(cfg.Scheduler) == 0 || cfg.Ops.Listen == "" {
		return errors.New("a rogue needs a scheduler and an ops address; set scheduler and ops.listen")
	}
	r := &rogue{options: o, cfg: cfg, log: log, role: identity.RoleNode, begin: newBegin(o), metrics: prometheus.NewRegistry()}
	r.counts = newCounts(r.metrics)
	if o.seed {
		r.role = identity.RoleSeed
	}
	if err := r.listen(ctx); err != nil {
		return err
	}
	if err := r.join(ctx); err != nil {
		return err
	}
	log.Info("a rogue", zap.String("node", r.id.ID()), zap.String("address", r.address), zap.String("lie", o.lie),
		zap.String("begin", o.begin), zap.String("claim", o.claim))
	var err error
	switch {
	case o.want != "":
		err = r.runWanter(ctx)
	case o.claim != "":
		err = r.runClaimer(ctx)
	default:
		err = r.runHolder(ctx)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (r *rogue) listen(ctx context.Context) (err error) {
	if r.peers, err = config.Listen(ctx, r.cfg.Peer.Listen, "--peer-listen"); err != nil {
		return err
	}
	if r.ops, err = config.Listen(ctx, r.cfg.Ops.Listen, "--ops-listen"); err != nil {
		return err
	}
	at := r.peers.Addr().(*net.TCPAddr)
	switch r.address = r.cfg.Peer.Advertise; {
	case r.address == "" && at.IP.IsUnspecified():
		return fmt.Errorf("peer.listen %q is no address that others can reach; set it to one, or set peer.advertise", r.cfg.Peer.Listen)
	case r.address == "":
		r.address = at.String()
	case !strings.Contains(r.address, ":"):
		r.address = net.JoinHostPort(r.address, fmt.Sprint(at.Port))
	}
	return nil
}

// join gets the identity that the rogue shares with the node behind.
func (r *rogue) join(ctx context.Context) error {
	token := r.cfg.JoinToken.Reveal()
	if r.cfg.TokenFile != "" {
		raw, err := os.ReadFile(r.cfg.TokenFile)
		if err != nil {
			return fmt.Errorf("join token: %w", err)
		}
		token = string(raw)
	}
	var err error
	r.id, err = identity.Join(ctx, filepath.Join(r.cfg.DataDir, "identity"), r.cfg.Scheduler[0], token,
		identity.Options{Log: r.log.Named("identity"), Role: r.role, Others: func() []string { return r.cfg.Scheduler[1:] }})
	return err
}

func (r *rogue) service(from source) *service {
	return &service{options: r.options, from: from, begin: r.begin, counts: r.counts}
}

// runClaimer is a rogue without a node.
func (r *rogue) runClaimer(ctx context.Context) error {
	in, err := invent(r.options, r.begin)
	if err != nil {
		return err
	}
	c := newClaimer(r.cfg, r.id, r.address, in, r.counts, r.log)
	o := &ops{metrics: r.metrics, begin: r.begin, log: r.log.Named("ops"), ready: c.set.Answering}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.id.Run(ctx) })
	g.Go(func() error { return c.run(ctx) })
	g.Go(func() error { return o.serve(ctx, r.ops) })
	g.Go(func() error { return r.service(in).serve(ctx, r.id, r.peers) })
	return g.Wait()
}

// runWanter is a rogue without a node that wants what it will not get.
func (r *rogue) runWanter(ctx context.Context) error {
	in, err := invent(r.options, r.begin)
	if err != nil {
		return err
	}
	if r.want == wantHoard {
		r.cfg.Peer.UploadSlots, r.cfg.Peer.DownloadSlots = 256, 256
	}
	set := newSet(r.cfg, r.id, r.address, r.log)
	w := &wanter{set: set, blobs: in.blobs, want: r.want, counts: r.counts, log: r.log}
	o := &ops{metrics: r.metrics, begin: r.begin, log: r.log.Named("ops"), ready: set.Answering}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.id.Run(ctx) })
	g.Go(func() error { return w.run(ctx) })
	g.Go(func() error { return o.serve(ctx, r.ops) })
	g.Go(func() error { return r.service(in).serve(ctx, r.id, r.peers) })
	return g.Wait()
}

// runHolder is a rogue with a node behind, whose own Peer service and ops server are
// reached by it alone.
func (r *rogue) runHolder(ctx context.Context) error {
	cfg := r.cfg
	for _, addr := range []*string{&cfg.Peer.Listen, &cfg.Ops.Listen} {
		var err error
		if *addr, err = process.FreeAddr(); err != nil {
			return err
		}
	}
	cfg.Peer.Advertise = r.address
	from, cc, err := dialHeld(r.id, cfg.Peer.Listen)
	if err != nil {
		return err
	}
	defer func() { _ = cc.Close() }() // every call on it has ended
	o := &ops{metrics: r.metrics, begin: r.begin, log: r.log.Named("ops"), behind: "http://" + cfg.Ops.Listen}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return node.Run(ctx, cfg, r.role, r.log.Named("node")) })
	g.Go(func() error { return o.serve(ctx, r.ops) })
	g.Go(func() error { return r.service(from).serve(ctx, r.id, r.peers) })
	g.Go(func() error { return r.pull(ctx, o.behind) })
	return g.Wait()
}

// pull pulls what --blob names through the mirror of the node behind, once that
// attends a scheduler. A pull that fails is logged: the rogue has less to lie about.
func (r *rogue) pull(ctx context.Context, ops string) error {
	if len(r.subjects) == 0 {
		return nil
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !answers(ctx, ops+"/readyz?strict") {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	var pulls sync.WaitGroup
	for _, s := range r.subjects {
		pulls.Go(func() {
			p := puller.Puller{Base: "http://" + r.cfg.Mirror.Listen, Registry: s.registry}
			err := p.Blob(ctx, s.repository, s.digest.String(), s.layout.Size())
			r.log.Info("the rogue's own pull is over", zap.Stringer("digest", s.digest), zap.Error(err))
		})
	}
	pulls.Wait()
	return nil
}

func answers(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
