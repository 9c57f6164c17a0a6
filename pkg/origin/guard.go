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
// shall reach this machine's own services, its network's or a cloud's metadata
// through us. What is checked is the address of the socket, after DNS, for every
// connection, so a name that changes its mind gains nothing.
type guard struct {
	dialer  net.Dialer
	allow   []netip.Prefix
	trusted map[string]trust // by host:port, lower case
	below   []string         // ".example.com": any host below it, at ports 443 and 80, is named
	own     ownAddresses
	private bool // Config.Private
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

// trust is what the operator's configuration says of a host:port.
type trust uint8

const (
	// trustNamed: its name may lead to a private address, also one of this machine.
	trustNamed trust = 1 << iota
	// trustServed: it is an endpoint or a proxy, and may be at loopback or link-local.
	trustServed
	// trustLeads: its redirects and its token realm may be at private addresses.
	trustLeads
)

type (
	targetKey struct{}
	// insideKey marks a dial for a hop to which a host with trustLeads led.
	insideKey struct{}
)

func newGuard(allow []netip.Prefix, timeout time.Duration) *guard {
	g := &guard{allow: allow, trusted: map[string]trust{}, reached: newExpiring[string, netip.AddrPort](maxReached)}
	g.dialer = net.Dialer{
		Timeout:        timeout,
		ControlContext: g.control,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
		},
	}
	return g
}

// trust exempts the host and port of u, at which the operator says that a registry is
// served.
func (g *guard) trust(u *url.URL) {
	g.trusted[strings.ToLower(dialAddr(u))] |= trustNamed | trustServed | trustLeads
}

// trustProxy exempts the host and port of an HTTP proxy.
func (g *guard) trustProxy(u *url.URL) {
	g.trusted[strings.ToLower(dialAddr(u))] |= trustNamed | trustServed
}

// name takes note of a registry that the operator named: "ghcr.io", "*.example.com".
func (g *guard) name(pattern string) error {
	if rest, wild := strings.CutPrefix(pattern, "*"); wild {
		g.below = append(g.below, strings.ToLower(rest))
		return nil
	}
	name, err := ParseRegistry(pattern)
	if err != nil {
		return err
	}
	level := trustNamed | trustLeads
	if name == dockerHub { // the default of several settings; nothing of it is in a private network
		level = trustNamed
	}
	u := defaultEndpoint(name)
	g.trusted[dialAddr(u)] |= level
	if u.Port() == "" {
		g.trusted[net.JoinHostPort(u.Hostname(), "80")] |= level
	}
	return nil
}

// level is what is known of target, host:port.
func (g *guard) level(target string) trust {
	target = strings.ToLower(target)
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return 0
	}
	host = strings.TrimSuffix(host, ".")
	if t, ok := g.trusted[net.JoinHostPort(host, port)]; ok {
		return t
	}
	if port == "443" || port == "80" {
		for _, suffix := range g.below {
			if strings.HasSuffix(host, suffix) {
				return trustNamed | trustLeads
			}
		}
	}
	return 0
}

// leads reports whether what the server at u says, a redirect or a realm, may lead to a
// private address.
func (g *guard) leads(u *url.URL) bool { return g.level(dialAddr(u))&trustLeads != 0 }

// dialInside is dial for a hop to which a host with trustLeads led. Connections of the
// two are never shared: see wire.
func (g *guard) dialInside(ctx context.Context, network, addr string) (net.Conn, error) {
	return g.dial(context.WithValue(ctx, insideKey{}, true), network, addr)
}

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
	inside, _ := ctx.Value(insideKey{}).(bool)
	return g.check(target, ap.Addr(), inside)
}

// setUserTimeout bounds how long sent data may be unacknowledged. Without it the
// kernel goes on for a quarter of an hour, so an error is nobody's business.
func setUserTimeout(raw syscall.RawConn, d time.Duration) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}

// check errs unless target, host:port, may lead to addr; inside says that a host with
// trustLeads led to target.
func (g *guard) check(target string, addr netip.Addr, inside bool) error {
	for _, to := range readings(addr) {
		why := addressClass(to)
		if (why == "" || why == classPrivate) && g.own.has(to) {
			why = classOwn
		}
		if why != "" && !(inside && why == classPrivate) && !g.excused(target, addr, to, why) {
			return &ForbiddenAddressError{Target: target, Addr: addr, Why: why}
		}
	}
	return nil
}

// excused tells whether the operator meant that target leads to addr, although that
// can be read as to, which is refused for why.
func (g *guard) excused(target string, addr, to netip.Addr, why string) bool {
	if g.private && (why == classPrivate || why == classOwn) {
		return true
	}
	for _, p := range g.allow {
		// A network is not meant to hold this machine's own services too.
		if why == classOwn && !p.IsSingleIP() {
			continue
		}
		// A wide prefix of IPv6 does not mean each IPv4 address that forms of it hold.
		if p.Contains(to) || p.Bits() > 64 && p.Contains(addr.WithZone("")) {
			return true
		}
	}
	level := g.level(target)
	if level == 0 {
		return false
	}
	if why == classPrivate || why == classOwn {
		return true
	}
	if level&trustServed == 0 {
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
func (g *guard) checkLiteral(target string, inside bool) error {
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return nil
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return g.check(target, netip.AddrFrom4([4]byte{127, 0, 0, 1}), inside)
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return g.check(target, addr, inside)
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
	classPrivate     = "private"
	classOwn         = "own" // of this machine
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
	case isPrivate(addr):
		return classPrivate
	}
	return ""
}

// isPrivate reports whether addr is one that the Internet does not route to: networks
// use it for what is theirs alone.
func isPrivate(addr netip.Addr) bool {
	if addr.IsPrivate() { // RFC 1918, fc00::/7
		return true
	}
	b := addr.As16()
	if addr.Is6() {
		return b[0] == 0xfe && b[1]&0xc0 == 0xc0 // site-local, deprecated by RFC 3879
	}
	switch a := b[12:]; {
	case a[0] == 100 && a[1]&0xc0 == 64, // carriers, RFC 6598
		a[0] == 192 && a[1] == 0 && a[2] == 0, // protocols, RFC 6890
		a[0] == 198 && a[1]&0xfe == 18,        // benchmarks, RFC 2544
		a[0] >= 240:                           // reserved, RFC 1112
		return true
	}
	return false
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
