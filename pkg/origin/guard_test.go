package origin

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/dns/dnsmessage"
)

func TestGuardClasses(t *testing.T) {
	g := newGuard(nil, time.Second)
	for addr, why := range map[string]string{
		"127.0.0.1": "loopback", "127.255.0.3": "loopback", "::1": "loopback", "::ffff:127.0.0.1": "loopback",
		"64:ff9b::7f00:1": "loopback", "2002:7f00:1::": "loopback", "::127.0.0.1": "loopback",
		"0.0.0.0": "unspecified", "0.1.2.3": "unspecified", "::": "unspecified", "::ffff:0:0": "unspecified",
		"169.254.1.1": "link-local", "fe80::1": "link-local", "fe80::1%eth0": "link-local",
		"169.254.169.254": "cloud metadata", "::ffff:a9fe:a9fe": "cloud metadata", "64:ff9b::a9fe:a9fe": "cloud metadata",
		"2002:a9fe:a9fe::1": "cloud metadata", "fd00:ec2::254": "cloud metadata", "fd20:ce::254": "cloud metadata",
		"100.100.100.200": "cloud metadata", "168.63.129.16": "cloud metadata",
		"224.0.0.1": "multicast", "ff02::1": "multicast", "255.255.255.255": "broadcast",
		"10.0.0.1": "private", "192.168.1.1": "private", "172.16.0.1": "private", "172.31.255.255": "private", "fd00::1": "private",
		"fc00::1": "private", "fec0::1": "private", "100.64.0.1": "private", "198.19.0.1": "private", "240.0.0.1": "private", "192.0.0.170": "private",
		"::ffff:10.0.0.1": "private", "64:ff9b::a00:1": "private", "64:ff9b:1::a00:1": "private", "2002:a00:1::": "private",
		"172.32.0.1": "", "100.128.0.1": "", "192.0.1.1": "", "8.8.8.8": "", "2001:db8::1": "",
	} {
		err := g.check("host.example:443", netip.MustParseAddr(addr), false)
		var forbidden *ForbiddenAddressError
		switch {
		case why == "" && err != nil:
			t.Errorf("%s: %v; want it allowed", addr, err)
		case why != "" && (!errors.As(err, &forbidden) || !errors.Is(err, ErrForbiddenAddress) || forbidden.Why != why):
			t.Errorf("%s: %v; want %s", addr, err, why)
		case why != "" && (!strings.Contains(err.Error(), "host.example:443") || !strings.Contains(err.Error(), "origin.allow")):
			t.Errorf("%s: error does not say what and what to do: %v", addr, err)
		}
	}
}

func TestGuardExceptions(t *testing.T) {
	g := newGuard([]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("fe80::/64")}, time.Second)
	for _, s := range []string{"http://configured.example:5000", "http://169.254.169.254:80"} {
		u, _ := url.Parse(s)
		g.trust(u)
	}
	for _, c := range []struct {
		target, addr string
		ok           bool
	}{
		{"any.example:80", "127.0.0.9", true},
		{"any.example:80", "::ffff:127.0.0.9", true},
		{"any.example:80", "fe80::1%eth0", true},
		{"any.example:80", "::1", false},
		{"configured.example:5000", "::1", true},
		{"Configured.Example:5000", "::1", true},
		{"configured.example:5000", "169.254.7.7", true},
		{"configured.example:5001", "::1", false},
		{"configured.example:5000", "169.254.169.254", false}, // no DNS answer makes a registry of it
		{"configured.example:5000", "0.0.0.0", false},
		{"169.254.169.254:80", "169.254.169.254", true}, // the operator wrote it
		{"169.254.169.254:81", "169.254.169.254", false},
	} {
		if err := g.check(c.target, netip.MustParseAddr(c.addr), false); (err == nil) != c.ok {
			t.Errorf("%s at %s: %v", c.target, c.addr, err)
		}
	}
}

// fakeDNS answers every name from names at a real UDP socket; when down it
// answers SERVFAIL.
type fakeDNS struct {
	addr string
	down atomic.Bool
	ip   atomic.Pointer[[4]byte]
}

func newFakeDNS(t *testing.T, ip [4]byte) *fakeDNS {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &fakeDNS{addr: pc.LocalAddr().String()}
	d.ip.Store(&ip)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			if d.down.Load() {
				m.RCode = dnsmessage.RCodeServerFailure
			} else if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
					Body:   &dnsmessage.AResource{A: *d.ip.Load()},
				}}
			}
			out, _ := m.Pack()
			_, _ = pc.WriteTo(out, from)
		}
	}()
	t.Cleanup(func() { _ = pc.Close(); <-stopped })
	return d
}

func (d *fakeDNS) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", d.addr)
	}}
}

