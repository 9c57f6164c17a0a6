package origin

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// corporate is a company's way out: an HTTP proxy that wants a password, and
// brings every host to one server.
type corporate struct {
	*httptest.Server
	to string

	mu    sync.Mutex
	asked []string
}

func newCorporate(t *testing.T, to string) *corporate {
	p := &corporate{to: to}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

// url is the proxy's with user and password.
func (p *corporate) url(user string) string { return strings.Replace(p.URL, "://", "://"+user+"@", 1) }

func (p *corporate) seen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.asked, ", ")
}

func (p *corporate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, r.Method+" "+r.RequestURI)
	p.mu.Unlock()
	if r.Header.Get("Proxy-Authorization") != "Basic Ym9iOnNlY3JldA==" { // bob:secret
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	if r.Method != http.MethodConnect {
		_, _ = io.WriteString(w, "by the proxy")
		return
	}
	far, err := net.Dial("tcp", p.to)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer far.Close()
	near, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer near.Close()
	// The far side's first words come in the same segment as the answer.
	greeting := make([]byte, len("greeting"))
	_, _ = io.ReadFull(far, greeting)
	_, _ = near.Write(append([]byte("HTTP/1.1 200 Connection established\r\nX-Proxy: 1\r\n\r\n"), greeting...))
	joinConns(near, far)
}

func joinConns(a, b net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(a, b)
		_ = a.Close()
	}()
	_, _ = io.Copy(b, a)
	_ = b.(*net.TCPConn).CloseWrite()
	<-done
}

// echo greets who connects, and repeats what it hears until the end.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				_, _ = io.WriteString(c, "greeting")
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); served.Wait() })
	return l.Addr().String()
}

