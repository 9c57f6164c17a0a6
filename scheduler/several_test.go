package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
)

func TestCompleteSettings(t *testing.T) {
	for name, c := range map[string]struct {
		set     func(*Config)
		gossip  string
		join    string
		isOneOf bool
	}{
		"alone":       {set: func(*Config) {}},
		"first":       {set: func(c *Config) { c.Gossip.Listen = ":7" }, gossip: ":7", isOneOf: true},
		"join":        {set: func(c *Config) { c.Join = []string{"a:1", "b:2"} }, gossip: ":65008", join: "a:1 b:2", isOneOf: true},
		"joinCluster": {set: func(c *Config) { c.JoinCluster = "a:1" }, gossip: ":65008", join: "a:65008", isOneOf: true},
		"both":        {set: func(c *Config) { c.JoinCluster, c.Join = "a:1", []string{"b:2"} }, gossip: ":65008", join: "b:2", isOneOf: true},
	} {
		cfg := DefaultConfig()
		c.set(&cfg)
		if err := cfg.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		got := cfg.complete()
		if got.Gossip.Listen != c.gossip || strings.Join(got.Join, " ") != c.join || cfg.gossips() != c.isOneOf {
			t.Errorf("%s: gossip at %q, joins %v, one of several: %v", name, got.Gossip.Listen, got.Join, cfg.gossips())
		}
	}
}

func TestAddresses(t *testing.T) {
	any, one := &net.TCPAddr{Port: 65000}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 65000}
	for name, c := range map[string]struct {
		listens         net.Addr
		advertise, join string
		gossipListen    string
		nodes, gossip   string
	}{
		"own address":          {one, "", "", ":65008", "10.0.0.1:65000", "10.0.0.1"},
		"towards the others":   {any, "", "127.0.0.1:65008", ":65008", "127.0.0.1:65000", "127.0.0.1"},
		"a name":               {any, "sched1", "127.0.0.1:65008", ":65008", "sched1:65000", "127.0.0.1"},
		"a name and port":      {one, "sched1:443", "", ":65008", "sched1:443", "10.0.0.1"},
		"an address":           {one, "10.0.0.9", "", ":65008", "10.0.0.9:65000", "10.0.0.9"},
		"gossip on its own":    {one, "", "", "192.168.0.1:65008", "10.0.0.1:65000", "192.168.0.1"},
		"gossip on any, named": {one, "2001:db8::7", "", "0.0.0.0:65008", "[2001:db8::7]:65000", "2001:db8::7"},
	} {
		cfg := Config{Advertise: c.advertise, Gossip: GossipConfig{Listen: c.gossipListen}}
		if c.join != "" {
			cfg.Join = []string{c.join}
		}
		nodes, gossip, err := addresses(t.Context(), cfg, c.listens, routes{"127.0.0.1:65008": "127.0.0.1"}.to)
		if err != nil || nodes != c.nodes || gossip.String() != c.gossip {
			t.Errorf("%s: %s and %s, %v; want %s and %s", name, nodes, gossip, err, c.nodes, c.gossip)
		}
	}
}

// A token's file that is not there is said to be missing where it is needed, also when
// the CA's directory has something else in it, and is not asked for where it is not.
func TestTokenFileIsMissing(t *testing.T) {
	cfg := DefaultConfig()
	cfg.StateDir, cfg.JoinCluster, cfg.TokenFile = t.TempDir(), "127.0.0.1:1", filepath.Join(t.TempDir(), "token")
	ca := filepath.Join(cfg.StateDir, "ca")
	if err := os.MkdirAll(filepath.Join(ca, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := openAuthority(t.Context(), cfg, zap.NewNop()); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), cfg.TokenFile) {
		t.Errorf("without a CA: %v", err)
	}
	if _, err := identity.OpenCA(ca); err != nil {
		t.Fatal(err)
	}
	if _, err := openAuthority(t.Context(), cfg, zap.NewNop()); err != nil {
		t.Errorf("with a CA: %v", err)
	}
}

// routes are the addresses from which others are reached.
type routes map[string]string

func (r routes) to(_ context.Context, to string) (net.IP, error) {
	if ip := net.ParseIP(r[to]); ip != nil {
		return ip, nil
	}
	return nil, errors.New("no route")
}