// guardedClient has the real dialer over real sockets, and names from dns.
func guardedClient(t *testing.T, cfg Config, dns *fakeDNS) *Client {
	t.Helper()
	cfg.Proxy = "none"
	var allow []netip.Prefix
	for _, s := range cfg.Allow {
		p, _ := parsePrefix(s)
		allow = append(allow, p)
	}
	g := newGuard(allow, 5*time.Second)
	for _, h := range cfg.Hosts {
		_, u, err := h.parse()
		if err != nil {
			t.Fatal(err)
		}
		g.trust(u)
	}
	if dns != nil {
		g.dialer.Resolver = dns.resolver()
	}
	c, err := newClient(cfg, zap.NewNop(), nil, g.dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestGuardAfterDNS(t *testing.T) {
	var hits atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { hits.Add(1) }))
	defer srv.Close()
	port := srv.Listener.Addr().(*net.TCPAddr).Port
	dns := newFakeDNS(t, [4]byte{127, 0, 0, 1})
	c := guardedClient(t, Config{}, dns)
	_, err := c.Get(t.Context(), Ref{Kind: KindURL, URL: "http://innocent.example:" + strconv.Itoa(port) + "/x"}, nil)
	var forbidden *ForbiddenAddressError
	if !errors.As(err, &forbidden) || forbidden.Why != classLoopback || forbidden.Addr.String() != "127.0.0.1" {
		t.Errorf("a name that leads to loopback: %v", err)
	}
	for _, u := range []string{"http://127.0.0.1:", "http://localhost:", "http://[::ffff:127.0.0.1]:", "http://[::ffff:7f00:1]:"} {
		if _, err := c.Get(t.Context(), Ref{Kind: KindURL, URL: u + strconv.Itoa(port) + "/x"}, nil); err == nil {
			t.Errorf("%s was asked", u)
		}
	}
	if n := hits.Load(); n != 0 {
		t.Errorf("%d requests reached loopback", n)
	}
	if resp, err := guardedClient(t, Config{Allow: []string{"127.0.0.0/8"}}, dns).Get(t.Context(),
		Ref{Kind: KindURL, URL: "http://innocent.example:" + strconv.Itoa(port) + "/x"}, nil); err != nil {
		t.Errorf("with the address allowed: %v", err)
	} else {
		_ = resp.Body.Close()
	}
}

// A configured registry, which may be on loopback, redirects to an internal
// address or names one as its token realm.
func TestGuardOnEveryHop(t *testing.T) {
	var inside atomic.Int32
	internal := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { inside.Add(1) }))
	defer internal.Close()
	ref := blobRef([]byte("x"))
	realm := false
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if realm {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+internal.URL+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, internal.URL+"/latest/meta-data", http.StatusTemporaryRedirect)
	}))
	defer reg.Close()
	hosts := []Host{{Name: testRegistry, Endpoint: reg.URL}}
	c := guardedClient(t, Config{Hosts: hosts}, nil)
	for _, realm = range []bool{false, true} {
		if _, err := c.Read(t.Context(), ref, nil, 1, 0, -1); !errors.Is(err, ErrForbiddenAddress) {
			t.Errorf("Read, realm %v: %v; want ErrForbiddenAddress", realm, err)
		}
		if _, err := c.Solver().Head(t.Context(), ref, nil); !errors.Is(err, ErrForbiddenAddress) {
			t.Errorf("Head, realm %v: %v; want ErrForbiddenAddress", realm, err)
		}
	}
	if n := inside.Load(); n != 0 {
		t.Errorf("%d requests reached the internal server", n)
	}
	realm = false
	resp, err := guardedClient(t, Config{Hosts: hosts, Allow: []string{"127.0.0.1"}}, nil).Head(t.Context(), ref, nil)
	if err != nil || resp.StatusCode != http.StatusOK || inside.Load() != 1 {
		t.Errorf("with the address allowed: %v, %v", resp, err)
	}
}

// A registry that was reached a moment ago is reached while its name cannot be
// resolved; where the name leads elsewhere by then is still checked.
func TestGuardResolverDown(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	defer srv.Close()
	dns := newFakeDNS(t, [4]byte{127, 0, 0, 1})
	c := guardedClient(t, Config{Allow: []string{"127.0.0.0/8"}}, dns)
	url := "http://files.example:" + strconv.Itoa(srv.Listener.Addr().(*net.TCPAddr).Port) + "/x"
	ask := func() error {
		resp, err := c.Get(t.Context(), Ref{Kind: KindURL, URL: url}, nil)
		if err == nil {
			_ = resp.Body.Close()
		}
		c.Close() // the next request dials
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	dns.down.Store(true)
	if err := ask(); err != nil {
		t.Errorf("with the resolver down: %v", err)
	}
	other := guardedClient(t, Config{Allow: []string{"127.0.0.0/8"}}, dns)
	var dnsErr *net.DNSError
	if _, err := other.Get(t.Context(), Ref{Kind: KindURL, URL: url}, nil); !errors.As(err, &dnsErr) {
		t.Errorf("never reached and the resolver down: %v", err)
	}
	dns.down.Store(false)
	dns.ip.Store(&[4]byte{169, 254, 169, 254})
	if err := ask(); !errors.Is(err, ErrForbiddenAddress) {
		t.Errorf("after the name was pointed at metadata: %v", err)
	}
}

func TestGuardBehindProxy(t *testing.T) {
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.String())
		w.WriteHeader(http.StatusNoContent)
	}))
	defer proxy.Close()
	c, err := New(Config{Proxy: proxy.URL}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	resp, err := c.Get(t.Context(), Ref{Kind: KindURL, URL: "http://files.example/x"}, nil)
	if err != nil || resp.StatusCode != http.StatusNoContent {
		t.Fatalf("%v, %v", resp, err)
	}
	_ = resp.Body.Close()
	for _, u := range []string{"http://169.254.169.254/latest", "http://[fd00:ec2::254]/x", "http://10.0.0.1/x", "http://192.168.1.1:8080/", "http://[fd00::1]/"} {
		if _, err := c.Get(t.Context(), Ref{Kind: KindURL, URL: u}, nil); !errors.Is(err, ErrForbiddenAddress) {
			t.Errorf("%s: %v; want ErrForbiddenAddress", u, err)
		}
	}
	if len(asked) != 1 || asked[0] != "GET http://files.example/x" {
		t.Errorf("the proxy was asked %q", asked)
	}
}

func TestDial(t *testing.T) {
	c, err := New(Config{Proxy: "none"}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if conn, err := c.Dial(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, ErrForbiddenAddress) {
		t.Errorf("%v, %v; want ErrForbiddenAddress", conn, err)
	}
}
