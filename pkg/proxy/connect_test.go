package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
)

// proxyWorld has a forward proxy that serves registry.example.com itself.
func proxyWorld(t *testing.T, dial func(context.Context, string, string) (net.Conn, error)) (*world, *httptest.Server) {
	t.Helper()
	w := newWorld(t, func(c *proxy.Config) {
		c.Intercept = []string{"registry.example.com", "plain.example.com"}
		c.CADir = filepath.Join(t.TempDir(), "ca")
		c.Dial = dial
	})
	return w, w.serve(w.proxy.ForwardProxy())
}

// through is a client that uses the proxy and trusts its CA.
func through(t *testing.T, w *world, server *httptest.Server) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(w.proxy.CAFile())
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no CA", err)
	}
	tr := &http.Transport{Proxy: http.ProxyURL(mustURL(t, server.URL)), TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func fetch(t *testing.T, c *http.Client, url string, headers ...string) got {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Set(k, v)
	}
	resp, err := c.Do(req)
	if err != nil {
		return got{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return got{resp.StatusCode, resp.Header, string(body), err}
}

func TestDockerPullsThroughTheProxy(t *testing.T) {
	w, server := proxyWorld(t, local)
	im := w.origin.push("app/img", "v1", noise(300_000))
	w.origin.readers["app/img"] = []string{"Bearer bob"}
	c := through(t, w, server)
	const base = "https://registry.example.com/v2/app/img/"
	if g := fetch(t, c, base+"manifests/v1"); g.status != 401 || g.header.Get("Www-Authenticate") != challenge {
		t.Fatalf("without a token: %d %v %v", g.status, g.header, g.err)
	}
	for path, want := range map[string][]byte{
		"manifests/v1": im.index, "manifests/" + im.manifestDigest(): im.manifest,
		"blobs/" + im.configDigest(): im.config, "blobs/" + im.layerDigest(): im.layer,
	} {
		if g := fetch(t, c, base+path, bob); g.status != 200 || g.body != string(want) {
			t.Errorf("%s: %d %v", path, g.status, g.err)
		}
	}
	if g := fetch(t, c, base+"blobs/"+im.layerDigest(), bob, "Range: bytes=100-199"); g.status != 206 || g.body != string(im.layer[100:200]) {
		t.Errorf("range: %d", g.status)
	}
	// The ping is the registry's own; ns means nothing here.
	fetch(t, c, "https://registry.example.com/v2/")
	if w.origin.count("GET registry.example.com /v2/") == 0 {
		t.Errorf("ping: %q", w.origin.seen())
	}
	fetch(t, c, base+"manifests/v1?ns=evil.example.com", bob)
	for _, a := range w.origin.seen() {
		if strings.Contains(a, " evil.example.com ") {
			t.Errorf("ns chose the registry: %s", a)
		}
	}
}

func TestConnectionInsideTheProxyIsKept(t *testing.T) {
	w, server := proxyWorld(t, local)
	w.origin.push("app/img", "v1", noise(10))
	c := through(t, w, server)
	reused := 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if i.Reused {
			reused++
		}
	}})
	for range 3 {
		req, err := http.NewRequestWithContext(ctx, "GET", "https://registry.example.com/v2/app/img/manifests/v1", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.ProtoMajor != 1 {
			t.Errorf("HTTP/%d", resp.ProtoMajor)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if reused != 2 {
		t.Errorf("%d of 3 requests used a kept connection", reused)
	}
}

func TestOthersAreTunnelled(t *testing.T) {
	backend := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "the real %s", r.Host)
	}))
	defer backend.Close()
	var mu sync.Mutex
	var dialled []string
	w, server := proxyWorld(t, func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		dialled = append(dialled, addr)
		mu.Unlock()
		return local(ctx, network, backend.Listener.Addr().String())
	})
	tr := backend.Client().Transport.(*http.Transport).Clone()
	tr.Proxy = http.ProxyURL(mustURL(t, server.URL))
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	for _, host := range []string{"example.com", "example.com:8443"} { // names of the test server's certificate
		if g := fetch(t, c, "https://"+host+"/token"); g.body != "the real "+host {
			t.Errorf("%s: %d %q %v", host, g.status, g.body, g.err)
		}
	}
	if got := strings.Join(dialled, " "); got != "example.com:443 example.com:8443" {
		t.Errorf("dialled %s", got)
	}
	if w.origin.count("") != 0 {
		t.Errorf("%q", w.origin.seen())
	}
}

func TestTunnelRefusals(t *testing.T) {
	for _, c := range []struct {
		target string
		err    error
		status string
	}{
		{"169.254.169.254:80", &origin.ForbiddenAddressError{}, "403"},
		{"gone.example.com:443", errors.New("connection refused"), "502"},
		{"slow.example.com:443", context.DeadlineExceeded, "504"},
		{"bad target", nil, "400"},
		{"host:0", nil, "400"},
		{"user@host:443", nil, "400"},
	} {
		w, server := proxyWorld(t, func(context.Context, string, string) (net.Conn, error) {
			if c.err == nil {
				t.Errorf("%s was dialled", c.target)
				return nil, errors.New("no")
			}
			return nil, c.err
		})
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", strings.ReplaceAll(c.target, " ", "%20"))
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.Contains(line, " "+c.status+" ") {
			t.Errorf("%s: %q %v, want %s", c.target, line, err, c.status)
		}
		conn.Close()
		_ = w
	}
}

