package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/task"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// link is a node's part in its cluster. Until the node has joined it tells
// nobody and reads from nobody, so that clients are served from the first moment.
type link struct {
	joined atomic.Pointer[joined]
}

type joined struct {
	self    peer.Holder
	control *control.Set
	peers   *peer.Client
}

var errNotJoined = errors.New("this node has not joined its cluster yet")

// Tell implements task.Scheduler.
func (l *link) Tell(e control.Event) {
	if j := l.joined.Load(); j != nil {
		j.control.Tell(e)
	}
}

// Joined implements task.Scheduler.
func (l *link) Joined(d blob.Digest) bool {
	j := l.joined.Load()
	return j != nil && j.control.Joined(d)
}

// Known implements task.Scheduler.
func (l *link) Known() (self peer.Holder, seeds []peer.Holder) {
	j := l.joined.Load()
	if j == nil {
		return peer.Holder{}, nil
	}
	for _, h := range j.control.Seeds() {
		seeds = append(seeds, peer.Holder(h))
	}
	return j.self, seeds
}

// answering tells whether any scheduler answers this node.
func (l *link) answering() bool {
	j := l.joined.Load()
	return j != nil && j.control.Answering()
}

// away is since when no scheduler answers this node; ok is false while one does. The
// time is zero before the node has joined.
func (l *link) away() (since time.Time, ok bool) {
	j := l.joined.Load()
	if j == nil {
		return time.Time{}, true
	}
	return j.control.Away()
}

// schedulers are the addresses of those that this node has been told of since.
func (l *link) schedulers() []string {
	if j := l.joined.Load(); j != nil {
		return j.control.Addresses()
	}
	return nil
}

// Read implements task.Peers.
func (l *link) Read(ctx context.Context, h peer.Holder, d blob.Digest, layout blob.Layout, run blob.Run, begin peer.Begin, progress func(int)) error {
	j := l.joined.Load()
	if j == nil {
		return errNotJoined
	}
	return j.peers.Read(ctx, h, d, layout, run, begin, progress)
}

// ReadSome implements task.Peers.
func (l *link) ReadSome(ctx context.Context, h peer.Holder, d blob.Digest, layout blob.Layout, lacking *blob.Bitmap, most int, begin peer.Begin) error {
	j := l.joined.Load()
	if j == nil {
		return errNotJoined
	}
	return j.peers.ReadSome(ctx, h, d, layout, lacking, most, begin)
}

// Holdings implements task.Peers.
func (l *link) Holdings(ctx context.Context, h peer.Holder, d blob.Digest, layout blob.Layout, firstLink int, address string) (peer.Holdings, error) {
	j := l.joined.Load()
	if j == nil {
		return peer.Holdings{}, errNotJoined
	}
	return j.peers.Holdings(ctx, h, d, layout, firstLink, address)
}

// Credential implements task.Peers.
func (l *link) Credential(ctx context.Context, h peer.Holder, d blob.Digest, o *damselflyv1.Origin) (http.Header, error) {
	j := l.joined.Load()
	if j == nil {
		return nil, errNotJoined
	}
	return j.peers.Credential(ctx, h, d, o)
}

// member runs a node's part in its cluster: it joins, serves the Peer service
// and attends the scheduler.
type member struct {
	cfg      Config
	role     identity.Role
	link     *link
	limits   *limits
	tasks    *task.Manager
	blobs    peer.Blobs
	listener net.Listener
	log      *zap.Logger
	reg      prometheus.Registerer
}

// show tells operators how the node's part in its cluster is. A node serves pulls with or
// without a scheduler, so that it is ready in any case; a seed serves nobody until it has
// joined.
func (m *member) show(ops *config.Ops) {
	if m.role == identity.RoleSeed {
		ops.Ready("cluster", func(context.Context) error {
			if m.link.joined.Load() == nil {
				return fmt.Errorf("it has not joined the cluster of %s yet, and serves no node; its log says why", m.cfg.Scheduler)
			}
			return nil
		})
	}
	ops.Degraded("scheduler", func(context.Context) error {
		since, away := m.link.away()
		switch {
		case !away:
			return nil
		case since.IsZero():
			return fmt.Errorf("not joined yet, no scheduler of %s answers; pulls read the origin alone", m.cfg.Scheduler)
		}
		return fmt.Errorf("no scheduler of %s answers since %s; pulls go on with what other nodes and the origin have",
			m.cfg.Scheduler, since.UTC().Format(time.RFC3339))
	})
	m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "damselfly_scheduler_joined", Help: "1 while a scheduler answers this node. Pulls go on without one.",
	}, func() float64 {
		if m.link.answering() {
			return 1
		}
		return 0
	}))
}

