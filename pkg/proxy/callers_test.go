package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
)

// TestFacesKnowTheirNames: a face answers to the names of its node, and to no page.
func TestFacesKnowTheirNames(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.Names = []string{"mirror.kube-system.svc", "203.0.113.9", "2001:db8::9"} })
	w.origin.push("app/img", "v1", noise(10))
	hostname, err := os.Hostname()
	must(t, err)
	addr := w.main.Listener.Addr().String()
	hub := w.serve(w.proxy.Registry("docker.io")).Listener.Addr().String()
	for _, c := range []struct {
		host, header string
		ok           bool
	}{
		{"localhost:65001", "", true},
		{"LOCALHOST.", "", true},
		{"a.localhost", "", true},
		{"127.0.0.1", "", true},
		{"127.9.9.9:65001", "", true},
		{"[::1]:65001", "", true},
		{addr, "", true},
		{hostname + ":65001", "", true},
		{"mirror.kube-system.svc:65001", "", true},
		{"Mirror.Kube-System.SVC.", "", true},
		{"203.0.113.9:30001", "", true},
		{"[2001:db8::9]", "", true},
		{"", "", true}, // no browser
		{"127.0.0.1", "Sec-Fetch-Site: none", true},

		{"rebound.example.net:65001", "", false},
		{"localhost.example.net", "", false},
		{"127.0.0.1.nip.io", "", false},
		{"notlocalhost", "", false},
		{"127.1", "", false},
		{"0.0.0.0:65001", "", false},
		{"203.0.113.8", "", false},
		{"169.254.169.254", "", false},
		{"mirror.kube-system.svc.evil.net", "", false},
		{"registry-1.docker.io", "", false},
		{"127.0.0.1", "Origin: https://evil.example", false},
		{"127.0.0.1", "Origin: null", false},
		{"127.0.0.1", "Sec-Fetch-Site: cross-site", false},
		{"127.0.0.1", "Sec-Fetch-Site: same-site", false},
	} {
		for _, face := range []string{addr, hub} {
			for _, path := range []string{"/v2/app/img/manifests/v1", "/v2/", "/damselfly/v1/blob"} {
				if face == hub && path == "/damselfly/v1/blob" || c.ok && path == "/damselfly/v1/blob" {
					continue
				}
				status := statusOf(t, face, "GET", path, c.host, c.header)
				if (status == 403) == c.ok {
					t.Errorf("%s %q %q: %d", path, c.host, c.header, status)
				}
			}
		}
	}
}

// TestProxyJudgesItsTarget: pages are refused by the proxy face too, whose target counts
// and not its own name.
func TestProxyJudgesItsTarget(t *testing.T) {
	srv := newForwarded(t)
	for header, ok := range map[string]bool{
		"X: y": true, "Origin: http://other.example": false, "Origin: null": false, "Origin: http://plain.example": true, "Sec-Fetch-Site: cross-site": false,
	} {
		status := statusOf(t, srv, "GET", "http://plain.example/x", "plain.example", header)
		if (status == 403) == ok {
			t.Errorf("%s: %d", header, status)
		}
	}
}

