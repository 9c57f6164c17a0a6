package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

const (
	// handshakeTimeout bounds a TLS handshake with a client.
	handshakeTimeout = 10 * time.Second
	// dialTimeout bounds the dialling of a tunnel's other end.
	dialTimeout = 15 * time.Second

	dockerHub     = "docker.io"
	dockerHubHost = "registry-1.docker.io"
)

// ForwardProxy is the face for clients that have no mirrors but follow
// HTTPS_PROXY, such as Docker: an HTTP proxy (RFC 9110 sections 7.3.2 and 9.3.6).
// CONNECT to a host of Config.Intercept ends here, in TLS under the CA of
// CAFile, and is served as a registry face for that host; any other becomes a
// tunnel. Plain http:// requests likewise. Without Config.CADir it refuses
// everything.
func (p *Proxy) ForwardProxy() http.Handler {
	return p.within(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case p.ca == nil:
			(&apiError{status: http.StatusNotImplemented, code: codeUnsupported,
				message: "this node has no forward proxy; set proxy.caDir to have one"}).write(w)
		case p.looped(r.Header):
			(&apiError{status: http.StatusLoopDetected, code: codeUnsupported, message: "the request came from this proxy"}).write(w)
		case strange(r.Header, r.URL.Host):
			refusePage().write(w)
		case r.Method == http.MethodConnect:
			p.connect(w, r)
		case r.URL.Host != "":
			p.absolute(w, r)
		default:
			(&apiError{status: http.StatusBadRequest, code: codeUnsupported,
				message: "this is an HTTP proxy: set HTTPS_PROXY to its address; as a registry mirror use the node's other port"}).write(w)
		}
	}))
}

// endpoint is the host:port of a CONNECT or of an absolute URL.
type endpoint struct {
	registry string // in the spelling of origin.ParseRegistry; "" where it is none
	host     string
	addr     string // host:port
	spelled  string // without the port where it is the scheme's own
}

// parseEndpoint reads host:port, or host alone where that is allowed.
func parseEndpoint(s, defaultPort string) (endpoint, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.Trim(s, "[]"), defaultPort
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if host == "" || len(host) > 255 || strings.ContainsAny(host, "/@%?#\\[]") || !printable(host) || err != nil || n == 0 {
		return endpoint{}, fmt.Errorf("%q is not host:port", clip(s))
	}
	e := endpoint{host: strings.ToLower(host)}
	e.addr = net.JoinHostPort(e.host, port)
	e.spelled = e.addr
	if port == defaultPort {
		e.spelled = strings.TrimSuffix(e.addr, ":"+port)
	}
	name, err := origin.ParseRegistry(e.spelled)
	if err == nil && (name != dockerHub || e.host == dockerHubHost) {
		e.registry = name // index.docker.io serves accounts and search, not the registry API
	}
	return e, nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) {
	to, err := parseEndpoint(r.RequestURI, "443")
	switch {
	case err != nil:
		errName(err.Error()).write(w)
	case p.hosts.has(to.registry):
		p.intercept(w, face{registry: to.registry, server: &url.URL{Scheme: "https", Host: to.spelled}}, to.host)
	default:
		p.tunnel(w, r, to.addr)
	}
}

// absolute serves a plain HTTP request for http://host/….
func (p *Proxy) absolute(w http.ResponseWriter, r *http.Request) {
	to, err := parseEndpoint(r.URL.Host, "80")
	switch {
	case err != nil:
		errName(err.Error()).write(w)
		return
	case !strings.EqualFold(r.URL.Scheme, "http"):
		(&apiError{status: http.StatusBadRequest, code: codeUnsupported, message: "for https:// use CONNECT"}).write(w)
		return
	case !p.hosts.has(to.registry):
		rw := newResponse(w, p.cfg.WriteTimeout, &p.buffers)
		rw.extend()
		p.plain.ServeHTTP(rw, r)
		return
	}
	inside := r.Clone(r.Context())
	inside.URL = &url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	for _, k := range []string{"Proxy-Authorization", "Proxy-Connection"} {
		inside.Header.Del(k)
	}
	p.face(face{registry: to.registry, server: &url.URL{Scheme: "http", Host: to.spelled}}).ServeHTTP(w, inside)
}

