package node_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/node"
)

// A daemon that runs takes new limits from its file when it is told to, and shows them.
func TestLimitsFollowTheFile(t *testing.T) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // one that comes before the daemon listens ends no test
	defer signal.Stop(hangup)
	cfg := testConfig(t, newRegistry(t))
	cfg.Ops.Listen = freeAddress(t)
	file := filepath.Join(cfg.DataDir, "node.yaml")
	write := func(limits string) {
		t.Helper()
		text := fmt.Sprintf("dataDir: %s\nmirror: {listen: %q}\nops: {listen: %q}\nlimits: %s\n", cfg.DataDir, cfg.Mirror.Listen, cfg.Ops.Listen, limits)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("{upload: 800mbit, origin: 50MB}")
	var log strings.Builder
	c := node.Command(&cobra.Command{Use: "daemon"}, identity.RoleNode, node.DefaultConfig, "")
	c.SetArgs([]string{"--config", file, "--limits-download", "1gbit"})
	c.SetErr(&log)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.ExecuteContext(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
		if out := log.String(); !strings.Contains(out, "limits.origin") || !strings.Contains(out, "next start") || !strings.Contains(out, "mirror.listen") {
			t.Errorf("the log does not tell what changed:\n%s", out)
		}
	}()
	waitFor(t, "http://"+cfg.Ops.Listen+"/readyz", http.StatusOK)
	if got := limitsOf(t, cfg); got != "download=1.25e+08 origin=5e+07 upload=1e+08" {
		t.Errorf("the limits are %s", got)
	}
	old := cfg.Mirror.Listen
	cfg.Mirror.Listen = freeAddress(t)
	write("{upload: 800mbit, download: 1MB, origin: 10MB}")
	cfg.Mirror.Listen = old
	for deadline := time.Now().Add(20 * time.Second); ; {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		<-hangup
		got := limitsOf(t, cfg)
		if got == "download=1.25e+08 origin=1e+07 upload=1e+08" { // the flag wins
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("the limits stay %s", got)
			break
		}
	}
}

// A pull takes as long as the limit of what is read from origins says, and a second one,
// from the store, does not.
func TestOriginLimitHolds(t *testing.T) {
	r := newRegistry(t)
	cfg := testConfig(t, r)
	cfg.Limits.Origin = 2 << 20
	run(t, cfg)
	const burst = 64 << 10
	least := time.Duration(len(r.data)-burst) * time.Second / time.Duration(cfg.Limits.Origin)
	for i, most := range []time.Duration{time.Minute, least} {
		started := time.Now()
		code, body := get(t, cfg, "/v2/app/blobs/"+r.digest.String()+"?ns=registry.test")
		d := time.Since(started)
		if code != http.StatusOK || !bytes.Equal(body, r.data) {
			t.Fatalf("status %d and %d bytes", code, len(body))
		}
		if d > most || i == 0 && d < least {
			t.Errorf("pull %d took %v, where the limit takes %v", i, d, least)
		}
	}
}

// limitsOf reads the limits off a node's metrics.
func limitsOf(t *testing.T, cfg node.Config) string {
	t.Helper()
	res, err := http.Get("http://" + cfg.Ops.Listen + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, `damselfly_limit_bytes_per_second{`); ok {
			_, rest, _ = strings.Cut(rest, `traffic="`)
			name, value, _ := strings.Cut(rest, `"`)
			out = append(out, name+"="+strings.TrimSpace(value[strings.LastIndex(value, " ")+1:]))
		}
	}
	return strings.Join(out, " ")
}
