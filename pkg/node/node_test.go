package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/node"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// registry serves one blob of a public repository and counts its GETs.
type registry struct {
	*httptest.Server
	data   []byte
	digest blob.Digest
	gets   atomic.Int64
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{data: make([]byte, 3<<20)}
	_, _ = rand.NewChaCha8([32]byte{3}).Read(r.data)
	r.digest = blob.FromBytes(r.data)
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path != "/v2/app/blobs/"+r.digest.String() {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if q.Method == http.MethodGet {
			r.gets.Add(1)
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(r.data)))
		_, _ = w.Write(r.data)
	}))
	t.Cleanup(r.Close)
	return r
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func testConfig(t *testing.T, r *registry) node.Config {
	t.Helper()
	c := node.DefaultConfig()
	c.DataDir = t.TempDir()
	c.Mirror.Listen = freeAddress(t)
	c.Ops.Listen = ""
	c.Origin.Hosts = []origin.Host{{Name: "registry.test", Endpoint: r.URL}}
	return c
}

// run runs a node until the test ends and checks that it drains without error.
func run(t *testing.T, cfg node.Config) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- node.Run(ctx, cfg, identity.RoleNode, zap.NewNop()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run ended with %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	for {
		res, err := http.Get("http://" + cfg.Mirror.Listen + "/v2/")
		if err == nil {
			_ = res.Body.Close()
			return
		}
		select {
		case err := <-done:
			done <- err
			t.Fatal(err)
		default:
		}
	}
}

func get(t *testing.T, cfg node.Config, path string) (int, []byte) {
	t.Helper()
	res, err := http.Get("http://" + cfg.Mirror.Listen + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, body
}

// A node without a cluster is a cache; so is one whose scheduler is not there.
func TestNodeServesWithoutACluster(t *testing.T) {
	for name, scheduler := range map[string]node.Addresses{"alone": nil, "scheduler gone": {"127.0.0.1:1"}} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			cfg := testConfig(t, r)
			cfg.Scheduler, cfg.JoinToken = scheduler, "dmf1.nonsense"
			cfg.Peer.Listen, cfg.Ops.Listen = "127.0.0.1:0", freeAddress(t)
			run(t, cfg)
			waitFor(t, "http://"+cfg.Ops.Listen+"/readyz", http.StatusOK)
			for range 3 {
				code, body := get(t, cfg, "/v2/app/blobs/"+r.digest.String()+"?ns=registry.test")
				if code != http.StatusOK || !bytes.Equal(body, r.data) {
					t.Fatalf("status %d and %d bytes", code, len(body))
				}
			}
			if n := r.gets.Load(); n != 1 {
				t.Errorf("three pulls cost %d reads of the origin", n)
			}
			if code, body := get(t, cfg, "/v2/app/blobs/sha256:zz?ns=registry.test"); code != http.StatusBadRequest || !strings.Contains(string(body), "DIGEST_INVALID") {
				t.Errorf("a malformed digest got %d %s", code, body)
			}
		})
	}
}

// A node that drains says so, so that nobody sends it more.
func TestDrainingNodeIsNotReady(t *testing.T) {
	begun, finish := make(chan struct{}, 1), make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		begun <- struct{}{}
		<-finish
		w.WriteHeader(http.StatusNotFound)
	}))
	defer slow.Close()
	cfg := testConfig(t, newRegistry(t))
	cfg.Origin.Hosts[0].Endpoint = slow.URL
	cfg.Ops.Listen = freeAddress(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- node.Run(ctx, cfg, identity.RoleNode, zap.NewNop()) }()
	asked := make(chan struct{})
	waitFor(t, "http://"+cfg.Ops.Listen+"/readyz", http.StatusOK)
	go func() {
		defer close(asked)
		if res, err := http.Get("http://" + cfg.Mirror.Listen + "/v2/app/manifests/v1?ns=registry.test"); err == nil {
			_ = res.Body.Close()
		}
	}()
	<-begun
	cancel()
	waitFor(t, "http://"+cfg.Ops.Listen+"/readyz", http.StatusServiceUnavailable)
	close(finish)
	<-asked
	if err := <-done; err != nil {
		t.Errorf("Run ended with %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
}

// A node whose scheduler is not there is ready, and says that it has none.
func TestReadyTellsOfNoScheduler(t *testing.T) {
	cfg := testConfig(t, newRegistry(t))
	cfg.Scheduler, cfg.JoinToken = node.Addresses{"127.0.0.1:1"}, "dmf1.nonsense"
	cfg.Peer.Listen, cfg.Ops.Listen = "127.0.0.1:0", freeAddress(t)
	run(t, cfg)
	waitFor(t, "http://"+cfg.Ops.Listen+"/readyz?strict", http.StatusServiceUnavailable)
	res, err := http.Get("http://" + cfg.Ops.Listen + "/readyz?verbose")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(body), "no scheduler of 127.0.0.1:1 answers") {
		t.Errorf("%d %s, %v", res.StatusCode, body, err)
	}
}

