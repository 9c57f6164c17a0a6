package origin

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guard dials upstreams and refuses addresses that are no upstream's: a client
// names hosts and an upstream names redirects and token realms, and neither
// shall reach this machine's own services or a cloud's metadata through us. What
// is checked is the address of the socket, after DNS, for every connection, so a
// name that changes its mind gains nothing.
type guard struct {
	dialer  net.Dialer
	allow   []netip.Prefix
	trusted map[string]bool // host:port of configured endpoints and of the proxy
	// reached is where each host:port was reached a moment ago, for when the
	// resolver is down.
	reached *expiring[string, netip.AddrPort]
}

const (
	// maxUnacked is how long what was sent may be unacknowledged until the peer is
	// taken for dead (RFC 5482). Keepalive does not look while something is under
	// way, and nothing else does while an origin may think for minutes. A peer that
	// takes a push in so slowly that its window is shut may need some time.
	maxUnacked  = time.Minute
	reachedLife = 5 * time.Minute
	maxReached  = 256
)

type targetKey struct{}

func newGuard(allow []netip.Prefix, timeout time.Duration) *guard {
	g := &guard{allow: allow, trusted: map[string]bool{}, reached: newExpiring[string, netip.AddrPort](maxReached)}
	g.dialer = net.Dialer{
		Timeout:        timeout,
		ControlContext: g.control,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
		},
	}
	return g
}

// trust exempts the host and port of u, which the operator named.
func (g *guard) trust(u *url.URL) { g.trusted[dialAddr(u)] = true }

// dial connects to addr, host:port, for an http.Transport. The error wraps
// ErrForbiddenAddress where the guard said no to every address of the host.
func (g *guard) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx = context.WithValue(ctx, targetKey{}, addr)
	conn, err := g.dialer.DialContext(ctx, network, addr)
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) && !dns.IsNotFound && ctx.Err() == nil {
		if known, ok := g.reached.get(addr); ok {
			conn, err = g.dialer.DialContext(ctx, network, known.String())
		}
	}
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		g.reached.put(addr, tcp.AddrPort(), reachedLife)
	}
	return conn, nil
}

// control runs between the making of a socket and its connecting.
func (g *guard) control(ctx context.Context, _, address string, raw syscall.RawConn) error {
	target, _ := ctx.Value(targetKey{}).(string)
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return &ForbiddenAddressError{Target: target, Why: classUnreadable}
	}
	setUserTimeout(raw, maxUnacked)
	return g.check(target, ap.Addr())
}

// setUserTimeout bounds how long sent data may be unacknowledged. Without it the
// kernel goes on for a quarter of an hour, so an error is nobody's business.
func setUserTimeout(raw syscall.RawConn, d time.Duration) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}

// check errs unless target, host:port, may lead to addr.
func (g *guard) check(target string, addr netip.Addr) error {
	for _, to := range readings(addr) {
		if why := addressClass(to); why != "" && !g.excused(target, addr, to, why) {
			return &ForbiddenAddressError{Target: target, Addr: addr, Why: why}
		}
	}
	return nil
}

// excused tells whether the operator meant that target leads to addr, although that
// can be read as to, which is refused for why.
func (g *guard) excused(target string, addr, to netip.Addr, why string) bool {
	for _, p := range g.allow {
		// A wide prefix of IPv6 does not mean each IPv4 address that forms of it hold.
		if p.Contains(to) || p.Bits() > 64 && p.Contains(addr.WithZone("")) {
			return true
		}
	}
	if !g.trusted[strings.ToLower(target)] {
		return false
	}
	// The operator may name any address. A configured *name* is good for the
	// addresses that a test set-up or a sidecar has, but no DNS answer turns
	// it into a metadata service.
	host, _, _ := net.SplitHostPort(target)
	if lit, err := netip.ParseAddr(host); err == nil && slices.Contains(readings(lit), to) {
		return true
	}
	return why == classLoopback || why == classLinkLocal
}

// checkLiteral checks a target, host:port, that somebody else will dial for us.
// Only an address that it spells out can be judged.
func (g *guard) checkLiteral(target string) error {
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return nil
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return g.check(target, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return g.check(target, addr)
	}
	if last := host[strings.LastIndexByte(host, '.')+1:]; last != "" && last[0] >= '0' && last[0] <= '9' {
		// 127.1 and 0x7f000001 are names to us and addresses to other resolvers.
		return &ForbiddenAddressError{Target: target, Why: classUnreadable}
	}
	return nil
}

const (
	classLoopback    = "loopback"
	classLinkLocal   = "link-local"
	classMetadata    = "cloud metadata"
	classMulticast   = "multicast"
	classUnspecified = "unspecified"
	classBroadcast   = "broadcast"
	classUnreadable  = "unreadable"
)

// addressClass names the class of addresses that addr, already unmapped, is
// refused for; "" when it is not.
func addressClass(addr netip.Addr) string {
	switch addr {
	case netip.AddrFrom4([4]byte{169, 254, 169, 254}), // AWS, GCP, Azure, OpenStack, ...
		netip.AddrFrom4([4]byte{169, 254, 170, 2}),   // ECS task credentials
		netip.AddrFrom4([4]byte{169, 254, 170, 23}),  // EKS pod identity
		netip.AddrFrom4([4]byte{100, 100, 100, 200}), // Alibaba
		netip.AddrFrom4([4]byte{168, 63, 129, 16}),   // Azure host agent
		netip.AddrFrom4([4]byte{192, 0, 0, 192}):     // Oracle
		return classMetadata
	case netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return classBroadcast
	}
	if addr.Is6() && isMetadata6(addr) {
		return classMetadata
	}
	switch {
	case !addr.IsValid():
		return classUnreadable
	case addr.IsUnspecified() || addr.Is4() && addr.As4()[0] == 0:
		return classUnspecified
	case addr.IsLoopback():
		return classLoopback
	case addr.IsLinkLocalUnicast():
		return classLinkLocal
	case addr.IsMulticast():
		return classMulticast
	}
	return ""
}

func isMetadata6(addr netip.Addr) bool {
	switch addr.WithZone("").String() {
	case "fd00:ec2::254", "fd00:ec2::23", // AWS, EKS pod identity
		"fd20:ce::254",       // GCP
		"fd00:c1::a9fe:a9fe": // Oracle
		return true
	}
	return false
}
