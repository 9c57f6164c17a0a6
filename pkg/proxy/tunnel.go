package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// lingerTimeout is how long one direction of a tunnel may go on after the other
// has ended.
const lingerTimeout = 5 * time.Minute

// tunnel joins a client and the host that it named, unread.
func (p *Proxy) tunnel(w http.ResponseWriter, r *http.Request, addr string) {
	ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
	far, err := p.cfg.Dial(ctx, "tcp", addr)
	cancel()
	if err != nil {
		p.refuseTunnel(w, addr, err)
		return
	}
	defer far.Close()
	near, err := p.hijack(w)
	if err != nil {
		return
	}
	defer p.release(near)
	defer context.AfterFunc(p.base, func() {
		_ = far.Close()
		_ = near.Close()
	})()
	up := make(chan struct{})
	go func() {
		defer close(up)
		pipe(far, near)
	}()
	pipe(near, far)
	<-up
}

func (p *Proxy) refuseTunnel(w http.ResponseWriter, addr string, err error) {
	e := &apiError{status: http.StatusBadGateway, code: codeUnavailable, message: "connecting to " + addr + ": " + scrub(err)}
	switch {
	case errors.Is(err, origin.ErrForbiddenAddress), errors.Is(err, origin.ErrUnlistedHost):
		e.status, e.code = http.StatusForbidden, codeDenied
	case errors.Is(err, context.DeadlineExceeded):
		e.status = http.StatusGatewayTimeout
	}
	p.log.Info("tunnel refused", zap.String("target", addr), zap.Int("status", e.status), zap.Error(err))
	e.write(w)
}

// pipe copies src to dst until src ends, and ends dst's direction then. What
// comes the other way may follow for a while. A broken direction ends both.
func pipe(dst, src net.Conn) {
	if b, ok := src.(*bufferedConn); ok {
		if _, err := io.CopyN(dst, b.buffered, int64(b.buffered.Buffered())); err != nil {
			_ = dst.Close()
			_ = src.Close()
			return
		}
		src = b.Conn // a bare one, so that the kernel can splice
	}
	_, err := io.Copy(dst, src)
	if err != nil || closeWrite(dst) != nil {
		_ = dst.Close()
		_ = src.Close()
		return
	}
	_ = dst.SetReadDeadline(time.Now().Add(lingerTimeout))
}

// closeWrite ends the sending direction of a connection, or all of one that has
// no directions.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// plainProxy passes on what is not for the registry API: plain HTTP requests to
// other hosts, and other paths of intercepted hosts.
type plainProxy struct {
	*httputil.ReverseProxy
	idle func() // drops idle connections
}

func (p *Proxy) newPlain() *plainProxy {
	out := &plainProxy{idle: func() {}}
	transport := p.cfg.Transport
	if transport == nil {
		own := &http.Transport{
			DialContext:            p.cfg.Dial,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    4,
			IdleConnTimeout:        30 * time.Second,
			ResponseHeaderTimeout:  p.cfg.OriginTimeout,
			MaxResponseHeaderBytes: 64 << 10,
		}
		transport, out.idle = own, own.CloseIdleConnections
	}
	out.ReverseProxy = &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.Header.Del("Upgrade") // a switched protocol would outlive the request unseen
			pr.Out.Header.Del("Connection")
			pr.Out.Header.Set(viaHeader, p.via(pr.In.Header))
			pr.Out.Host = pr.In.URL.Host // RFC 9112 section 3.2.2: not what Host says
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			p.refuseTunnel(w, r.URL.Host, err)
		},
	}
	return out
}
