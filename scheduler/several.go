package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/scheduler/cluster"
	"github.com/damselfly-p2p/damselfly/scheduler/server"
)

const (
	gossipPort = "65008"
	// gossipKey names the key that schedulers gossip with.
	gossipKey = "damselfly gossip 1"
	// adoptFirst and adoptLast are the pauses between tries to get the cluster's CA.
	adoptFirst = 500 * time.Millisecond
	adoptLast  = 10 * time.Second
)

// GossipConfig says where schedulers hear each other.
type GossipConfig struct {
	Listen string `yaml:"listen" doc:"Address of the gossip among schedulers, ip:port or :port, TCP and UDP. All schedulers of the cluster must be able to reach it, and nobody else needs to; it is encrypted with a key that follows from the cluster's CA. Empty: :65008 if join or joinCluster is set, else none, and this scheduler is the only one."`
}

// gossips tells whether this scheduler is to be one of several.
func (c Config) gossips() bool {
	return c.Gossip.Listen != "" || len(c.Join) > 0 || c.JoinCluster != ""
}

// complete fills in what follows from other settings.
func (c Config) complete() Config {
	if c.gossips() && c.Gossip.Listen == "" {
		c.Gossip.Listen = ":" + gossipPort
	}
	if host, _, err := net.SplitHostPort(c.JoinCluster); err == nil && len(c.Join) == 0 {
		c.Join = []string{net.JoinHostPort(host, gossipPort)}
	}
	return c
}

// checkSeveral says what is wrong with the settings of several schedulers.
func (c Config) checkSeveral() error {
	errs := []error{config.CheckAddress("gossip.listen", c.Gossip.Listen)}
	if host, _, err := net.SplitHostPort(c.Gossip.Listen); err == nil && host != "" && net.ParseIP(host) == nil {
		errs = append(errs, fmt.Errorf("gossip.listen: %q names no IP address; write it in numbers, or leave it out: :%s", host, gossipPort))
	}
	for _, address := range c.Join {
		if err := cluster.CheckAddress(address); err != nil {
			errs = append(errs, fmt.Errorf("join: %w; want the gossip addresses of other schedulers, such as scheduler2.example.com:%s", err, gossipPort))
		}
	}
	if c.Advertise != "" {
		if err := cluster.CheckAddress(withPort(c.Advertise, "1")); err != nil {
			errs = append(errs, fmt.Errorf("advertise: %w; want host or host:port", err))
		}
	}
	if c.JoinCluster != "" {
		if err := cluster.CheckAddress(c.JoinCluster); err != nil {
			errs = append(errs, fmt.Errorf("joinCluster: %w; want the address of a scheduler of the cluster, such as scheduler1.example.com:65000", err))
		}
	}
	if c.TokenFile != "" && c.JoinCluster == "" {
		errs = append(errs, errors.New("joinTokenFile is set but joinCluster is not; name the scheduler that made the token"))
	}
	return errors.Join(errs...)
}

func withPort(address, port string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(address, port)
}

// openAuthority opens the cluster's CA: this scheduler's own, or that of the cluster
// that it is to join, for which it waits as long as the other scheduler is not there.
func openAuthority(ctx context.Context, cfg Config, log *zap.Logger) (*identity.CA, error) {
	dir := filepath.Join(cfg.StateDir, "ca")
	if cfg.JoinCluster == "" {
		return identity.OpenCA(dir)
	}
	for wait := adoptFirst; ; wait = min(2*wait, adoptLast) {
		token, tokenErr := readToken(cfg.TokenFile)
		ca, err := identity.AdoptCA(ctx, dir, cfg.JoinCluster, token)
		if errors.Is(err, identity.ErrNoToken) && tokenErr != nil {
			return nil, tokenErr
		}
		if err == nil || !errors.Is(err, identity.ErrUnreachable) && !errors.Is(err, identity.ErrDenied) {
			return ca, err
		}
		log.Warn("has not the cluster's CA yet; trying on", zap.Error(err), zap.Duration("again", wait))
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// readToken reads the join token, which is needed only until the CA is here.
func readToken(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("join token: %w; write the output of 'scheduler token create --role scheduler' there, readable by this user", err)
	}
	return string(raw), nil
}

// newCluster makes this scheduler one of several.
func newCluster(ctx context.Context, cfg Config, ca *identity.CA, id string, listens net.Addr, log *zap.Logger, reg prometheus.Registerer) (*cluster.Cluster, error) {
	key, err := ca.DeriveKey(gossipKey)
	if err != nil {
		return nil, err
	}
	address, gossip, err := addresses(ctx, cfg, listens, routeTo)
	if err != nil {
		return nil, err
	}
	return cluster.New(cluster.Config{
		Self: cluster.Member{ID: id, Address: address}, Cluster: ca.Cluster(), Key: key,
		Listen: cfg.Gossip.Listen, Address: gossip, Join: cfg.Join, Denials: ca,
	}, log, reg)
}

// countSchedulers registers the number of schedulers; all is nil where there is one.
func countSchedulers(reg prometheus.Registerer, all *cluster.Cluster) error {
	return reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "damselfly_schedulers", Help: "Schedulers that this one knows to live, itself among them.",
	}, func() float64 {
		if all == nil {
			return 1
		}
		return float64(len(all.Members()))
	}))
}

