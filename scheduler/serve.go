package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/cluster"
	"github.com/damselfly-p2p/damselfly/scheduler/server"
)

// Config is everything that a scheduler can be told.
type Config struct {
	Listen      string           `yaml:"listen" doc:"Address of the scheduler. Every seed and node must be able to reach it; they need a certificate of this cluster, or a join token to get one."`
	Advertise   string           `yaml:"advertise" doc:"host or host:port that nodes use for this scheduler where there are several. Empty: the address that this machine uses towards the schedulers in join, else towards the world, with the port of listen."`
	Join        []string         `yaml:"join" doc:"Gossip addresses of other schedulers, host:port. One that answers is enough: it names the others. A name may have several addresses, this scheduler's among them, as that of a headless Kubernetes service. They are tried on and on, so that the order of start does not matter."`
	Gossip      GossipConfig     `yaml:"gossip" doc:"How the schedulers of a cluster know of each other. Blobs are spread over them; nodes are told of all by any of them."`
	JoinCluster string           `yaml:"joinCluster" doc:"host:port of a scheduler of the cluster that this one is to join. The cluster's CA is got from it, once, with the token in joinTokenFile, and kept in stateDir. If join is empty, its host is joined at port 65008. Empty: the CA in stateDir is used, or made."`
	TokenFile   string           `yaml:"joinTokenFile" file:"first" doc:"File with the output of 'scheduler token create --role scheduler' on that scheduler. Not needed any more once this one has the CA."`
	StateDir    string           `yaml:"stateDir" doc:"Directory for the cluster's CA, the join tokens and the scheduler's own certificate. Keep it and back it up: without it every node must join anew."`
	Trace       string           `yaml:"trace" doc:"File to which every event that reaches the core is appended, one a line, and what was decided of it, for 'scheduler sim replay' and for looking into what was decided and why. It grows with the cluster's traffic. Empty: none."`
	Log         config.Log       `yaml:"log" doc:"What is logged, and how."`
	Ops         config.OpsConfig `yaml:"ops" doc:"Where operators see how the scheduler is."`
}

// DefaultConfig is a scheduler's configuration where nothing else is said.
func DefaultConfig() Config {
	return Config{
		Listen:   ":65000",
		StateDir: "/var/lib/damselfly-scheduler",
		Log:      config.DefaultLog(),
		Ops:      config.OpsConfig{Listen: "127.0.0.1:65009"},
	}
}

// Validate says what is wrong with c, and what to do.
func (c Config) Validate() error {
	var errs []error
	if c.Listen == "" {
		errs = append(errs, errors.New("listen is empty; name an address, such as :65000"))
	}
	errs = append(errs, config.CheckAddress("listen", c.Listen))
	if c.StateDir == "" {
		errs = append(errs, errors.New("stateDir is empty; name a directory that only this user may read"))
	}
	errs = append(errs, c.checkSeveral())
	return errors.Join(errs...)
}

// serve runs the scheduler until ctx ends. It returns nil then, or what stopped
// it.
func serve(ctx context.Context, cfg Config, log *zap.Logger) (err error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	cfg = cfg.complete()
	config.WarnExposed(log, "joinTokenFile", cfg.TokenFile)
	reg := config.NewRegistry("scheduler")
	ca, err := openAuthority(ctx, cfg, log)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	if err != nil {
		return config.NameDirectory(err, "--state-dir")
	}
	id, err := ca.Self(filepath.Join(cfg.StateDir, "identity"), identity.RoleScheduler,
		identity.Options{Log: log.Named("identity"), Registerer: reg})
	if err != nil {
		return err
	}
	trace, closeTrace, err := openTrace(cfg.Trace)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeTrace()) }()
	err = run(ctx, cfg, ca, id, trace, log, reg)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// run serves with what is kept open.
