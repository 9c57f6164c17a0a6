// Package node builds a node, or a seed, from its configuration and runs it: the
// store, the tasks, the faces for clients, the Peer service for other nodes and
// the stream to the scheduler. It is the only wiring; it moves no bytes itself.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
	"github.com/damselfly-p2p/damselfly/pkg/share"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/task"
)

// face is one listening HTTP server of a node.
type face struct {
	name     string
	listener net.Listener
	handler  http.Handler
}

// node is what Run builds before anything runs.
type node struct {
	cfg     Config
	log     *zap.Logger
	store   *store.Store
	origins *origin.Client
	tasks   *task.Manager
	sharer  *share.Sharer
	proxy   *proxy.Proxy
	limits  *limits
	faces   []face
	ops     *config.Ops
	cache   *cacheServer
	part    *member // nil: works by itself
}

// Run runs a node, or a seed when role says so, until ctx ends, and then drains:
// faces stop taking requests and finish those that run within cfg.Grace, then the
// node leaves its cluster. It returns nil after that, or what stopped it: an
// address in use, a store that another process holds, a directory that it may
// not write, a seed without a scheduler.
func Run(ctx context.Context, cfg Config, role identity.Role, log *zap.Logger) error {
	return run(ctx, cfg, role, log, nil)
}

// run is Run, with follow unless it is nil: it runs beside the node, until its context
// ends, and has the node apply the settings that may change while it runs.
func run(ctx context.Context, cfg Config, role identity.Role, log *zap.Logger, follow func(ctx context.Context, apply func(Config)) error) (err error) {
	if role == identity.RoleSeed && len(cfg.Scheduler) == 0 {
		return errNoScheduler
	}
	n, err := build(ctx, cfg, role, log)
	if err != nil {
		return err
	}
	defer func() {
		n.origins.Close()
		err = errors.Join(err, n.store.Close())
	}()

	// The inner parts outlive the faces: what a client is still reading keeps
	// coming while the faces drain.
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	parts, inner := errgroup.WithContext(inner)
	parts.Go(func() error { return n.tasks.Run(inner) })
	parts.Go(func() error { return n.store.Run(inner) })
	if n.cache != nil {
		parts.Go(func() error { return n.cache.run(inner) })
	}
	parts.Go(func() error { return n.ops.Run(inner) })
	parts.Go(func() error { return n.sharer.Run(inner) })
	if follow != nil {
		parts.Go(func() error { return follow(inner, func(c Config) { n.limits.set(c.Limits) }) })
	}
	if n.part != nil {
		parts.Go(func() error { return n.part.run(inner) })
	}
	faces, outer := errgroup.WithContext(ctx)
	for _, f := range n.faces {
		faces.Go(func() error { return n.serve(outer, inner, f) })
	}
	faces.Go(func() error { // a part that fails takes the faces along
		select {
		case <-outer.Done():
			return nil
		case <-inner.Done():
			return context.Cause(inner)
		}
	})
	n.log.Info("serving", zap.String("role", string(role)), zap.String("release", config.ReadBuild().String()))
	faceErr := faces.Wait()
	closeErr := n.proxy.Close()
	stop()
	partErr := parts.Wait()
	if ctx.Err() == nil && errors.Is(faceErr, context.Canceled) {
		faceErr = nil // a part failed first
	}
	if partErr != nil && errors.Is(faceErr, partErr) {
		faceErr = nil // it took the faces along, and is told once
	}
	return errors.Join(ignoreCanceled(faceErr), closeErr, ignoreCanceled(partErr))
}

// errNoScheduler: a node alone is a cache, a seed alone is nothing.
var errNoScheduler = errors.New("no scheduler is set, so nobody would tell this seed what to read: name one with --scheduler host:port")

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func build(ctx context.Context, cfg Config, role identity.Role, log *zap.Logger) (_ *node, err error) {
	warn(cfg, log)
	n := &node{cfg: cfg, log: log, limits: newLimits(cfg.Limits)}
	component := "node"
	if role == identity.RoleSeed {
		component = "seed"
	}
	reg := config.NewRegistry(component)
	n.limits.register(reg)
	l := &link{}
	var tasks *task.Manager
	if err := n.openStore(ctx, reg, func(d blob.Digest) { tasks.Dropped(d) }); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.closeListeners(), n.store.Close())
		}
	}()
	cfg.Origin.Named = cfg.named()
	origins, err := origin.New(cfg.Origin, log.Named("origin"), reg)
	if err != nil {
		return nil, err
	}
	origins.Limit(n.limits.origin, n.limits.download)
	n.origins = origins
	tasks = task.New(task.Config{Seed: role == identity.RoleSeed}, n.store, l, l, origins, log.Named("task"), reg)
	n.tasks = tasks
	n.sharer = share.New(cfg.Store.Share, n.store, tasks.Held, tasks.Waiting, log.Named("share"))
	if err := n.listenFaces(ctx, origins, reg); err != nil {
		return nil, err
	}
	n.ops = config.NewOps(cfg.Ops, reg, log.Named("ops"))
	if _, err := n.ops.Listen(ctx); err != nil {
		return nil, err
	}
	n.ops.Ready("node", func(context.Context) error {
		if ctx.Err() != nil {
			return errors.New("it is stopping and takes no new requests")
		}
		return nil
	})
	if len(cfg.Scheduler) == 0 {
		return n, nil
	}
	listener, err := config.Listen(ctx, cfg.Peer.Listen, "--peer-listen")
	if err != nil {
		return nil, err
	}
	n.part = &member{cfg: cfg, role: role, link: l, limits: n.limits, tasks: tasks, blobs: n.store, listener: listener, log: log, reg: reg}
	n.part.show(n.ops)
	return n, nil
}