// TestPrivateRegistryIsRefusedOnce: a registry at a private address that nobody listed is
// refused with a status that clients go on from, and the log says once what to do.
func TestPrivateRegistryIsRefusedOnce(t *testing.T) {
	client, err := origin.New(origin.Config{Proxy: "none"}, zap.NewNop(), nil)
	must(t, err)
	defer client.Close()
	core, logs := observer.New(zapcore.WarnLevel)
	w := newWorld(t, nil)
	p, err := proxy.New(proxy.Config{CADir: t.TempDir(), Dial: client.Dial, Transport: client.Transport()}, w.tasks, client, zap.New(core), nil)
	must(t, err)
	defer p.Close()
	mirror, forward := w.serve(p.Registry("")).Listener.Addr().String(), w.serve(p.ForwardProxy()).Listener.Addr().String()
	for range 3 {
		for _, path := range []string{"manifests/v1", "blobs/sha256:" + strings.Repeat("a", 64), "tags/list"} {
			if s := statusOf(t, mirror, "GET", "/v2/app/img/"+path+"?ns=10.0.0.1:5000", "localhost", ""); s != 403 {
				t.Errorf("%s: %d", path, s)
			}
		}
	}
	if n := logs.FilterMessageSnippet("origin.hosts").Len(); n != 1 {
		t.Errorf("told %d times: %v", n, logs.All())
	}
	for _, target := range []string{"10.0.0.1:443", "192.168.1.1:22", "[fd00::1]:443", "[::ffff:10.0.0.1]:443", "100.64.0.1:80", "127.0.0.1:22", "169.254.169.254:80"} {
		if s := statusOf(t, forward, "CONNECT", target, target, ""); s != 403 {
			t.Errorf("CONNECT %s: %d", target, s)
		}
		if s := statusOf(t, forward, "GET", "http://"+target+"/", target, ""); s != 403 {
			t.Errorf("GET http://%s: %d", target, s)
		}
	}
}

// newForwarded is a proxy face that reaches nothing.
func newForwarded(t *testing.T) string {
	w := newWorld(t, func(c *proxy.Config) {
		c.CADir = t.TempDir()
		c.Dial = (&net.Dialer{}).DialContext
		c.Transport = unreachable{}
	})
	return w.serve(w.proxy.ForwardProxy()).Listener.Addr().String()
}

type unreachable struct{}

func (unreachable) RoundTrip(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }

// TestOneClientHasNotAllConnections: above the bound a client is told to wait, and it is
// served when it has let go of some.
func TestOneClientHasNotAllConnections(t *testing.T) {
	w := newWorld(t, nil)
	addr := w.main.Listener.Addr().String()
	var held []net.Conn
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	served := 0
	for i := range proxy.MaxClientConns + 1 {
		conn, err := net.Dial("tcp", addr)
		must(t, err)
		held = append(held, conn)
		status, retry := pingOn(t, conn)
		if status == 200 {
			served++
		}
		if want := i < proxy.MaxClientConns; want != (status == 200) || want != (retry == "") {
			t.Fatalf("connection %d: %d, Retry-After %q", i, status, retry)
		}
	}
	if served != proxy.MaxClientConns {
		t.Errorf("%d served", served)
	}
	for _, c := range held {
		_ = c.Close()
	}
	held = nil
	// The server notices the ends by and by; each try that is refused is one more end.
	for {
		conn, err := net.Dial("tcp", addr)
		must(t, err)
		status, _ := pingOn(t, conn)
		_ = conn.Close()
		if status == 200 {
			return
		}
	}
}

func pingOn(t *testing.T, conn net.Conn) (int, string) {
	t.Helper()
	status, head := exchange(t, conn, "GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
	retry := ""
	if _, after, ok := strings.Cut(head, "Retry-After: "); ok {
		retry, _, _ = strings.Cut(after, "\r\n")
	}
	return status, retry
}

// exchange sends a request and reads the start of the answer.
func exchange(t *testing.T, conn net.Conn, request string) (status int, head string) {
	t.Helper()
	_, err := io.WriteString(conn, request)
	must(t, err)
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil {
		return 0, ""
	}
	_, err = fmt.Sscanf(string(buf[:n]), "HTTP/1.%1d %d", new(int), &status)
	must(t, err)
	return status, string(buf[:n])
}

func statusOf(t *testing.T, addr, method, path, host, header string) int {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	must(t, err)
	defer conn.Close()
	version, hostLine := "1.1", "Host: "+host+"\r\n"
	if host == "" {
		version, hostLine = "1.0", ""
	}
	if header != "" {
		header += "\r\n"
	}
	status, _ := exchange(t, conn, method+" "+path+" HTTP/"+version+"\r\n"+hostLine+header+"\r\n")
	return status
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