// The same names are given to all, and this machine's own may be its loopback, as
// Debian's installer writes it.
func TestOwnNameMayBeLoopback(t *testing.T) {
	all := routes{"me:1": "127.0.1.1", "other:1": "10.0.0.1", "192.0.2.1:9": "10.1.0.1", "[2001:db8::1]:9": "2001:db8::2"}
	without := func(gone ...string) routes {
		r := maps.Clone(all)
		for _, g := range gone {
			delete(r, g)
		}
		return r
	}
	for name, c := range map[string]struct {
		routes routes
		want   string
	}{
		"before another":                 {all, "10.0.0.1"},
		"where no other is known yet":    {without("other:1"), "10.1.0.1"},
		"where the way out is by IPv6":   {without("other:1", "192.0.2.1:9"), "2001:db8::2"},
		"where there is nothing outside": {without("other:1", "192.0.2.1:9", "[2001:db8::1]:9"), "127.0.1.1"},
	} {
		for _, join := range [][]string{{"me:1", "other:1"}, {"other:1", "me:1"}} {
			if got, err := ownAddress(t.Context(), join, c.routes.to); err != nil || got.String() != c.want {
				t.Errorf("%s: told of %v it is at %s, %v; want %s", name, join, got, err, c.want)
			}
		}
	}
	if got, err := ownAddress(t.Context(), nil, routes{}.to); err == nil {
		t.Errorf("without any route it is at %s", got)
	}
	if got, err := routeTo(t.Context(), "127.0.0.1:9"); err != nil || !got.IsLoopback() {
		t.Errorf("loopback is reached from %s, %v", got, err)
	}
}

// seen keeps what is logged.
type seen struct {
	mu  sync.Mutex
	all strings.Builder
}

func (s *seen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.Write(p)
}

func (s *seen) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.all.String(), text)
}

// A second scheduler gets the CA from the first with a token, though it is started
// before it, and both know of two. Denied at one is denied at the other.
func TestSecondSchedulerJoins(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, second := DefaultConfig(), DefaultConfig()
	first.StateDir, second.StateDir = t.TempDir(), t.TempDir()
	first.Listen, first.Gossip.Listen = freeAddress(t), freeAddress(t)
	second.Listen, second.Gossip.Listen = "127.0.0.1:0", freeAddress(t)
	second.JoinCluster, second.Join = first.Listen, []string{first.Gossip.Listen}
	first.Ops.Listen, second.Ops.Listen = "", ""
	token, err := command(t, "token", "create", "--role", "scheduler", "--state-dir", first.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	second.TokenFile = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(second.TokenFile, []byte(token[strings.Index(token, "dmf1."):]), 0o600); err != nil {
		t.Fatal(err)
	}
	logs := &seen{}
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(logs), zap.InfoLevel))
	ended := make(chan error, 2)
	go func() { ended <- serve(ctx, second, log.Named("second")) }()
	wait(t, "the second waits for the first", func() bool { return logs.has("has not the cluster's CA yet") })
	go func() { ended <- serve(ctx, first, log.Named("first")) }()
	wait(t, "the first sees the second", func() bool { return logs.has(`first.cluster","msg":"a scheduler has joined"`) })
	wait(t, "the second sees the first", func() bool { return logs.has(`second.cluster","msg":"a scheduler has joined"`) })
	if err := os.Remove(second.TokenFile); err != nil {
		t.Fatal(err)
	}
	one, err := identity.OpenCA(filepath.Join(first.StateDir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := openAuthority(ctx, second, log) // the token's file is needed no more
	if err != nil || one.Cluster() != other.Cluster() {
		t.Fatalf("the second is of another cluster, %v", err)
	}
	const node = "12D3KooWNTbRwK74TD8WkkhrLpamPyNojepFiCHTMPJnkMGGSKCZ"
	if _, err := command(t, "node", "deny", node, "--state-dir", first.StateDir); err != nil {
		t.Fatal(err)
	}
	wait(t, "the second denies the node", func() bool {
		ids, err := other.DeniedIDs()
		return err == nil && slices.Equal(ids, []string{node})
	})
	cancel()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	key, err := os.ReadFile(filepath.Join(first.StateDir, "ca", "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(key)) {
		if line = strings.TrimSpace(line); len(line) > 30 && logs.has(line) {
			t.Error("the log shows the CA's key")
		}
	}
}

func wait(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fmt.Sprint(l.Addr())
}
