package origin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
)

// route says by which connections a request travels.
type route struct {
	// home is the origin that the conversation began at. Its CA counts at every
	// hop: a company's registry, its realm and its storage share one.
	home string
	// away: a hop has left home, so its client certificate is not shown any more,
	// not even to home: the hop between chose the path.
	away bool
	// inside: a host that the operator named led here, so this may be a private address.
	inside bool
	lane   lane
	// resumed: it takes up what had begun to come, so silence is a fault.
	resumed bool
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
	// lanePass: what a client asks for itself; the origin may be silent as long as it
	// may take to answer.
	lanePass
)

// lanes are the two sets of connections to a host. Questions share HTTP/2
// connections. Blobs travel by HTTP/1.1, which costs half the CPU a byte, and
// where giving up a request that hangs gives up its connection too.
type lanes struct {
	ask, bulk *http.Transport
}

// lanePair are the connections of hops to private addresses, which a host that the
// operator named led to, and those of others. They are apart: what one may reach the
// other must not find open.
type lanePair struct {
	outside, inside lanes
}

func (p lanePair) of(r route) lanes {
	if r.inside {
		return p.inside
	}
	return p.outside
}

// hostLanes are those of a conversation that begins at a listed host.
type hostLanes struct {
	home lanes    // with the host's CA and client certificate
	away lanePair // with its CA alone
	ca   bool     // the host has a CA of its own
}

const (
	// maxHeader bounds the header of an answer, in bytes.
	maxHeader = 256 << 10
	// maxTold bounds what is remembered of hosts that speak HTTP/2 alone.
	maxTold  = 256
	toldLife = time.Hour
)

// newHostLanes makes the lanes of the listed hosts that have a CA or a client
// certificate of their own, by the origin of their endpoint.
func newHostLanes(cfg Config, dial dialPair, choose proxyFunc, log *zap.Logger) (map[string]hostLanes, error) {
	out, owner := map[string]hostLanes{}, map[string]Host{}
	for _, h := range cfg.Hosts {
		if h.CAFile == "" && h.CertFile == "" {
			continue
		}
		_, u, err := h.parse()
		if err != nil {
			return nil, err
		}
		at := originOf(u)
		if other, ok := owner[at]; ok && (other.CAFile != h.CAFile || other.CertFile != h.CertFile || other.KeyFile != h.KeyFile) {
			return nil, fmt.Errorf("hosts %s and %s share %s but not caFile, certFile and keyFile; give both the same", other.Name, h.Name, at)
		}
		owner[at] = h
		var l hostLanes
		var roots *x509.CertPool
		if h.CAFile != "" {
			if roots, err = loadRoots(h.CAFile); err != nil {
				return nil, fmt.Errorf("host %s: caFile: %w", h.Name, err)
			}
			l.ca = true
		}
		l.away = newLanePair(cfg, dial, choose, func() *tls.Config { return &tls.Config{RootCAs: roots} })
		l.home = l.away.outside
		if h.CertFile != "" {
			cert, err := newClientCert(h, log)
			if err != nil {
				return nil, fmt.Errorf("host %s: certFile, keyFile: %w", h.Name, err)
			}
			l.home = newLanes(cfg, dial.outside, choose, false, &tls.Config{RootCAs: roots, GetClientCertificate: cert.get})
		}
		out[at] = l
	}
	return out, nil
}

func newLanePair(cfg Config, dial dialPair, choose proxyFunc, config func() *tls.Config) lanePair {
	return lanePair{
		outside: newLanes(cfg, dial.outside, choose, false, config()),
		inside:  newLanes(cfg, dial.inside, choose, true, config()),
	}
}

func newLanes(cfg Config, dial dialFunc, choose proxyFunc, inside bool, config *tls.Config) lanes {
	config.MinVersion = tls.VersionTLS12
	ask := &http.Transport{
		Proxy:                  func(req *http.Request) (*url.URL, error) { return choose(req.URL, inside) },
		DialContext:            dial,
		TLSClientConfig:        config,
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
	bulk.DialContext = quick(dial, cfg.StallTimeout)
	return lanes{ask: ask, bulk: bulk}
}

// quick is dial for connections that carry nothing but small requests to the
// origin: what it does not acknowledge for so long, it never will.
func quick(dial dialFunc, unacked time.Duration) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if tcp, ok := conn.(*net.TCPConn); ok {
			if raw, err := tcp.SyscallConn(); err == nil {
				setUserTimeout(raw, unacked)
			}
		}
		return conn, err
	}
}

func loadRoots(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w; want a readable file with the CA that signed the host's certificate", err)
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

// lanes chooses the connections for a hop to u.
func (w *wire) lanes(u *url.URL, r route) lanes {
	target := originOf(u)
	home, listed := w.special[r.home]
	if target == r.home && !r.away && listed {
		return home.home
	}
	// Another listed host with a CA of its own is known by that one.
	if there, ok := w.special[target]; ok && there.ca {
		return there.away.of(r)
	}
	if listed {
		return home.away.of(r)
	}
	return w.plain.of(r)
}

// roundTrip sends req on its lane. A server that speaks HTTP/2 alone gets the
// request for a blob that way, and the next ones at once.
func (w *wire) roundTrip(req *http.Request, r route) (*http.Response, error) {
	l := w.lanes(req.URL, r)
	if r.lane != laneBulk {
		return l.ask.RoundTrip(req)
	}
	to := originOf(req.URL)
	if _, told := w.http2Only.get(to); told {
		return l.ask.RoundTrip(req)
	}
	resp, err := l.bulk.RoundTrip(req)
	if err != nil && req.URL.Scheme == "https" && speaksOnlyHTTP2(err) && req.Context().Err() == nil {
		w.http2Only.put(to, struct{}{}, toldLife)
		return l.ask.RoundTrip(req)
	}
	return resp, err
}

// speaksOnlyHTTP2 tells whether an error is that of a server which was offered
// HTTP/1.1 alone and will not: it refuses in the handshake, chooses what was not
// offered, or begins with a frame of SETTINGS. None of these errors has a type.
func speaksOnlyHTTP2(err error) bool {
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "remote error" && op.Err != nil {
		return op.Err.Error() == "tls: no application protocol"
	}
	text := err.Error()
	return strings.Contains(text, "server selected unadvertised ALPN protocol") ||
		strings.Contains(text, `malformed HTTP response "\x00\x00`) ||
		strings.Contains(text, "readLoopPeekFailLocked") // the frame came before the request went
}

// closeIdle drops connections that nothing uses: the next request dials.
func (w *wire) closeIdle() {
	for _, h := range w.special {
		h.home.closeIdle()
		h.away.outside.closeIdle()
		h.away.inside.closeIdle()
	}
	w.plain.outside.closeIdle()
	w.plain.inside.closeIdle()
}

func (l lanes) closeIdle() {
	l.ask.CloseIdleConnections()
	l.bulk.CloseIdleConnections()
}
