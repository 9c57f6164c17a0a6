package origin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/damselfly-p2p/damselfly/pkg/limit"
)

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// wire sends single requests: it follows no redirect, tries nothing twice and
// solves no challenge.
type wire struct {
	stall   time.Duration
	plain   lanes
	special map[string]lanes // by origin, for hosts with a CA of their own
	metrics *metrics
	limits  []*limit.Bucket // that the bytes of blobs wait for
}

// lanes are the two sets of connections to a host. Questions share HTTP/2
// connections. Blobs travel by HTTP/1.1, which costs half the CPU a byte, and
// where giving up a request that hangs gives up its connection too.
type lanes struct {
	ask, bulk *http.Transport
}

// lane is how a request travels.
type lane int

const (
	// laneAsk: manifests, HEAD, tokens.
	laneAsk lane = iota
	// laneBulk: the bytes of blobs.
	laneBulk
	// lanePush: what a client sends; the origin may be silent for as long as the
	// client sends and the origin thinks.
	lanePush
)

const (
	// maxHeader bounds the header of an answer, in bytes.
	maxHeader = 256 << 10
	// maxPush bounds one request of a push, which may be a blob of many GB.
	maxPush = 24 * time.Hour
)

func newWire(cfg Config, dial dialFunc, proxy proxyFunc, m *metrics) (*wire, error) {
	w := &wire{stall: cfg.StallTimeout, plain: newLanes(cfg, dial, proxy, nil), special: map[string]lanes{}, metrics: m}
	for _, h := range cfg.Hosts {
		if h.CAFile == "" {
			continue
		}
		_, u, err := h.parse()
		if err != nil {
			return nil, err
		}
		roots, err := loadRoots(h.CAFile)
		if err != nil {
			return nil, fmt.Errorf("CA of %s: %w", h.Name, err)
		}
		w.special[originOf(u)] = newLanes(cfg, dial, proxy, roots)
	}
	return w, nil
}

func newLanes(cfg Config, dial dialFunc, proxy proxyFunc, roots *x509.CertPool) lanes {
	ask := &http.Transport{
		Proxy:                  proxy,
		DialContext:            dial,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    cfg.DialTimeout,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
		MaxIdleConnsPerHost:    8,
		MaxIdleConns:           256,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeader,
	}
	bulk := ask.Clone()
	// Clone has set up HTTP/2 and left its name among what TLS offers: a server would
	// choose it, and this transport not understand the answer.
	bulk.TLSClientConfig.NextProtos = []string{"http/1.1"}
	bulk.ForceAttemptHTTP2 = false
	bulk.HTTP2 = nil
	bulk.Protocols = new(http.Protocols)
	bulk.Protocols.SetHTTP1(true)
	bulk.ReadBufferSize = 32 << 10
	return lanes{ask: ask, bulk: bulk}
}

func loadRoots(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate; want the CA that signed the host's certificate", file)
	}
	return roots, nil
}

type proxyFunc func(*http.Request) (*url.URL, error)

// newProxy returns the choice of a proxy that c makes, and trusts the proxies'
// addresses.
func newProxy(c Config, g *guard) (proxyFunc, error) {
	if c.Proxy == "none" {
		return nil, nil
	}
	env := httpproxy.FromEnvironment()
	if c.Proxy != "" {
		env.HTTPProxy, env.HTTPSProxy = c.Proxy, c.Proxy
	}
	for _, s := range []string{env.HTTPProxy, env.HTTPSProxy} {
		if s == "" {
			continue
		}
		if !strings.Contains(s, "://") {
			s = "http://" + s
		}
		u, err := url.Parse(s)
		if err != nil {
			return nil, errors.New("proxy of the environment (HTTPS_PROXY, HTTP_PROXY): not a URL")
		}
		g.trust(u)
	}
	choose := env.ProxyFunc()
	return func(req *http.Request) (*url.URL, error) {
		u, err := choose(req.URL)
		if u == nil || err != nil {
			return nil, err
		}
		return u, g.checkLiteral(dialAddr(req.URL))
	}, nil
}

func (w *wire) lanes(u *url.URL) lanes {
	if l, ok := w.special[originOf(u)]; ok {
		return l
	}
	return w.plain
}

// send sends req as it stands and returns the answer's headers, whatever its
// status. It, or a read of the answer's body, which the caller closes, fails with
// ErrStalled when the origin is silent for w.stall. Errors hold no URL.
func (w *wire) send(req *http.Request, l lane) (*http.Response, error) {
	rt, stall := w.lanes(req.URL).ask, w.stall
	switch l {
	case laneBulk:
		rt = w.lanes(req.URL).bulk
	case lanePush:
		stall = maxPush
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(stall, func() { cancel(ErrStalled) })
	resp, err := rt.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		w.metrics.requests.WithLabelValues("error").Inc()
		err = cause(ctx, err)
		cancel(nil)
		if errors.Is(err, io.EOF) {
			// To a reader io.EOF would say that all is there.
			err = fmt.Errorf("connection closed without an answer: %w", io.ErrUnexpectedEOF)
		}
		return nil, err
	}
	w.metrics.count(resp.StatusCode)
	body := &watchedBody{body: resp.Body, ctx: ctx, cancel: cancel, timer: timer, stall: stall, metrics: w.metrics}
	if l == laneBulk {
		body.limits, body.class = w.limits, limit.ClassOf(ctx)
	}
	resp.Body = body
	return resp, nil
}

// cause is err, or why ctx ended when that is what made err.
func cause(ctx context.Context, err error) error {
	if why := context.Cause(ctx); why != nil {
		return why
	}
	return err
}

// closeIdle drops connections that nothing uses: the next request dials.
func (w *wire) closeIdle() {
	for _, l := range w.special {
		l.ask.CloseIdleConnections()
		l.bulk.CloseIdleConnections()
	}
	w.plain.ask.CloseIdleConnections()
	w.plain.bulk.CloseIdleConnections()
}

// watchedBody counts bytes, keeps them within limits, and ends a body that stalls.
// The clock runs only while the body is read, so a slow reader or a limit is no stall.
type watchedBody struct {
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer

	stall   time.Duration
	metrics *metrics
	limits  []*limit.Bucket
	class   limit.Class
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall)
	n, err := b.body.Read(p)
	b.timer.Stop()
	b.metrics.bytes.Add(float64(n))
	if err != nil && err != io.EOF {
		err = cause(b.ctx, err)
	}
	// What is not read stays in the origin's line.
	if len(b.limits) > 0 {
		defer noteLimited(b.ctx, time.Now())
	}
	for _, l := range b.limits {
		if waited := l.Wait(b.ctx, b.class, "", n); waited != nil {
			return n, waited
		}
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.timer.Stop()
	err := b.body.Close()
	b.cancel(nil)
	return err
}

// discard reads what little may be left of a body, so that its connection can
// be used again, and closes it.
func discard(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, 4<<10)
	_ = body.Close()
}
