package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testRegistry = "registry.example.com"
	testRepo     = "team/app"
)

// memNet is a network of named hosts without sockets, fit for a synctest bubble.
type memNet struct {
	mu        sync.Mutex
	listeners map[string]*memListener
	dials     []string
}

func newMemNet() *memNet { return &memNet{listeners: map[string]*memListener{}} }

func (n *memNet) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[addr]
	n.dials = append(n.dials, addr)
	n.mu.Unlock()
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *memNet) dialled() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.dials)
}

// serve makes h answer at host:port by plain HTTP.
func (n *memNet) serve(t testing.TB, addr string, h http.Handler) {
	l := &memListener{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	n.listeners[addr] = l
	n.mu.Unlock()
	srv := &http.Server{Handler: h, ErrorLog: zap.NewStdLog(zap.NewNop())}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-stopped
	})
}

type memListener struct {
	addr  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *memListener) Addr() net.Addr { return memAddr(l.addr) }

type memAddr string

func (a memAddr) Network() string { return "mem" }
func (a memAddr) String() string  { return string(a) }

// testClient is a client on n whose registry.example.com is plain HTTP.
func testClient(t testing.TB, n *memNet, change func(*Config)) *Client {
	t.Helper()
	cfg := Config{Proxy: "none", Hosts: []Host{{Name: testRegistry, Endpoint: "http://" + testRegistry}}}
	if change != nil {
		change(&cfg)
	}
	c, err := newClient(cfg, zap.NewNop(), nil, n.dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// content is n bytes in which every offset can be told from its neighbours.
func content(n int) []byte {
	b := make([]byte, n)
	x := uint32(12345)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func blobRef(b []byte) Ref {
	return Ref{Kind: KindBlob, Registry: testRegistry, Repository: testRepo, Reference: blob.FromBytes(b).String()}
}

func tagRef(tag string) Ref {
	return Ref{Kind: KindManifest, Registry: testRegistry, Repository: testRepo, Reference: tag}
}

// record keeps what a handler is asked, in order.
type record struct {
	mu   sync.Mutex
	reqs []*http.Request
}

func (r *record) add(req *http.Request) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reqs = append(r.reqs, req.Clone(context.Background()))
	return len(r.reqs)
}

func (r *record) all() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*http.Request(nil), r.reqs...)
}

func (r *record) count() int { return len(r.all()) }

func (r *record) ranges() (out []string) {
	for _, req := range r.all() {
		out = append(out, req.Header.Get("Range"))
	}
	return out
}

// recorded is h with its requests, of which h is told the number, from 1.
func recorded(h func(w http.ResponseWriter, r *http.Request, n int)) (*record, http.Handler) {
	rec := &record{}
	return rec, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h(w, r, rec.add(r)) })
}

// serveBytes answers as a good registry does, ranges and all.
func serveBytes(w http.ResponseWriter, r *http.Request, b []byte) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// asked is the range of a request for part of size bytes.
func asked(r *http.Request, size int) (first, end int) {
	end = size
	if s, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		var last int
		if n, _ := fmt.Sscanf(s, "%d-%d", &first, &last); n == 2 {
			end = last + 1
		}
	}
	return first, end
}

// headOf answers a request for part of b with the headers of a good answer.
func headOf(w http.ResponseWriter, r *http.Request, b []byte) []byte {
	first, end := asked(r, len(b))
	w.Header().Set("Content-Length", fmt.Sprint(end-first))
	if r.Header.Get("Range") != "" {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, end-1, len(b)))
		w.WriteHeader(http.StatusPartialContent)
	}
	return b[first:end]
}

func mustWrite(t testing.TB, name, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// slurp reads and closes a body.
func slurp(t testing.TB, r io.ReadCloser) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("body: %v", err)
	}
	_ = r.Close()
	return string(b)
}

func withAuth(v string) http.Header { return http.Header{"Authorization": {v}} }

// pass lets d of a synctest bubble's time go by.
func pass(d time.Duration) { <-time.After(d) }