func (m *member) run(ctx context.Context) error {
	remembered, err := loadKnown(m.cfg.DataDir)
	if err != nil {
		m.log.Warn("cannot read whom this node knew; it learns that anew from a scheduler", zap.Error(err))
	}
	id, err := m.join(ctx, remembered)
	if err != nil {
		return err
	}
	m.log.Info("has a certificate of the cluster", zap.String("node", id.ID()), zap.String("role", string(id.Peer().Role)),
		zap.Stringer("scheduler", m.cfg.Scheduler))
	address, err := m.advertise(ctx, remembered)
	if err != nil {
		return err
	}

	peers := peer.NewClient(id)
	peers.Limit(m.limits.download)
	defer func() { _ = peers.Close() }()
	attend := &damselflyv1.Attend{
		Address: address, UploadSlots: uint32(m.cfg.Peer.UploadSlots), DownloadSlots: uint32(m.cfg.Peer.DownloadSlots),
		Region: m.cfg.Topology.Region, Zone: m.cfg.Topology.Zone, Rack: m.cfg.Topology.Rack,
		Release: config.ReadBuild().Version, Host: hostName(),
	}
	keep := newKeeper(m.cfg.DataDir, m.log)
	set := control.New(control.Config{
		Schedulers: m.cfg.Scheduler, Attend: attend, Waiting: m.tasks.Waiting, Remembered: remembered, Learned: keep.learned,
		Denials: id,
	}, connector{id}, m.log.Named("control"))
	m.link.joined.Store(&joined{self: peer.Holder{ID: id.ID(), Address: address}, control: set, peers: peers})

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return id.Run(ctx) })
	g.Go(func() error { return set.Run(ctx, m.tasks) })
	g.Go(func() error { return keep.run(ctx) })
	g.Go(func() error { return m.serve(ctx, id, set.Sending) })
	return g.Wait()
}

// hostName is the machine's name for people; empty where it has none.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name[:min(len(name), 253)]
}