func run(ctx context.Context, cfg Config, ca *identity.CA, id *identity.Identity, trace io.Writer, log *zap.Logger, reg *prometheus.Registry) error {
	issuer, err := ca.Server(identity.Options{Log: log.Named("identity"), Registerer: reg})
	if err != nil {
		return err
	}
	schedulers, denials := make(chan []server.Scheduler), make(chan []identity.Statement)
	brain, err := server.New(server.Config{
		Caller: callers(ca, log), Trace: trace, Release: config.ReadBuild().Version, Schedulers: schedulers, Denials: denials,
	}, log.Named("server"), reg)
	if err != nil {
		return err
	}
	ops := config.NewOps(cfg.Ops, reg, log.Named("ops"))
	if _, err := ops.Listen(ctx); err != nil {
		return err
	}
	listener, err := config.Listen(ctx, cfg.Listen, "--listen")
	if err != nil {
		return err
	}
	var all *cluster.Cluster
	if cfg.gossips() {
		if all, err = newCluster(ctx, cfg, ca, id.ID(), listener.Addr(), log.Named("cluster"), reg); err != nil {
			return errors.Join(err, listener.Close())
		}
	}
	if err := countSchedulers(reg, all); err != nil {
		return errors.Join(err, listener.Close())
	}
	srv := newServer(id, log)
	damselflyv1.RegisterIdentityServer(srv, issuer)
	damselflyv1.RegisterSchedulerServer(srv, brain)
	g, ctx := errgroup.WithContext(ctx)
	if all != nil {
		g.Go(func() error { return all.Run(ctx) })
		g.Go(func() error { return tellSchedulers(ctx, all, schedulers) })
	}
	g.Go(func() error { return shutOut(ctx, ca, id, denials, log) })
	g.Go(func() error { return ops.Run(ctx) })
	g.Go(func() error { return id.Run(ctx) })
	g.Go(func() error { return brain.Run(ctx) })
	g.Go(func() error {
		// Streams never end by themselves: nodes connect to the next scheduler.
		stop := context.AfterFunc(ctx, srv.Stop)
		defer stop()
		return srv.Serve(listener)
	})
	log.Info("serving", zap.Stringer("address", listener.Addr()), zap.String("cluster", ca.Cluster()),
		zap.String("scheduler", id.ID()), zap.String("release", config.ReadBuild().String()))
	return g.Wait()
}

// newServer is the gRPC server, with no service yet.
func newServer(id *identity.Identity, log *zap.Logger) *grpc.Server {
	table := identity.MethodRoles()
	survive := recovery.WithRecoveryHandlerContext(func(_ context.Context, p any) error {
		log.Error("a call made a handler panic", zap.Any("panic", p), zap.Stack("stack"))
		return status.Error(codes.Internal, "the scheduler failed at the call; its log says why")
	})
	return grpc.NewServer(
		grpc.Creds(id.ServerCredentials()),
		grpc.ForceServerCodecV2(server.Codec()),
		grpc.ChainUnaryInterceptor(recovery.UnaryServerInterceptor(survive), identity.UnaryInterceptor(table)),
		grpc.ChainStreamInterceptor(recovery.StreamServerInterceptor(survive), identity.StreamInterceptor(table)),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(8),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.ConnectionTimeout(handshakeLimit),
		// A fixed window turns off the estimate of the bandwidth, which answers nearly
		// every small message with a ping of its own. It is more than a node has under way.
		grpc.StaticStreamWindowSize(256<<10),
		grpc.StaticConnWindowSize(512<<10),
		// What thousands of silent connections take: TLS buffers what it reads itself.
		grpc.ReadBufferSize(512),
		grpc.WriteBufferSize(8<<10),
		grpc.InTapHandle(identity.TapHandle(table)),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}),
	)
}

// gcPercent keeps 5,000 streams in half a gigabyte: most of the heap is connections,
// which live long.
const gcPercent = 80

// maxMessage holds the links of one blob of 200,000 pieces, which has 3 TiB. Nodes
// tell many blobs in many messages.
const maxMessage = 8 << 20

// What a connection may take that has not shown yet who it is: with
// identity.ServerCredentials they bound what strangers hold.
const (
	handshakeLimit = 10 * time.Second
	maxHeader      = 16 << 10
)

// callers says who attends: whoever has a certificate and was not denied since.
func callers(ca *identity.CA, log *zap.Logger) func(context.Context) (id, role string, ok bool) {
	return func(ctx context.Context) (string, string, bool) {
		p, ok := identity.PeerFromContext(ctx)
		if !ok {
			return "", "", false
		}
		denied, err := ca.Denied(p.ID)
		if err != nil {
			log.Error("the list of denied nodes cannot be read; nobody is let in until it can", zap.Error(err))
		}
		return p.ID, string(p.Role), err == nil && !denied
	}
}

// openTrace returns the file that events are appended to, and how to close it;
// no writer when path is empty.
func openTrace(path string) (io.Writer, func() error, error) {
	if path == "" {
		return nil, func() error { return nil }, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("trace: %w; name a file that this user may write", err)
	}
	return f, f.Close, nil
}
