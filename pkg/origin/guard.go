package origin

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
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
		return &ForbiddenAddressError{Target: target, Why: "unreadable"}
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
	plain := embedded(addr)
	why := addressClass(plain)
	if why == "" {
		return nil
	}
	for _, p := range g.allow {
		if p.Contains(plain) || p.Contains(addr.WithZone("")) {
			return nil
		}
	}
	if g.trusted[strings.ToLower(target)] {
		// The operator may name any address. A configured *name* is good for the
		// addresses that a test set-up or a sidecar has, but no DNS answer turns
		// it into a metadata service.
		host, _, _ := net.SplitHostPort(target)
		if lit, err := netip.ParseAddr(host); err == nil && embedded(lit) == plain {
			return nil
		}
		if why == classLoopback || why == classLinkLocal {
			return nil
		}
	}
	return &ForbiddenAddressError{Target: target, Addr: addr, Why: why}
}

// checkLiteral checks a target, host:port, that somebody else will dial for us.
// Only an address that it spells out can be judged.
func (g *guard) checkLiteral(target string) error {
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return nil
	}
	if strings.EqualFold(host, "localhost") || strings.HasSuffix(strings.ToLower(host), ".localhost") {
		return g.check(target, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil
	}
	return g.check(target, addr)
}

const (
	classLoopback    = "loopback"
	classLinkLocal   = "link-local"
	classMetadata    = "cloud metadata"
	classMulticast   = "multicast"
	classUnspecified = "unspecified"
	classBroadcast   = "broadcast"
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
		return "unreadable"
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

// embedded is the IPv4 address that addr stands for where it is an IPv6 form of
// one: mapped, compatible (RFC 4291), NAT64 (RFC 6052), 6to4 (RFC 3056). Else it
// is addr without its zone.
func embedded(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if !addr.Is6() {
		return addr
	}
	b := addr.As16()
	switch {
	case b[0] == 0x20 && b[1] == 0x02:
		return netip.AddrFrom4([4]byte(b[2:6]))
	case [12]byte(b[:12]) == [12]byte{0x00, 0x64, 0xff, 0x9b}:
		return netip.AddrFrom4([4]byte(b[12:16]))
	case [12]byte(b[:12]) == [12]byte{} && (b[12] != 0 || b[13] != 0 || b[14] != 0):
		return netip.AddrFrom4([4]byte(b[12:16]))
	}
	return addr
}