// talk says something to an echo and returns what it hears.
func talk(t *testing.T, conn net.Conn) string {
	t.Helper()
	defer conn.Close()
	if _, err := io.WriteString(conn, " and echo"); err != nil {
		t.Error(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	b, _ := io.ReadAll(conn)
	return string(b)
}

// A node in a company reaches tunnels' hosts as it reaches its registries: by the
// company's proxy, but those of NO_PROXY.
func TestDialByProxy(t *testing.T) {
	far := echo(t)
	p := newCorporate(t, far)
	c, err := New(Config{Proxy: p.url("bob:secret")}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := c.Dial(t.Context(), "tcp", "only.the.proxy.knows.example:443")
	if err != nil {
		t.Fatal(err)
	}
	if got := talk(t, conn); got != "greeting and echo" {
		t.Errorf("heard %q", got)
	}
	if _, err := c.Dial(t.Context(), "tcp", "169.254.169.254:443"); !errors.Is(err, ErrForbiddenAddress) {
		t.Errorf("metadata by the proxy: %v", err)
	}
	if got := p.seen(); got != "CONNECT only.the.proxy.knows.example:443" {
		t.Errorf("the proxy was asked %s", got)
	}

	c, err = New(Config{Proxy: p.url("bob:CANARY")}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Dial(t.Context(), "tcp", "x.example:443"); err == nil || !strings.Contains(err.Error(), "407") ||
		!strings.Contains(err.Error(), "origin.proxy") || strings.Contains(err.Error(), "CANARY") {
		t.Errorf("with a wrong password: %v", err)
	}

	t.Setenv("HTTPS_PROXY", p.url("bob:secret"))
	t.Setenv("NO_PROXY", "inside.example,127.0.0.1")
	c, err = New(Config{Allow: []string{"127.0.0.1"}}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	before := p.seen()
	if conn, err = c.Dial(t.Context(), "tcp", far); err != nil {
		t.Fatal(err)
	}
	if got := talk(t, conn); got != "greeting and echo" || p.seen() != before {
		t.Errorf("a host of NO_PROXY: heard %q, proxy asked %s", got, p.seen())
	}
	if conn, err = c.Dial(t.Context(), "tcp", "outside.example:443"); err != nil {
		t.Fatal(err)
	}
	if got := talk(t, conn); got != "greeting and echo" || p.seen() == before {
		t.Errorf("by HTTPS_PROXY: heard %q, proxy asked %s", got, p.seen())
	}
}

// A proxy that takes the connection and says nothing, or nonsense, is given up.
func TestDialByBadProxy(t *testing.T) {
	for answer, want := range map[string]string{
		"":                           "deadline",
		"SSH-2.0-x\r\n\r\n":          "not HTTP",
		"HTTP/1.1 502 Bad\r\n\r\n":   "502",
		strings.Repeat("x", 100<<10): "no end",
	} {
		synctest.Test(t, func(t *testing.T) {
			dial := func(context.Context, string, string) (net.Conn, error) {
				near, far := net.Pipe()
				go func() {
					_, _ = io.CopyN(io.Discard, far, 20)
					go func() { _, _ = io.Copy(io.Discard, far) }()
					_, _ = io.WriteString(far, answer)
				}()
				t.Cleanup(func() { _ = far.Close() })
				return near, nil
			}
			c, err := newClient(Config{Proxy: "http://proxy.example:3128", DialTimeout: time.Minute}, zap.NewNop(), nil, dial)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			_, err = c.Dial(t.Context(), "tcp", "x.example:443")
			if err == nil || !strings.Contains(err.Error(), want) || time.Since(start) > time.Minute {
				t.Errorf("%.20q: %v after %s", answer, err, time.Since(start))
			}
		})
	}
}

// socks is a SOCKS5 proxy for one connection, which it brings to a server.
func socks(t *testing.T, to string) (addr string, asked chan string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked = make(chan string, 1)
	var served sync.WaitGroup
	served.Go(func() {
		near, err := l.Accept()
		if err != nil {
			return
		}
		defer near.Close()
		head := make([]byte, 2)
		_, _ = io.ReadFull(near, head)
		_, _ = io.CopyN(io.Discard, near, int64(head[1]))
		_, _ = near.Write([]byte{5, 2})
		_, _ = io.CopyN(io.Discard, near, int64(len("\x01\x03bob\x06secret")))
		_, _ = near.Write([]byte{1, 0})
		req := make([]byte, 5)
		_, _ = io.ReadFull(near, req)
		name := make([]byte, int(req[4])+2)
		_, _ = io.ReadFull(near, name)
		asked <- string(name[:req[4]])
		_, _ = near.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		far, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		joinConns(near, far)
	})
	t.Cleanup(func() { _ = l.Close(); served.Wait() })
	return l.Addr().String(), asked
}

func TestDialBySOCKS(t *testing.T) {
	addr, asked := socks(t, echo(t))
	c, err := New(Config{Proxy: "socks5://bob:secret@" + addr}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := c.Dial(t.Context(), "tcp", "only.the.proxy.knows.example:443")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(io.LimitReader(conn, 8))
	_ = conn.Close()
	if name := <-asked; name != "only.the.proxy.knows.example" || string(b) != "greeting" {
		t.Errorf("asked for %s, heard %q", name, b)
	}
}

// What pkg/proxy passes on goes where a client's own requests go: a listed name
// to its endpoint, under its CA, with its certificate; the rest as spelled.
func TestTransport(t *testing.T) {
	ca := newAuthority(t)
	var asked []string
	s := ca.serve(tls.RequestClientCert, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		asked = append(asked, fmt.Sprintf("%s %s %s %d %s", r.Method, r.Host, r.RequestURI, len(b), r.Header.Get("X-Meta")))
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(http.StatusTemporaryRedirect)
	}))
	c := liveClient(t, Host{Endpoint: s.URL + "/mirror", CAFile: mustWrite(t, "ca.pem", ca.pem)})
	rt := c.Transport()
	send := func(method, url string, body []byte) (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Meta", "kept")
		return rt.RoundTrip(req)
	}
	for _, url := range []string{"https://" + testRegistry + "/token?scope=a%2Fb", "https://" + testRegistry + ":443/token?scope=a%2Fb"} {
		resp, err := send(http.MethodPost, url, content(100))
		if code := status(t, resp, err); code != http.StatusTemporaryRedirect || resp.Header.Get("Location") != "/elsewhere" {
			t.Errorf("%s: %d, %v", url, code, resp.Header)
		}
	}
	resp, err := send(http.MethodGet, s.URL+"/a%2Fb", nil)
	if code := status(t, resp, err); code != http.StatusTemporaryRedirect {
		t.Errorf("the endpoint itself: %d", code)
	}
	host := strings.TrimPrefix(s.URL, "https://")
	want := []string{
		"POST " + host + " /mirror/token?scope=a%2Fb 100 kept", "POST " + host + " /mirror/token?scope=a%2Fb 100 kept",
		"GET " + host + " /a%2Fb 0 kept",
	}
	if fmt.Sprint(asked) != fmt.Sprint(want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	for _, url := range []string{"http://169.254.169.254/latest", "https://[::1]:1/"} {
		if _, err := send(http.MethodGet, url, nil); !errors.Is(err, ErrForbiddenAddress) {
			t.Errorf("%s: %v; want ErrForbiddenAddress", url, err)
		}
	}

	p := newCorporate(t, "")
	t.Setenv("HTTP_PROXY", p.url("bob:secret"))
	c, err = New(Config{}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rt = c.Transport()
	resp, err = send(http.MethodGet, "http://plain.example/x", nil)
	if err != nil || slurp(t, resp.Body) != "by the proxy" {
		t.Errorf("plain http by the company's proxy: %v", err)
	}
}
