package proxy

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Who may speak to a face at all. A web page in a browser on this machine can send
// requests to loopback, and reads the answers where its own name was made to lead here.
// So a face answers to the names that it has and to no page.

// namesOf are the names of this node beside its addresses: those that it was told, and
// the machine's own.
func namesOf(told []string) map[string]bool {
	out := map[string]bool{"localhost": true}
	if name, err := os.Hostname(); err == nil {
		out[strings.ToLower(name)] = true
	}
	for _, name := range told {
		out[plainHost(name)] = true
	}
	return out
}

// plainHost is a host as it is compared: lower case, without brackets and final dot.
func plainHost(s string) string {
	return strings.ToLower(strings.TrimSuffix(strings.Trim(s, "[]"), "."))
}

// guarded is a mirror face that refuses who calls it by a name that it does not have,
// and web pages.
func (p *Proxy) guarded(h http.Handler) http.Handler {
	return p.within(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !p.called(r):
			if p.first("a name of this node") {
				p.log.Warn("refusing requests to a name that this node does not have; if clients call it so, list the name under proxy.names",
					zap.String("host", clip(r.Host)), zap.String("client", r.RemoteAddr))
			}
			(&apiError{status: http.StatusForbidden, code: codeDenied,
				message: "this node does not have the name " + clip(r.Host) + "; list it under proxy.names if it is meant"}).write(w)
		case r.Header.Get("Origin") != "" || fromPage(r.Header):
			refusePage().write(w)
		default:
			h.ServeHTTP(w, r)
		}
	}))
}

func refusePage() *apiError {
	return &apiError{status: http.StatusForbidden, code: codeDenied, message: "web pages may not ask here"}
}

// called reports whether the Host of a request is this node's: loopback, the address by
// which the client came, or a name of it. A client that sends none is no browser.
func (p *Proxy) called(r *http.Request) bool {
	if r.RemoteAddr == "@" { // a Unix socket, which no browser has
		return true
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host = plainHost(host); host == "" || p.names[host] || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	if addr = addr.Unmap(); addr.IsLoopback() {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	at, err := netip.ParseAddrPort(local.String())
	return err == nil && at.Addr().Unmap().WithZone("") == addr.WithZone("")
}

// fromPage reports whether a browser says that a page of another site asks.
func fromPage(h http.Header) bool {
	site := h.Get("Sec-Fetch-Site")
	return site != "" && site != "none" && site != "same-origin"
}

// strange reports whether a page of another site than target asks, which goes by an
// HTTP proxy.
func strange(h http.Header, target string) bool {
	from := h.Get("Origin")
	if from == "" {
		return fromPage(h)
	}
	u, err := url.Parse(from)
	return err != nil || !strings.EqualFold(u.Host, target) || fromPage(h)
}

const (
	// maxClientConns bounds the connections of one client, and with HTTP/1.1 its
	// requests under way; containerd has tens. Above it a client is told to wait; of
	// twice as many none is taken.
	maxClientConns = 512
	// maxConns bounds those of all clients of a node, and half of the files that the
	// process may open: peers and the store need theirs.
	maxConns = 8192
)

// callers counts the connections of each client. Safe for concurrent use.
type callers struct {
	most int
	mu   sync.Mutex
	all  int
	by   map[netip.Prefix]int
}

func newCallers() *callers {
	c := &callers{most: maxConns, by: map[netip.Prefix]int{}}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil && limit.Cur/2 < maxConns {
		c.most = int(limit.Cur / 2)
	}
	return c
}

// clientOf is who is at the other end of a connection: an address, or a network of IPv6
// that one client has.
func clientOf(addr net.Addr) netip.Prefix {
	at, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Prefix{} // a Unix socket
	}
	ip := at.Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.Prefix(bits) // of its own family
	return prefix
}

// crowdedKey marks the connections of a client that has too many.
type crowdedKey struct{}

// enter counts a connection that was taken.
func (c *callers) enter(ctx context.Context, conn net.Conn) context.Context {
	who := clientOf(conn.RemoteAddr())
	c.mu.Lock()
	c.all++
	c.by[who]++
	all, its := c.all, c.by[who]
	c.mu.Unlock()
	switch {
	case all > c.most || its > 2*maxClientConns:
		_ = conn.Close() // its server notices, and leave is called
	case its > maxClientConns:
		return context.WithValue(ctx, crowdedKey{}, true)
	}
	return ctx
}

// leave counts it no more.
func (c *callers) leave(conn net.Conn) {
	who := clientOf(conn.RemoteAddr())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.by[who]--; c.by[who] <= 0 {
		delete(c.by, who)
	}
}

// within is h for clients that have not too many connections.
func (p *Proxy) within(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Context().Value(crowdedKey{}) == nil {
			h.ServeHTTP(w, r)
			return
		}
		if p.first("connections of a client") {
			p.log.Warn("refusing connections of a client that has too many", zap.String("client", r.RemoteAddr), zap.Int("most", maxClientConns))
		}
		w.Header().Set("Retry-After", "1")
		w.Header().Set("Connection", "close")
		(&apiError{status: http.StatusServiceUnavailable, code: codeTooManyRequests, message: "too many connections of this client"}).write(w)
	})
}
