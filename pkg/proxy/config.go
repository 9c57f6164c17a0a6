package proxy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// Config says how the faces behave. The zero Config is a registry face with the
// defaults below and no forward proxy.
type Config struct {
	// DefaultRegistry is meant by requests of the main face that name no registry.
	// Default docker.io.
	DefaultRegistry string `yaml:"defaultRegistry" doc:"Registry of requests that name none."`

	// Names are further names and addresses by which clients call the mirror faces: of a
	// Service, of a load balancer. A face answers to localhost, to loopback, to the address
	// by which a client came and to the machine's host name without being told; any other
	// Host is refused, for a page in a browser can have its own name lead here.
	Names []string `yaml:"names" doc:"Names and addresses, without port, by which clients on other machines call the mirror faces, such as damselfly.kube-system.svc. Loopback, the address by which a client comes and the machine's host name need no entry; requests to any other name are refused, because a web page can have its own name lead here."`
	// Intercept lists the registry hosts that the forward proxy serves itself, over
	// TLS with a certificate of its own CA: "ghcr.io" (ports 443 and 80),
	// "registry.example.com:5000" (that port), "*.example.com" (any host below it).
	// Every other host is tunnelled unread.
	Intercept []string `yaml:"intercept" doc:"Registry hosts that the forward proxy serves from the cluster; others are tunnelled."`
	// CADir is the directory of the forward proxy's CA. It is made when missing.
	// Empty: there is no forward proxy.
	CADir string `yaml:"caDir" doc:"Directory of the CA under which the proxy face serves the hosts of intercept. Empty: proxy-ca below dataDir."`
	// Dial opens the connections of tunnels and of plain HTTP requests that are not
	// for a registry. It must refuse addresses that clients may not reach through
	// this node: loopback, link-local, metadata. Needed with CADir.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error) `yaml:"-"`

	// Transport sends what is passed on outside of the registry API: plain HTTP requests
	// to other hosts, and other paths of intercepted hosts, such as their token realm. It
	// must refuse what Dial refuses. Default: connections of Dial, verified by the system's
	// certificates.
	Transport http.RoundTripper `yaml:"-"`

	// Solver, if set, takes the place of the Upstream for requests that name their
	// registry by path prefix and carry no Authorization. Their clients (podman,
	// CRI-O, rewritten image names) pinged a face that did not know the registry
	// yet and so gave no challenge; they never answer a later one. A Solver that
	// fetches anonymous tokens lets them read what is public.
	Solver Upstream `yaml:"-"`

	// TagTTL is how long the digest of a tag is believed, per credential. Longer
	// spares the origin a HEAD, shorter notices a moved tag sooner. Default 10 s;
	// below zero: never.
	TagTTL time.Duration `yaml:"tagTTL" doc:"How long a tag's digest is believed, per credential."`
	// GrantTTL is how long an origin's permission is believed, per credential and
	// digest; an expiring token ends it sooner. A revoked right works that long.
	// Default 5 min.
	GrantTTL time.Duration `yaml:"grantTTL" doc:"How long an origin's permission for a digest is believed, per credential."`
	// StaleTTL is how long after a registry was last heard of its public content is
	// served while it does not answer: by digest, and by tag as it was last seen. Private
	// content is served as long as the permission holds. Default 24 h; below zero: never.
	StaleTTL time.Duration `yaml:"staleTTL" doc:"How long public content is served while its registry does not answer: by digest, and by tag as last seen. Longer bridges longer outages; a moved tag is noticed when the registry is back."`
	// GrantEntries bounds the permissions in memory, about 300 bytes each; the least
	// used are dropped and cost a HEAD when they are needed again. Default 32768.
	GrantEntries int `yaml:"grantEntries" doc:"Most permissions kept in memory."`

	// OriginTimeout bounds one question to an origin and the wait for a whole manifest.
	// Registries that fetch on demand take minutes. Clients that ask the same join the
	// question, and it goes on when they give up. Default 5 min.
	OriginTimeout time.Duration `yaml:"originTimeout" doc:"Longest wait for an origin's answer about a manifest or a permission. The question outlives clients that give up, so that those who come back find it further on."`
	// WriteTimeout is how long a client may take nothing of a response until its
	// connection is closed. Default 60 s.
	WriteTimeout time.Duration `yaml:"writeTimeout" doc:"How long a client may read nothing before it is dropped."`
}

// DefaultConfig is the zero Config with its defaults spelled out.
func DefaultConfig() Config { return Config{}.withDefaults() }

// withDefaults is c with the defaults put in.
func (c Config) withDefaults() Config {
	setDefault(&c.DefaultRegistry, "docker.io")
	setDefault(&c.TagTTL, 10*time.Second)
	setDefault(&c.GrantTTL, 5*time.Minute)
	setDefault(&c.StaleTTL, 24*time.Hour)
	setDefault(&c.GrantEntries, 32768)
	setDefault(&c.OriginTimeout, 5*time.Minute)
	setDefault(&c.WriteTimeout, time.Minute)
	return c
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Validate says what is wrong with c and how to mend it. It reads no file and
// does not look at Dial, Transport and Solver, which no user sets.
func (c Config) Validate() error {
	if c.DefaultRegistry != "" {
		if _, err := origin.ParseRegistry(c.DefaultRegistry); err != nil {
			return fmt.Errorf("proxy.defaultRegistry: %w", err)
		}
	}
	if _, err := parseHosts(c.Intercept); err != nil {
		return err
	}
	for i, name := range c.Names {
		if _, err := netip.ParseAddr(plainHost(name)); err == nil {
			continue
		}
		if _, err := origin.ParseRegistry(name); err != nil || strings.Contains(name, ":") {
			return fmt.Errorf("proxy.names[%d]: %q is no name or address; write it without port, such as damselfly.kube-system.svc", i, clip(name))
		}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"grantTTL", c.GrantTTL}, {"originTimeout", c.OriginTimeout}, {"writeTimeout", c.WriteTimeout},
	} {
		if d.value < 0 {
			return fmt.Errorf("proxy.%s: %s is below zero; leave it out for the default", d.name, d.value)
		}
	}
	if c.GrantEntries < 0 {
		return fmt.Errorf("proxy.grantEntries: %d is below zero; leave it out for the default", c.GrantEntries)
	}
	return nil
}

// hostSet is the parsed form of Config.Intercept.
type hostSet struct {
	exact    map[string]bool // host, or host:port
	suffixes []string        // ".example.com"
}

func parseHosts(list []string) (hostSet, error) {
	set := hostSet{exact: map[string]bool{}}
	for i, s := range list {
		host, wild := strings.CutPrefix(s, "*.")
		name, err := origin.ParseRegistry(host)
		if err != nil {
			return hostSet{}, fmt.Errorf("proxy.intercept[%d]: %w", i, err)
		}
		switch {
		case wild && strings.Contains(host, ":"):
			return hostSet{}, fmt.Errorf("proxy.intercept[%d]: %q: a pattern takes no port; list the hosts one by one", i, s)
		case wild && !strings.Contains(host, "."):
			return hostSet{}, fmt.Errorf("proxy.intercept[%d]: %q is too wide; name at least two labels, such as *.example.com", i, s)
		case wild:
			set.suffixes = append(set.suffixes, "."+strings.ToLower(host))
		default:
			set.exact[name] = true
		}
	}
	return set, nil
}

// has tells whether the set holds a registry name, in the spelling of
// origin.ParseRegistry and without its scheme's default port.
func (s hostSet) has(name string) bool {
	if s.exact[name] {
		return true
	}
	if strings.Contains(name, ":") {
		return false
	}
	for _, suffix := range s.suffixes {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}