// join gets the node's identity, trying every scheduler for as long as it takes: one
// that is not there yet is no reason to keep clients waiting.
func (m *member) join(ctx context.Context, remembered control.Known) (*identity.Identity, error) {
	wait := 200 * time.Millisecond
	starts := slices.Clone(m.cfg.Scheduler)
	rand.Shuffle(len(starts), func(i, j int) { starts[i], starts[j] = starts[j], starts[i] })
	others := func() []string {
		out := slices.Concat(starts[1:], m.link.schedulers())
		for _, h := range remembered.Schedulers {
			if !slices.Contains(out, h.Address) {
				out = append(out, h.Address)
			}
		}
		return out
	}
	var failures control.Repeats
	for {
		token, err := m.token()
		if err == nil {
			var id *identity.Identity
			id, err = identity.Join(ctx, filepath.Join(m.cfg.DataDir, "identity"), starts[0], token,
				identity.Options{Log: m.log.Named("identity"), Registerer: m.reg, Role: m.role, Others: others})
			if err == nil {
				return id, nil
			}
			if errors.Is(err, identity.ErrWrongRole) {
				return nil, err // another try would be refused as well
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		meanwhile := "not joined yet; clients are served from the origin meanwhile"
		if m.role == identity.RoleSeed {
			meanwhile = "not joined yet; nothing is read meanwhile"
		}
		if failures.Due(time.Now()) {
			m.log.Warn(meanwhile, zap.Error(err), zap.Int("failed", failures.Count()), zap.Duration("away", time.Since(failures.Since())))
		}
		if !sleep(ctx, wait) {
			return nil, ctx.Err()
		}
		wait = min(2*wait, 10*time.Second)
	}
}

// sleep returns false when ctx ends before d is over.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (m *member) token() (string, error) {
	if m.cfg.TokenFile == "" {
		return m.cfg.JoinToken.Reveal(), nil
	}
	raw, err := os.ReadFile(m.cfg.TokenFile)
	if err != nil {
		return "", fmt.Errorf("join token: %w; write the output of 'scheduler token create' there, readable by this user", err)
	}
	return string(raw), nil
}

// advertise is the host:port under which other nodes reach this one. Where no scheduler's
// name resolves it tries again: clients are served meanwhile.
func (m *member) advertise(ctx context.Context, remembered control.Known) (string, error) {
	listen := m.listener.Addr().(*net.TCPAddr)
	port := fmt.Sprint(listen.Port)
	if a := m.cfg.Peer.Advertise; a != "" {
		if _, _, err := net.SplitHostPort(a); err == nil {
			return a, nil
		}
		return net.JoinHostPort(a, port), nil
	}
	if !listen.IP.IsUnspecified() {
		return listen.String(), nil
	}
	towards := slices.Clone([]string(m.cfg.Scheduler))
	for _, h := range remembered.Schedulers {
		towards = append(towards, h.Address)
	}
	var failures control.Repeats
	for {
		var errs []error
		for _, scheduler := range towards {
			host, err := localHost(ctx, scheduler)
			if err == nil {
				return net.JoinHostPort(host, port), nil
			}
			errs = append(errs, err)
		}
		if failures.Due(time.Now()) {
			m.log.Warn("cannot find this machine's address towards the scheduler, so it is not attended yet; trying again, or set peer.advertise",
				zap.Error(errors.Join(errs...)), zap.Int("failed", failures.Count()))
		}
		if !sleep(ctx, 2*time.Second) {
			return "", ctx.Err()
		}
	}
}

// localHost is the address that this machine uses towards another. No packet is sent:
// connecting a UDP socket only picks the route.
func localHost(ctx context.Context, towards string) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", towards)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }() // nothing was written
	return conn.LocalAddr().(*net.UDPAddr).IP.String(), nil
}

// serve answers other nodes until ctx ends, then lets running reads finish. sending
// hears of each read.
func (m *member) serve(ctx context.Context, id *identity.Identity, sending func(blob.Digest) (done func())) error {
	srv := PeerServer(id, m.log)
	// A scheduler counts a slot as free when the receiver says so, a moment
	// before the holder has closed the stream, and gives one that reads an origin twice
	// its slots: the limit leaves room for both.
	service := peer.NewServer(m.blobs, m.tasks, 3*m.cfg.Peer.UploadSlots, m.reg)
	service.OnRead(sending)
	service.Limit(m.limits.upload)
	damselflyv1.RegisterPeerServer(srv, service)
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		force := time.AfterFunc(m.cfg.Grace, srv.Stop)
		defer force.Stop()
		srv.GracefulStop()
	})
	err := srv.Serve(m.listener)
	if stop() {
		return fmt.Errorf("serving other nodes at %s: %w", m.listener.Addr(), err)
	}
	<-drained
	return ctx.Err()
}

// PeerServer returns a gRPC server for the Peer service of a node: with its windows
// and limits, the certificates of its cluster and the table of who may call what. It
// survives handlers that panic, and logs these.
func PeerServer(id *identity.Identity, log *zap.Logger) *grpc.Server {
	table := identity.MethodRoles()
	survive := recovery.WithRecoveryHandlerContext(func(_ context.Context, p any) error {
		log.Error("a call from another node made a handler panic", zap.Any("panic", p), zap.Stack("stack"))
		return status.Error(codes.Internal, "this node failed at the call; its log says why")
	})
	return grpc.NewServer(append(peer.ServerOptions(),
		grpc.Creds(peer.Buffered(id.ServerCredentials())),
		grpc.ChainUnaryInterceptor(recovery.UnaryServerInterceptor(survive), identity.UnaryInterceptor(table)),
		grpc.ChainStreamInterceptor(recovery.StreamServerInterceptor(survive), identity.StreamInterceptor(table)),
	)...)
}
