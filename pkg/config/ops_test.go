package config_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"go.uber.org/zap"
)

// serve runs ops until the test ends and returns its URL.
func serve(t *testing.T, ops *config.Ops) string {
	t.Helper()
	addr, err := ops.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ops.Run(ctx) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if c, err := net.Dial("tcp", addr.String()); err == nil {
			_ = c.Close()
			t.Error("the address is still open")
		}
	})
	return "http://" + addr.String()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func newOps(pprof bool) *config.Ops {
	return config.NewOps(config.OpsConfig{Listen: "127.0.0.1:0", Pprof: pprof}, config.NewRegistry("seed"), zap.NewNop())
}

func TestOpsPages(t *testing.T) {
	url := serve(t, newOps(false))
	status, body := get(t, url+"/metrics")
	if status != 200 || !strings.Contains(body, `damselfly_build_info{component="seed",goversion="go`) ||
		!strings.Contains(body, "go_goroutines") || !strings.Contains(body, "process_open_fds") {
		t.Errorf("/metrics: %d %s", status, body)
	}
	if status, body := get(t, url+"/healthz"); status != 200 || body != "ok\n" {
		t.Errorf("/healthz: %d %q", status, body)
	}
	for _, path := range []string{"/", "/debug/pprof/", "/nothing"} {
		if status, _ := get(t, url+path); status != 404 {
			t.Errorf("%s: %d", path, status)
		}
	}
	resp, err := http.Post(url+"/metrics", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", resp.StatusCode)
	}
}

func TestOpsProfilesWhenAsked(t *testing.T) {
	url := serve(t, newOps(true))
	if status, body := get(t, url+"/debug/pprof/goroutine?debug=1"); status != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("%d %s", status, body)
	}
}

func TestReadiness(t *testing.T) {
	ops := newOps(false)
	url := serve(t, ops)
	if status, body := get(t, url+"/readyz"); status != 200 || body != "ok\n" {
		t.Errorf("no checks: %d %q", status, body)
	}
	var failure error
	ops.Ready("store", func(context.Context) error { return nil })
	ops.Ready("scheduler", func(context.Context) error { return failure })
	failure = errors.New("not connected")
	for _, test := range []struct {
		query, want string
		status      int
	}{
		{"", "scheduler is not ready\n", 503},
		{"?verbose", "[+] store\n[-] scheduler: not connected\n", 503},
	} {
		if status, body := get(t, url+"/readyz"+test.query); status != test.status || body != test.want {
			t.Errorf("%q: %d %q", test.query, status, body)
		}
	}
	ops.Ready("scheduler", func(context.Context) error { return nil })
	if status, body := get(t, url+"/readyz?verbose"); status != 200 || body != "[+] store\n[+] scheduler\nok\n" {
		t.Errorf("%d %q", status, body)
	}
}

func TestOpsTurnedOff(t *testing.T) {
	ops := config.NewOps(config.OpsConfig{}, config.NewRegistry("node"), zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ops.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestOpsConfigValidate(t *testing.T) {
	for listen, want := range map[string]string{"": "", ":9090": "", "9090": `listen "9090": want host:port or :port`} {
		err := config.OpsConfig{Listen: listen}.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", listen, err)
		}
	}
}

func TestPortInUse(t *testing.T) {
	taken, err := config.Listen(t.Context(), "127.0.0.1:0", "--x")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	err = config.NewOps(config.OpsConfig{Listen: addr}, config.NewRegistry("node"), zap.NewNop()).Run(t.Context())
	if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"operations server", addr, "another process uses this address", "--ops-listen"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
}

func TestListenErrors(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1":         `cannot listen on "127.0.0.1": want host:port or :port in --addr`,
		"192.0.2.1:0":       "no network interface of this machine has this address",
		"127.0.0.1:notport": "choose another address with --addr",
	} {
		_, err := config.Listen(t.Context(), addr, "--addr")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", addr, err)
		}
	}
}

// What is degraded is told, and counts only where it is asked for.
func TestDegradedIsReady(t *testing.T) {
	ops := newOps(false)
	ops.Ready("node", func(context.Context) error { return nil })
	err := errors.New("nobody answers")
	ops.Degraded("scheduler", func(context.Context) error { return err })
	url := serve(t, ops)
	for path, want := range map[string]struct {
		status int
		body   string
	}{
		"/readyz":                {200, "ok\ndegraded: scheduler\n"},
		"/readyz?verbose":        {200, "[+] node\n[~] scheduler: nobody answers\nok\n"},
		"/readyz?strict":         {503, "scheduler is not ready\n"},
		"/readyz?strict&verbose": {503, "[+] node\n[-] scheduler: nobody answers\n"},
	} {
		if status, body := get(t, url+path); status != want.status || body != want.body {
			t.Errorf("%s: %d %q, want %d %q", path, status, body, want.status, want.body)
		}
	}
	err = nil
	for _, path := range []string{"/readyz", "/readyz?strict"} {
		if status, body := get(t, url+path); status != 200 || body != "ok\n" {
			t.Errorf("%s when it is well: %d %q", path, status, body)
		}
	}
}