// addresses are where nodes and where other schedulers reach this one.
func addresses(ctx context.Context, cfg Config, listens net.Addr, route router) (forNodes string, gossip net.IP, err error) {
	tcp, ok := listens.(*net.TCPAddr)
	if !ok {
		return "", nil, fmt.Errorf("listening at %s, which is no TCP address", listens)
	}
	own := tcp.IP
	if len(own) == 0 || own.IsUnspecified() {
		if own, err = ownAddress(ctx, cfg.Join, route); err != nil && cfg.Advertise == "" {
			return "", nil, err
		}
	}
	port := strconv.Itoa(tcp.Port)
	if cfg.Advertise == "" {
		forNodes = net.JoinHostPort(own.String(), port)
	} else {
		forNodes = withPort(cfg.Advertise, port)
	}
	// Other schedulers stand near: they use this machine's own address, whatever name
	// nodes use.
	if host, _, splitErr := net.SplitHostPort(cfg.Gossip.Listen); splitErr == nil {
		if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
			return forNodes, ip, nil
		}
	}
	if host, _, splitErr := net.SplitHostPort(forNodes); splitErr == nil {
		if ip := net.ParseIP(host); ip != nil {
			return forNodes, ip, nil
		}
	}
	return forNodes, own, err
}

// router finds the address of this machine from which it reaches another one.
type router func(ctx context.Context, to string) (net.IP, error)

// routeTo is a router. It sends no packet: connecting a UDP socket only picks the route.
func routeTo(ctx context.Context, to string) (net.IP, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", to)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // nothing was written
	return conn.LocalAddr().(*net.UDPAddr).IP, nil
}

// ownAddress is this machine's address towards other schedulers, else that of its way
// out. Loopback is nobody's but its own, and taken only where there is nothing else: this
// machine's own name may be among the others, and often stands for it.
func ownAddress(ctx context.Context, others []string, route router) (net.IP, error) {
	var loopback net.IP
	// The last ones are kept free for documentation, and lie behind the way out.
	for _, to := range append(slices.Clone(others), "192.0.2.1:9", "[2001:db8::1]:9") {
		ip, err := route(ctx, to)
		switch {
		case err != nil:
		case !ip.IsLoopback():
			return ip, nil
		case loopback == nil:
			loopback = ip
		}
	}
	if loopback != nil {
		return loopback, nil
	}
	return nil, errors.New("this machine's address cannot be found: it has no route to other schedulers and none out; name the address that nodes use with --advertise, and an IP address in --gossip-listen")
}

// tellSchedulers tells the server who the schedulers are, each time that changes,
// until ctx ends. One alone tells nobody.
func tellSchedulers(ctx context.Context, c *cluster.Cluster, sets chan<- []server.Scheduler) error {
	var told []server.Scheduler
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.Changed():
		}
		var set []server.Scheduler
		if members := c.Members(); len(members) > 1 {
			for _, m := range members {
				set = append(set, server.Scheduler{ID: m.ID, Address: m.Address})
			}
		}
		if slices.Equal(set, told) {
			continue
		}
		select {
		case sets <- set:
			told = set
		case <-ctx.Done():
			return nil
		}
	}
}

const (
	// shutOutEvery bounds how long a node that was denied still attends.
	shutOutEvery = time.Second
	// settled is how old a change of the list must be for another one not to have the
	// same time.
	settled = 2 * time.Second
)

// shutOut ends the streams of nodes that are denied while they attend, until ctx ends, and
// gives on what is kept of denied nodes whenever that changes. Who comes back is refused,
// see callers.
func shutOut(ctx context.Context, ca *identity.CA, id *identity.Identity, tell chan<- []identity.Statement, log *zap.Logger) error {
	tick := time.NewTicker(shutOutEvery)
	defer tick.Stop()
	var seen time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		changed, err := ca.StatementsChanged()
		if err == nil && changed.Equal(seen) {
			continue
		}
		var kept []identity.Statement
		if err == nil {
			kept, err = ca.Statements()
		}
		if err != nil {
			log.Error("the list of denied nodes cannot be read; those who attend already stay", zap.Error(err))
			continue
		}
		if time.Since(changed) > settled {
			seen = changed
		}
		n := id.Disconnect(func(peer string) bool {
			at, found := slices.BinarySearchFunc(kept, peer, func(s identity.Statement, id string) int { return strings.Compare(s.ID, id) })
			return found && kept[at].Denied
		})
		select {
		case tell <- kept:
		case <-ctx.Done():
			return nil
		}
		if n > 0 {
			log.Warn("ended the connections of denied nodes", zap.Int("connections", n))
		}
	}
}