// openStore opens the store, and the socket for those who look after it.
func (n *node) openStore(ctx context.Context, reg *prometheus.Registry, onDrop func(blob.Digest)) (err error) {
	dir := StoreDir(n.cfg.DataDir)
	n.store, err = store.Open(store.Config{
		Dir: dir, MaxBytes: int64(n.cfg.Store.MaxBytes), KeepFree: n.cfg.Store.KeepFree, MaxAge: n.cfg.Store.MaxAge,
		ScrubRate: int64(n.cfg.Store.ScrubRate), ScrubEvery: n.cfg.Store.ScrubEvery, Registerer: reg, OnDrop: onDrop,
	}, n.log.Named("store"))
	if err != nil {
		return config.NameDirectory(err, "--data-dir")
	}
	n.cache, err = newCacheServer(ctx, n.cfg.DataDir, NewCache(n.store, dir, reg), n.log.Named("cache"))
	if err != nil {
		n.log.Warn("'dfget cache' will not reach this node; pulls do not need it", zap.Error(err))
	}
	return nil
}

// listenFaces opens the faces that the configuration turns on.
func (n *node) listenFaces(ctx context.Context, origins *origin.Client, reg prometheus.Registerer) error {
	pc := n.cfg.Proxy.Config
	if n.cfg.Proxy.Listen != "" && pc.CADir == "" {
		pc.CADir = filepath.Join(n.cfg.DataDir, "proxy-ca")
	}
	pc.Dial, pc.Transport = origins.Dial, origins.Transport()
	pc.Solver = origins.Solver()
	p, err := proxy.New(pc, opener{n.tasks}, origins, n.log.Named("proxy"), reg)
	if err != nil {
		return err
	}
	n.proxy = p
	if n.cfg.Proxy.Listen != "" {
		n.log.Info("the proxy face serves under its own CA; the runtime must trust it", zap.String("file", p.CAFile()))
	}
	type listened struct {
		name, addr, setting string
		handler             func() http.Handler
	}
	faces := []listened{
		{"mirror", n.cfg.Mirror.Listen, "--mirror-listen", func() http.Handler { return p.Registry("") }},
		{"dockerhub", n.cfg.Mirror.DockerHub, "--mirror-docker-hub-listen", func() http.Handler { return p.Registry("docker.io") }},
		{"proxy", n.cfg.Proxy.Listen, "--proxy-listen", p.ForwardProxy},
	}
	for i, r := range n.cfg.Mirror.Registries {
		faces = append(faces, listened{r.Name, r.Listen, fmt.Sprintf("mirror.registries[%d].listen", i),
			func() http.Handler { return p.Registry(r.Name) }})
	}
	for _, f := range faces {
		if f.addr == "" {
			continue
		}
		listener, err := config.Listen(ctx, f.addr, f.setting)
		if err != nil {
			return err
		}
		n.faces = append(n.faces, face{name: f.name, listener: listener, handler: f.handler()})
		n.log.Info("listening", zap.String("face", f.name), zap.Stringer("address", listener.Addr()))
	}
	return nil
}

func (n *node) closeListeners() error {
	var errs []error
	if n.cache != nil {
		errs = append(errs, n.cache.close())
	}
	for _, f := range n.faces {
		errs = append(errs, f.listener.Close())
	}
	return errors.Join(errs...)
}

// opener lets the proxy open blobs without knowing the tasks.
type opener struct{ tasks *task.Manager }

// Open implements proxy.Tasks.
func (o opener) Open(ctx context.Context, req proxy.Request) (proxy.Handle, error) {
	h, err := o.tasks.Open(ctx, task.Request(req))
	if err != nil {
		return nil, err
	}
	return h, nil
}

// Keep implements proxy.Tasks.
func (o opener) Keep(ref origin.Ref, d blob.Digest, size int64) io.WriteCloser {
	if k := o.tasks.Keep(ref, d, size); k != nil {
		return k
	}
	return nil
}

// Served implements proxy.Tasks.
func (o opener) Served(ref origin.Ref, d blob.Digest) bool { return o.tasks.Served(ref, d) }

// Serves implements proxy.Tasks.
func (o opener) Serves(ref origin.Ref, d blob.Digest) { o.tasks.Serves(ref, d) }

// serve runs a face until ctx ends, then lets running requests finish. Requests
// see the end of inner, not of ctx.
func (n *node) serve(ctx, inner context.Context, f face) error {
	srv := n.proxy.Server(f.handler)
	srv.BaseContext = func(net.Listener) context.Context { return inner }
	var unused fresh
	unused.watch(srv)
	drained := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(inner, n.cfg.Grace)
		defer cancel()
		if err := unused.shutdown(grace, srv); err != nil {
			drained <- srv.Close() // the grace is over: clients resume elsewhere
			return
		}
		drained <- nil
	})
	err := srv.Serve(f.listener)
	if stop() {
		return fmt.Errorf("serving %s at %s: %w", f.name, f.listener.Addr(), err)
	}
	return <-drained
}
