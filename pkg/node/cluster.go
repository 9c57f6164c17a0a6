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

func (m *member) run(ctx context.Context) error {
	id, err := m.join(ctx)
	if err != nil {
		return err
	}
	m.log.Info("has a certificate of the cluster", zap.String("node", id.ID()), zap.String("role", string(id.Peer().Role)),
		zap.Stringer("scheduler", m.cfg.Scheduler))
	address, err := m.advertise(ctx)
	if err != nil {
		return err
	}

	peers := peer.NewClient(id)
	peers.Limit(m.limits.download)
	defer func() { _ = peers.Close() }()
	attend := &damselflyv1.Attend{
		Address: address, UploadSlots: uint32(m.cfg.Peer.UploadSlots), DownloadSlots: uint32(m.cfg.Peer.DownloadSlots),
		Region: m.cfg.Topology.Region, Zone: m.cfg.Topology.Zone, Rack: m.cfg.Topology.Rack,
		Release: config.ReadBuild().Version,
	}
	set := control.New(control.Config{Schedulers: m.cfg.Scheduler, Attend: attend, Waiting: m.tasks.Waiting},
		connector{id}, m.log.Named("control"))
	m.link.joined.Store(&joined{self: peer.Holder{ID: id.ID(), Address: address}, control: set, peers: peers})

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return id.Run(ctx) })
	g.Go(func() error { return set.Run(ctx, m.tasks) })
	g.Go(func() error { return m.serve(ctx, id, set.Sending) })
	return g.Wait()
}

// join gets the node's identity, trying every scheduler for as long as it takes: one
// that is not there yet is no reason to keep clients waiting.
func (m *member) join(ctx context.Context) (*identity.Identity, error) {
	wait := 200 * time.Millisecond
	starts := slices.Clone(m.cfg.Scheduler)
	rand.Shuffle(len(starts), func(i, j int) { starts[i], starts[j] = starts[j], starts[i] })
	for {
		token, err := m.token()
		if err == nil {
			var id *identity.Identity
			id, err = identity.Join(ctx, filepath.Join(m.cfg.DataDir, "identity"), starts[0], token,
				identity.Options{Log: m.log.Named("identity"), Registerer: m.reg, Role: m.role,
					Others: func() []string { return slices.Concat(starts[1:], m.link.schedulers()) }})
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
		m.log.Warn(meanwhile, zap.Error(err), zap.Duration("again", wait))
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, 10*time.Second)
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

// advertise is the host:port under which other nodes reach this one.
func (m *member) advertise(ctx context.Context) (string, error) {
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
	// No packet is sent: connecting a UDP socket only picks the route.
	conn, err := new(net.Dialer).DialContext(ctx, "udp", m.cfg.Scheduler[0])
	if err != nil {
		return "", fmt.Errorf("finding this machine's address towards the scheduler: %w; set peer.advertise", err)
	}
	defer func() { _ = conn.Close() }() // nothing was written
	return net.JoinHostPort(conn.LocalAddr().(*net.UDPAddr).IP.String(), port), nil
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