// waitFor asks for url until it answers with status.
func waitFor(t *testing.T, url string, status int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if res, err := http.Get(url); err == nil {
			_ = res.Body.Close()
			if res.StatusCode == status {
				return
			}
		}
	}
	t.Errorf("%s never answered %d", url, status)
}

func TestSecondNodeOnTheSameStoreIsRefused(t *testing.T) {
	cfg := testConfig(t, newRegistry(t))
	run(t, cfg)
	second := cfg
	second.Mirror.Listen = freeAddress(t)
	if err := node.Run(t.Context(), second, identity.RoleNode, zap.NewNop()); !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), cfg.DataDir) {
		t.Errorf("the second node got %v", err)
	}
}

func TestSeedWithoutASchedulerIsRefused(t *testing.T) {
	cfg := node.DefaultSeedConfig()
	cfg.DataDir, cfg.Ops.Listen = t.TempDir(), ""
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := node.Run(ctx, cfg, identity.RoleSeed, zap.NewNop()); err == nil || !strings.Contains(err.Error(), "--scheduler") {
		t.Errorf("got %v", err)
	}
}

func TestUselessDirectoryNamesTheSetting(t *testing.T) {
	cfg := testConfig(t, newRegistry(t))
	file := filepath.Join(cfg.DataDir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.DataDir = file
	if err := node.Run(t.Context(), cfg, identity.RoleNode, zap.NewNop()); err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("got %v", err)
	}
}

func TestAddressInUseNamesAddressAndSetting(t *testing.T) {
	cfg := testConfig(t, newRegistry(t))
	taken, err := net.Listen("tcp", cfg.Mirror.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	err = node.Run(t.Context(), cfg, identity.RoleNode, zap.NewNop())
	if err == nil || !strings.Contains(err.Error(), cfg.Mirror.Listen) || !strings.Contains(err.Error(), "--mirror-listen") {
		t.Errorf("got %v", err)
	}
	// Nothing is left behind: the store can be opened again.
	st, err := store.Open(store.Config{Dir: cfg.DataDir + "/store"}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Error(err)
	}
}

func TestConfigValidation(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*node.Config)
		want  string
	}{
		"no directory": {func(c *node.Config) { c.DataDir = "" }, "dataDir"},
		"scheduler":    {func(c *node.Config) { c.Scheduler = node.Addresses{"a:1", "nowhere"} }, `"nowhere"`},
		"two tokens":   {func(c *node.Config) { c.JoinToken, c.TokenFile = "a", "b" }, "joinTokenFile"},
		"limit":        {func(c *node.Config) { c.Limits.Upload = 100 }, "limits.upload"},
		"slots":        {func(c *node.Config) { c.Peer.DownloadSlots = 0 }, "downloadSlots"},
		"intercept":    {func(c *node.Config) { c.Proxy.Intercept = []string{"ghcr.io"} }, "proxy.listen"},
		"port alone":   {func(c *node.Config) { c.Mirror.Listen = "65001" }, "mirror.listen"},
		"no port":      {func(c *node.Config) { c.Proxy.Listen = "localhost" }, "proxy.listen"},
		"port too far": {func(c *node.Config) { c.Peer.Listen = ":650100" }, "peer.listen"},
		"share":        {func(c *node.Config) { c.Store.Share = "containerd" }, "store.share"},
		"grace":        {func(c *node.Config) { c.Grace = -1 }, "grace"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := node.DefaultConfig()
			c.spoil(&cfg)
			if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error that names %s", err, c.want)
			}
		})
	}
	for name, c := range map[string]node.Config{"node": node.DefaultConfig(), "seed": node.DefaultSeedConfig()} {
		if err := c.Validate(); err != nil {
			t.Errorf("the default of a %s: %v", name, err)
		}
		missing, err := config.Undocumented(&c)
		if err != nil || len(missing) > 0 {
			t.Errorf("settings without documentation: %v %v", missing, err)
		}
	}
}

// A node that was told to find a registry at its own mirror says so instead of
// asking itself for ever.
func TestLoopIsRefused(t *testing.T) {
	cfg := testConfig(t, newRegistry(t))
	cfg.Origin.Hosts = []origin.Host{{Name: "registry.test", Endpoint: "http://" + cfg.Mirror.Listen}}
	cfg.Proxy.DefaultRegistry = "registry.test"
	run(t, cfg)
	if code, body := get(t, cfg, "/v2/app/manifests/v1?ns=registry.test"); code < 500 {
		t.Errorf("got %d %s", code, body)
	}
}
