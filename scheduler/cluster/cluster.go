// Package cluster lets the schedulers of one cluster know of each other: who is
// there, at which address nodes attend them, and which nodes are denied. It is gossip
// (hashicorp/memberlist), encrypted with a key that only holders of the cluster's CA
// have, and carries hints only: certificates decide who is who. Seeds and nodes are
// not part of it. It owns no blob and decides nothing: pkg/ring spreads blobs over
// the set that Members returns. The scheduler's main builds and runs it.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
)

// maxMembers bounds the set of schedulers: nodes keep a stream to each.
const maxMembers = 64

// leaveLimit is how long a scheduler that stops waits until others have heard it.
const leaveLimit = 500 * time.Millisecond

// Config sets up a Cluster. All of it but Join must be set.
type Config struct {
	// Self is this scheduler: its peer ID and the host:port at which nodes attend it.
	Self Member
	// Cluster is the ID of the cluster; gossip of another one is dropped unread.
	Cluster string
	// Key encrypts the gossip: 32 bytes that all schedulers of the cluster have.
	Key []byte
	// Listen is where gossip comes in, ip:port or :port, TCP and UDP.
	Listen string
	// Address is the IP address at which other schedulers reach Listen.
	Address net.IP
	// Join are gossip addresses of other schedulers, host:port. A name may have many
	// addresses, this one's among them.
	Join []string
	// Denials keeps who is denied.
	Denials Denials
}

// Denials is where statements of denied nodes are kept, an identity.CA. What it
// keeps changes beneath: commands and other processes use it too.
type Denials interface {
	Statements() ([]identity.Statement, error)
	StatementsChanged() (time.Time, error)
	Accept([]identity.Statement) (news []identity.Statement, err error)
}

// Member is a scheduler: its peer ID and the host:port at which nodes attend it.
type Member struct{ ID, Address string }

// Cluster is this scheduler's view of all schedulers. Its methods may be called from
// several goroutines; Run once.
type Cluster struct {
	cfg     Config
	host    string
	port    int
	log     *zap.Logger
	dropped *prometheus.CounterVec
	changed chan struct{}
	heard   chan []identity.Statement // from other schedulers, to be kept
	queue   *memberlist.TransmitLimitedQueue
	// wrap and dial stand between memberlist and the network, for tests.
	wrap  func(memberlist.NodeAwareTransport) memberlist.NodeAwareTransport
	dial  dialFunc
	lines *rate.Limiter // of the log, of what others cause
	seen  time.Time     // when the list of denied nodes that follows was changed; owned by follow

	mu      sync.Mutex
	members map[string]peer // that live, by ID, this one among them
	lost    map[string]loss // that have lived and are not heard any more, by ID
	denials map[string]identity.Statement
	gossip  string // ip:port of this one; empty before Run
	started int64  // when this one did, or a moment after its last life: see outdate
	retell  bool   // started has changed
}

// peer is a member, its gossip address, and when it started: what is said of its earlier
// lives holds no more.
type peer struct {
	Member
	gossip  string
	started int64
}

type loss struct {
	gossip  string
	started int64
	at      time.Time
}

// New returns a cluster that knows this scheduler alone. reg may be nil.
func New(cfg Config, log *zap.Logger, reg prometheus.Registerer) (*Cluster, error) {
	host, port, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("gossip address %q: want ip:port or :port: %w", cfg.Listen, err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || host != "" && net.ParseIP(host) == nil {
		return nil, fmt.Errorf("gossip address %q: want ip:port or :port, in numbers", cfg.Listen)
	}
	if err := identity.CheckID(cfg.Self.ID); err != nil {
		return nil, fmt.Errorf("scheduler ID %q: %w", cfg.Self.ID, err)
	}
	if err := CheckAddress(cfg.Self.Address); err != nil {
		return nil, fmt.Errorf("address for nodes: %w", err)
	}
	if len(cfg.Key) != 32 || cfg.Denials == nil || cfg.Address == nil || cfg.Cluster == "" {
		return nil, errors.New("scheduler/cluster: Config lacks Cluster, Denials or Address, or its Key has not 32 bytes")
	}
	c := &Cluster{
		cfg: cfg, host: host, port: int(number), log: log,
		changed: make(chan struct{}, 1), heard: make(chan []identity.Statement, 64),
		members: map[string]peer{cfg.Self.ID: {Member: cfg.Self}}, lost: map[string]loss{},
		denials: map[string]identity.Statement{}, started: time.Now().UnixNano(),
		wrap:  func(t memberlist.NodeAwareTransport) memberlist.NodeAwareTransport { return t },
		dial:  new(net.Dialer).DialContext,
		lines: rate.NewLimiter(rate.Every(5*time.Second), maxMembers),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_gossip_dropped_total",
			Help: "What came as gossip and was dropped, by reason (streams: connections of who has not the key, or too many; member: no scheduler as others know them; statements: of denied nodes, damaged or too many).",
		}, []string{"reason"}),
	}
	c.queue = &memberlist.TransmitLimitedQueue{NumNodes: c.size, RetransmitMult: retransmits}
	if reg == nil {
		return c, nil
	}
	if err := reg.Register(c.dropped); err != nil {
		return nil, fmt.Errorf("register gossip metrics: %w", err)
	}
	return c, nil
}

