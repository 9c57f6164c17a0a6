package origin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// pacedOrigin is a registry behind real TLS that offers HTTP/2, whose bytes come at the
// pace of a limiter.
type pacedOrigin struct {
	*httptest.Server
	content  []byte
	requests atomic.Int64
	bytes    atomic.Int64 // written to bodies
}

type connKey struct{}

// newPacedOrigin serves content. Each connection may send perConn bytes a second, all
// of them together inAll; 0 is no limit.
func newPacedOrigin(t testing.TB, content []byte, perConn, inAll int) *pacedOrigin {
	t.Helper()
	o := &pacedOrigin{content: content}
	shared := pacer(inAll)
	o.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.requests.Add(1)
		own, _ := r.Context().Value(connKey{}).(*rate.Limiter)
		serveBytes(&pacedWriter{ResponseWriter: w, ctx: r.Context(), limits: []*rate.Limiter{own, shared}, sent: &o.bytes}, r, o.content)
	}))
	o.EnableHTTP2 = true
	o.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	o.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, pacer(perConn))
	}
	o.StartTLS()
	t.Cleanup(o.Close)
	return o
}

func pacer(perSecond int) *rate.Limiter {
	if perSecond == 0 {
		return rate.NewLimiter(rate.Inf, 1<<20)
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(32<<10, perSecond/500))
}

type pacedWriter struct {
	http.ResponseWriter
	ctx    context.Context
	limits []*rate.Limiter
	sent   *atomic.Int64
}

func (w *pacedWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), 16<<10)]
		for _, l := range w.limits {
			if err := l.WaitN(w.ctx, len(part)); err != nil {
				return n, err
			}
		}
		m, err := w.ResponseWriter.Write(part)
		n += m
		w.sent.Add(int64(m))
		if err != nil {
			return n, err
		}
		p = p[m:]
	}
	return n, nil
}

// client is a client of the origin.
func (o *pacedOrigin) client(t testing.TB, change func(*Config)) *Client {
	t.Helper()
	ca := mustWrite(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.Certificate().Raw})))
	cfg := Config{Proxy: "none", Hosts: []Host{{Name: testRegistry, Endpoint: o.URL, CAFile: ca}}}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// direct reads the content by so many ranges at once, each on a connection of its own,
// as a parallel downloader does.
func (o *pacedOrigin) direct(t testing.TB, ref Ref, ranges int) time.Duration {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(o.Certificate())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, NextProtos: []string{"http/1.1"}}}
	defer transport.CloseIdleConnections()
	size := len(o.content)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range ranges {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, o.URL+"/v2/"+ref.Repository+"/blobs/"+ref.Reference, nil)
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", i*size/ranges, (i+1)*size/ranges-1))
			resp, err := transport.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			if n, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusPartialContent {
				t.Errorf("status %d, %d bytes, %v", resp.StatusCode, n, err)
			}
			_ = resp.Body.Close()
		})
	}
	wg.Wait()
	return time.Since(began)
}

// pull reads the whole blob as the node does, and verifies it.
func pull(t testing.TB, c *Client, ref Ref, size int) time.Duration {
	t.Helper()
	began := time.Now()
	r, err := c.Read(t.Context(), ref, nil, int64(size), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := ref.Digest()
	sum := want.Hash()
	if n, err := io.Copy(sum, r); err != nil || blob.Of(want.Algorithm(), sum) != want {
		t.Fatalf("%d of %d bytes, %v", n, size, err)
	}
	took := time.Since(began)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	return took
}

// BenchmarkSlowConnections: an origin that gives each connection 4 MB/s. Beside the time
// of a pull it tells that of eight ranges directly, just before.
func BenchmarkSlowConnections(b *testing.B) {
	for _, size := range []int{16 << 20, 64 << 20, 256 << 20} {
		b.Run(fmt.Sprint(size>>20, "MiB"), func(b *testing.B) {
			o := newPacedOrigin(b, content(size), 4e6, 0)
			ref := blobRef(o.content)
			for b.Loop() {
				direct := o.direct(b, ref, 8)
				o.requests.Store(0)
				o.bytes.Store(0)
				took := pull(b, o.client(b, nil), ref, size)
				b.ReportMetric(took.Seconds(), "s")
				b.ReportMetric(took.Seconds()/direct.Seconds(), "x-direct")
				b.ReportMetric(float64(o.requests.Load()), "requests")
				b.ReportMetric(float64(o.bytes.Load())/float64(size), "x-bytes")
			}
		})
	}
}

// BenchmarkFullLine: an origin that fills 1 Gbit/s by one connection. Beside the time of
// a pull it tells that of one by one stream, just before.
func BenchmarkFullLine(b *testing.B) {
	for _, size := range []int{64 << 20, 256 << 20, 1 << 30} {
		b.Run(fmt.Sprint(size>>20, "MiB"), func(b *testing.B) {
			o := newPacedOrigin(b, content(size), 0, 117e6)
			ref := blobRef(o.content)
			for b.Loop() {
				one := pull(b, o.client(b, func(c *Config) { c.MaxStreams = 1 }), ref, size)
				o.requests.Store(0)
				o.bytes.Store(0)
				took := pull(b, o.client(b, nil), ref, size)
				b.ReportMetric(took.Seconds(), "s")
				b.ReportMetric(took.Seconds()/one.Seconds(), "x-one")
				b.ReportMetric(float64(o.requests.Load()), "requests")
				b.ReportMetric(float64(o.bytes.Load())/float64(size), "x-bytes")
			}
		})
	}
}