// tunnelTo opens a tunnel and returns its two ends.
func tunnelTo(t *testing.T) (w *world, near *net.TCPConn, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w, server := proxyWorld(t, func(ctx context.Context, network, _ string) (net.Conn, error) {
		return local(ctx, network, l.Addr().String())
	})
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	// The first bytes for the far end come with the CONNECT, as some clients do.
	fmt.Fprintf(conn, "CONNECT other.example.com:443 HTTP/1.1\r\nHost: other.example.com:443\r\n\r\nearly")
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	const ok = "HTTP/1.1 200 Connection established\r\n\r\n"
	head := make([]byte, len(ok))
	if _, err := io.ReadFull(conn, head); err != nil || string(head) != ok {
		t.Fatalf("%q %v", head, err)
	}
	early := make([]byte, 5)
	if _, err := io.ReadFull(accepted, early); err != nil || string(early) != "early" {
		t.Fatalf("%q %v", early, err)
	}
	return w, conn.(*net.TCPConn), accepted.(*net.TCPConn)
}

func TestTunnelEndsOneDirectionAtATime(t *testing.T) {
	_, near, far := tunnelTo(t)
	data := noise(500_000)
	go func() {
		_, _ = near.Write(data)
		_ = near.CloseWrite()
	}()
	if up, err := io.ReadAll(far); err != nil || !bytes.Equal(up, data) {
		t.Fatalf("%d bytes up, %v", len(up), err)
	}
	// The client has ended its direction; the answer still comes.
	go func() {
		_, _ = far.Write(data)
		_ = far.Close()
	}()
	if down, err := io.ReadAll(near); err != nil || !bytes.Equal(down, data) {
		t.Fatalf("%d bytes down, %v", len(down), err)
	}
}

func TestBrokenEndBreaksTheTunnel(t *testing.T) {
	_, near, far := tunnelTo(t)
	_ = near.SetLinger(0)
	near.Close() // resets
	if _, err := io.ReadAll(far); err == nil {
		if _, err := far.Write(noise(1)); err == nil {
			_, err = io.ReadAll(far)
			t.Logf("after the reset: %v", err)
		}
	}
}

func TestCloseEndsWhatWasHijacked(t *testing.T) {
	w, near, far := tunnelTo(t)
	done := make(chan error, 1)
	go func() { done <- w.proxy.Close() }()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]net.Conn{"client": near, "host": far} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("the %s's end lives on", name)
		}
	}

	w, server := proxyWorld(t, local)
	im := w.origin.push("app/img", "v1", noise(1000))
	b := w.tasks.Add(im.layer, 500)
	c := through(t, w, server)
	resp, err := c.Get("https://registry.example.com/v2/app/img/blobs/" + im.layerDigest())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := w.proxy.Close(); err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("a closed proxy sent all %d bytes", len(body))
	}
	b.Arrive(1000)
	if g := fetch(t, c, "https://registry.example.com/v2/"); g.err == nil {
		t.Errorf("a closed proxy took a connection over: %d", g.status)
	}
}

func TestPlainRequestsThroughTheProxy(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		for _, k := range []string{"Proxy-Authorization", "Proxy-Connection", "X-Forwarded-For", "Upgrade"} {
			if v := r.Header.Get(k); v != "" {
				t.Errorf("%s: %s reached the host", k, v)
			}
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "%s %s %s %s", r.Method, r.Host, r.URL.Path, body)
	}))
	defer backend.Close()
	w, server := proxyWorld(t, func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "forbidden.") {
			return nil, &origin.ForbiddenAddressError{Target: addr}
		}
		return local(ctx, network, backend.Listener.Addr().String())
	})
	im := w.origin.push("app/img", "v1", noise(10))
	c := through(t, w, server)
	if g := fetch(t, c, "http://other.example.com/x", "Proxy-Authorization: Basic eA==", "Upgrade: websocket", "Connection: Upgrade"); g.body != "GET other.example.com /x " {
		t.Errorf("%d %q %v", g.status, g.body, g.err)
	}
	resp, err := c.Post("http://other.example.com/y", "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(body) != "POST other.example.com /y body" {
		t.Errorf("%q", body)
	}
	if g := fetch(t, c, "http://forbidden.example.com/"); g.status != 403 || g.code() != "DENIED" {
		t.Errorf("forbidden: %d %s", g.status, g.body)
	}
	if g := fetch(t, c, "http://plain.example.com/v2/app/img/manifests/v1"); g.status != 200 || g.body != string(im.index) {
		t.Errorf("listed registry: %d %s", g.status, g.body)
	}
	// Not for the registry API: passed on to that very host.
	if g := fetch(t, c, "http://plain.example.com/token?scope=x"); g.body != "GET plain.example.com /token " {
		t.Errorf("token realm of a listed registry: %d %q", g.status, g.body)
	}
	if g := do(t, "GET", server.URL+"/v2/"); g.status != 400 {
		t.Errorf("not a proxy request: %d", g.status)
	}
}

func TestForwardProxyNeedsCAAndDialer(t *testing.T) {
	w := newWorld(t, nil)
	server := w.serve(w.proxy.ForwardProxy())
	if g := do(t, "GET", server.URL+"/"); g.status != 501 || g.code() != "UNSUPPORTED" || w.proxy.CAFile() != "" {
		t.Errorf("%d %s", g.status, g.body)
	}
	if _, err := proxy.New(proxy.Config{Names: []string{"example.com"}, CADir: t.TempDir()}, w.tasks, upstream{w.origin}, zap.NewNop(), nil); err == nil {
		t.Error("a forward proxy without a dialer")
	}
}