func (c *Cluster) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.members)
}

// Members are the schedulers that live, this one among them, by ID. The slice is the
// caller's.
func (c *Cluster) Members() []Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Member, 0, len(c.members))
	for _, p := range c.members {
		out = append(out, p.Member)
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Changed gets a value after Members has changed, one for several changes. One
// receiver gets them all.
func (c *Cluster) Changed() <-chan struct{} { return c.changed }

// GossipAddress is the ip:port at which other schedulers reach this one; empty
// before Run has opened it.
func (c *Cluster) GossipAddress() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gossip
}

// Run gossips until ctx ends; then it tells the others that this scheduler leaves,
// and returns nil.
func (c *Cluster) Run(ctx context.Context) error {
	list, err := c.open(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.follow(ctx) })
	g.Go(func() error { return c.seek(ctx, list) })
	err = g.Wait()
	if leaveErr := list.Leave(leaveLimit); leaveErr != nil {
		c.log.Info("nobody heard that this scheduler leaves; they will notice", zap.Error(leaveErr))
	}
	if closeErr := list.Shutdown(); closeErr != nil {
		c.log.Warn("gossip did not close well", zap.Error(closeErr))
	}
	return err
}

// open starts memberlist.
func (c *Cluster) open(ctx context.Context) (*memberlist.Memberlist, error) {
	lines := newLog(c.log)
	var inner *memberlist.NetTransport
	var err error
	// TCP and UDP must get the same port: where any will do, another try may.
	for tries := 1; tries == 1 || c.port == 0 && err != nil && tries <= 10; tries++ {
		inner, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{c.host}, BindPort: c.port, Logger: lines})
	}
	if err != nil {
		return nil, fmt.Errorf("gossip cannot listen on %s, TCP and UDP: %w; choose another address with --gossip-listen", c.cfg.Listen, err)
	}
	port := inner.GetAutoBindPort()
	c.mu.Lock()
	c.gossip = net.JoinHostPort(c.cfg.Address.String(), strconv.Itoa(port))
	c.mu.Unlock()
	// What is under way may go on until Run has ended: leaving is said by gossip.
	transport := newBounded(ctx, c.wrap(inner), c.cfg.Key, c.dial, c.drop)
	d := &delegate{c}
	cfg := tuned()
	cfg.Name, cfg.Label, cfg.SecretKey = c.cfg.Self.ID, "damselfly "+c.cfg.Cluster, c.cfg.Key
	cfg.BindAddr, cfg.BindPort = c.host, port
	cfg.AdvertiseAddr, cfg.AdvertisePort = c.cfg.Address.String(), port
	cfg.Transport, cfg.Logger = transport, lines
	cfg.Delegate, cfg.Events, cfg.Alive, cfg.Conflict, cfg.Merge = d, d, d, d, d
	list, err := memberlist.Create(cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start gossip: %w", err), transport.Shutdown())
	}
	c.log.Info("gossips with other schedulers", zap.String("address", c.GossipAddress()), zap.String("for_nodes", c.cfg.Self.Address))
	return list, nil
}

// drop counts what came and was dropped.
func (c *Cluster) drop(reason string) { c.dropped.WithLabelValues(reason).Inc() }

// signal tells that members changed.
func (c *Cluster) signal() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// known is a copy of what is known of denied nodes.
func (c *Cluster) known() []identity.Statement {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.denials))
}