// hijack takes a connection over from its server and answers the CONNECT on it.
// The caller ends it with release. An error was answered, or cannot be.
func (p *Proxy) hijack(w http.ResponseWriter) (net.Conn, error) {
	if !p.enter() {
		_, e := errOf(errClosed)
		e.write(w)
		return nil, errClosed
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.leave()
		(&apiError{status: http.StatusInternalServerError, code: codeUnsupported, message: "CONNECT needs HTTP/1.1"}).write(w)
		return nil, err
	}
	_ = conn.SetWriteDeadline(time.Now().Add(handshakeTimeout))
	_, err = conn.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n"))
	if err != nil {
		p.release(conn)
		return nil, err
	}
	_ = conn.SetWriteDeadline(time.Time{})
	if rw.Reader.Buffered() == 0 {
		return conn, nil
	}
	return &bufferedConn{Conn: conn, buffered: rw.Reader}, nil
}

// release closes what hijack returned.
func (p *Proxy) release(conn net.Conn) {
	_ = conn.Close()
	p.callers.leave(conn)
	p.leave()
}

// bufferedConn is a connection of which the server had read more than it used.
type bufferedConn struct {
	net.Conn
	buffered *bufio.Reader
}

func (c *bufferedConn) Read(b []byte) (int, error) {
	if n := c.buffered.Buffered(); n > 0 {
		return c.buffered.Read(b[:min(n, len(b))])
	}
	return c.Conn.Read(b)
}

// CloseWrite ends the sending direction where the connection can.
func (c *bufferedConn) CloseWrite() error { return closeWrite(c.Conn) }

// intercept serves a registry's face inside a CONNECT to host.
func (p *Proxy) intercept(w http.ResponseWriter, f face, host string) {
	conn, err := p.hijack(w)
	if err != nil {
		return
	}
	defer p.release(conn)
	secure := tls.Server(conn, p.ca.config(host))
	ctx, cancel := context.WithTimeout(p.base, handshakeTimeout)
	err = secure.HandshakeContext(ctx)
	cancel()
	if err != nil {
		level := zap.DebugLevel // a client that hung up
		if strings.Contains(err.Error(), "certificate") {
			level = zap.WarnLevel
		}
		p.log.Log(level, "TLS handshake with a client of the proxy failed; if it does not trust the proxy's CA, give it the file",
			zap.String("registry", f.registry), zap.String("ca", p.ca.certFile), zap.Error(err))
		return
	}
	_ = p.inner.Serve(newOneConn(&insideConn{Conn: secure, face: f, gone: make(chan struct{})}))
}

// newInner is the server for what is inside intercepted connections.
func (p *Proxy) newInner() *http.Server {
	s := p.server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.enter() {
			panic(http.ErrAbortHandler)
		}
		defer p.leave()
		if strange(r.Header, r.Host) {
			refusePage().write(w)
			return
		}
		f, _ := r.Context().Value(faceKey{}).(face)
		p.face(f).ServeHTTP(w, r)
	}))
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if inside, ok := c.(*insideConn); ok {
			ctx = context.WithValue(ctx, faceKey{}, inside.face)
		}
		return ctx
	}
	return s
}

// faceKey is the context key of the face that a CONNECT led to.
type faceKey struct{}

// insideConn is the decrypted side of an intercepted connection.
type insideConn struct {
	net.Conn
	face face
	once sync.Once
	gone chan struct{} // closed with the connection
}

func (c *insideConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.gone) })
	return err
}

// oneConn is a listener that accepts one connection, which is there already, and
// ends with it.
type oneConn struct {
	conn   *insideConn
	accept chan *insideConn
}

func newOneConn(c *insideConn) *oneConn {
	l := &oneConn{conn: c, accept: make(chan *insideConn, 1)}
	l.accept <- c
	return l
}

// Accept implements net.Listener.
func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	default:
	}
	<-l.conn.gone
	return nil, net.ErrClosed
}

// Close implements net.Listener. It ends the connection: Accept waits for that.
func (l *oneConn) Close() error {
	err := l.conn.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Addr implements net.Listener.
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }
