package origin

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"
)

// Private addresses are for what the operator named, and where that leads.
func TestGuardPrivate(t *testing.T) {
	c, err := New(Config{Proxy: "none", Allow: []string{"10.9.0.0/16", "fd09::/16"},
		Hosts: []Host{{Name: "reg.corp", Endpoint: "https://harbor.corp:8443"}, {Name: "lan", Endpoint: "http://10.1.2.3:5000"}},
		Named: []string{"docker.io", "ghcr.io", "*.named.corp", "named:5000"}}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	g, err := c.listHosts()
	if err != nil {
		t.Fatal(err)
	}
	own := netip.MustParseAddr("10.7.7.7")
	g.own.all, g.own.asked = map[netip.Addr]bool{own: true, netip.MustParseAddr("10.9.7.7"): true, netip.MustParseAddr("8.1.1.1"): true}, time.Now().Add(time.Hour)
	for _, v := range []struct {
		target, addr string
		inside, ok   bool
	}{
		{"any.example:443", "10.1.2.3", false, false},
		{"any.example:443", "10.1.2.3", true, true}, // a listed host led there
		{"any.example:443", "fd00::1", true, true},
		{"any.example:443", "127.0.0.1", true, false},
		{"any.example:443", "169.254.1.1", true, false},
		{"any.example:443", "100.100.100.200", true, false}, // metadata, though in 100.64.0.0/10
		{"any.example:443", "fd00:ec2::254", true, false},
		{"any.example:443", "10.7.7.7", true, false}, // this machine
		{"any.example:443", "64:ff9b::a07:707", true, false},
		{"any.example:443", "8.1.1.1", false, false}, // this machine, by its public address
		{"any.example:443", "10.9.1.1", false, true},
		{"any.example:443", "10.9.7.7", false, false}, // a network allowed does not mean this machine
		{"any.example:443", "fd09::1", false, true},
		{"harbor.corp:8443", "10.1.2.3", false, true},
		{"harbor.corp.:8443", "10.1.2.3", false, true},
		{"HARBOR.corp:8443", "10.7.7.7", false, true},
		{"harbor.corp:22", "10.1.2.3", false, false},
		{"reg.corp:443", "10.1.2.3", false, true},
		{"reg.corp:443", "127.0.0.1", false, false},
		{"10.1.2.3:5000", "10.1.2.3", false, true},
		{"10.1.2.3:5001", "10.1.2.3", false, false},
		{"registry-1.docker.io:443", "10.1.2.3", false, true}, // a split DNS
		{"ghcr.io:443", "10.7.7.7", false, true},
		{"ghcr.io:80", "192.168.1.1", false, true},
		{"ghcr.io:443", "127.0.0.1", false, false},
		{"ghcr.io:443", "100.100.100.200", false, false},
		{"a.named.corp:443", "10.1.2.3", false, true},
		{"a.named.corp:22", "10.1.2.3", false, false},
		{"evilnamed.corp:443", "10.1.2.3", false, false},
		{"named:5000", "fd00::1", false, true},
		{"named:443", "fd00::1", false, false},
	} {
		err := g.check(v.target, netip.MustParseAddr(v.addr), v.inside)
		if (err == nil) != v.ok {
			t.Errorf("%s at %s, inside %v: %v", v.target, v.addr, v.inside, err)
		}
	}
}

// TestGuardPrivateHops asks servers that lead to private addresses, by redirect and by
// realm, of the kind that a listed host may and another may not.
func TestGuardPrivateHops(t *testing.T) {
	var to string
	lead := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("realm") != "" || r.URL.Path == "/v2/a/b/manifests/realm" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+to+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, to+"/x", http.StatusTemporaryRedirect)
	}
	srv := httptest.NewServer(http.HandlerFunc(lead))
	defer srv.Close()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://[fd12:3456::1]:9/x", http.StatusTemporaryRedirect)
	}))
	defer other.Close()
	listed, err := New(Config{Proxy: "none", Hosts: []Host{{Name: "reg.test", Endpoint: srv.URL}}, Allow: []string{addrOf(other)}}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer listed.Close()
	open, err := New(Config{Proxy: "none", Allow: []string{"127.0.0.0/8"}}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	tag := func(name string) Ref {
		return Ref{Kind: KindManifest, Registry: "reg.test", Repository: "a/b", Reference: name}
	}
	for name, v := range map[string]struct {
		c         *Client
		ref       Ref
		to        string
		forbidden bool
	}{
		"a listed host redirects to a private address":    {listed, tag("x"), "http://[fd12:3456::1]:9", false},
		"its realm is at one":                             {listed, tag("realm"), "http://[fd12:3456::1]:9", false},
		"a listed host redirects to loopback":             {listed, tag("x"), "http://[::1]:9", true},
		"to metadata":                                     {listed, tag("x"), "http://[fd00:ec2::254]:9", true},
		"its realm is metadata":                           {listed, tag("realm"), "http://169.254.169.254", true},
		"to another, and that to a private address":       {listed, tag("x"), other.URL, true},
		"an unlisted host redirects to a private address": {open, Ref{Kind: KindURL, URL: srv.URL + "/f"}, "http://[fd12:3456::1]:9", true},
		"... to 10.0.0.1":                                 {open, Ref{Kind: KindURL, URL: srv.URL + "/f"}, "http://10.0.0.1", true},
		"a URL of one":                                    {open, Ref{Kind: KindURL, URL: "http://192.168.7.7/"}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			to = v.to
			ctx, cancel := context.WithTimeout(t.Context(), map[bool]time.Duration{true: 5 * time.Second, false: 300 * time.Millisecond}[v.forbidden]) // there may be a route, and nobody
			defer cancel()
			resp, err := v.c.Solver().Get(ctx, v.ref, nil)
			if err == nil {
				_ = resp.Body.Close()
				t.Fatal("answered")
			}
			if errors.Is(err, ErrForbiddenAddress) != v.forbidden {
				t.Error(err)
			}
		})
	}
	if conn, err := open.Dial(t.Context(), "tcp", "10.0.0.1:443"); !errors.Is(err, ErrForbiddenAddress) {
		t.Errorf("a tunnel to a private address: %v, %v", conn, err)
	}
}

// TestGuardOwnAddress: this machine's own addresses are known, also those that are not
// private.
func TestGuardOwnAddress(t *testing.T) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	g := newGuard([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16")}, time.Second)
	for _, a := range list {
		addr, _ := netip.AddrFromSlice(a.(*net.IPNet).IP)
		if err := g.check("any.example:80", addr.Unmap(), true); !errors.Is(err, ErrForbiddenAddress) {
			t.Errorf("%s is of this machine: %v", addr, err)
		}
	}
}

func addrOf(s *httptest.Server) string { return s.Listener.Addr().(*net.TCPAddr).IP.String() }
