package origin

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// Config says how upstreams are reached. The zero Config reaches every registry
// at https://<its name>.
type Config struct {
	// Hosts are upstreams that need more than their name.
	Hosts []Host `yaml:"hosts" doc:"Upstreams that need more than their name."`
	// OnlyListed refuses every registry and URL whose host is not in Hosts. Off,
	// clients may name any host, within the bounds of the address guard.
	OnlyListed bool `yaml:"onlyListed" doc:"Refuse every registry and URL whose host is not in hosts."`
	// Named are registries that the operator named elsewhere in the configuration, as in
	// proxy.intercept: "ghcr.io", "*.example.com". Their names may lead to private
	// addresses, and so may their redirects and token realms.
	Named []string `yaml:"-"`
	// Private lets every host have private addresses and those of this machine: for a
	// program whose own user names the hosts.
	Private bool `yaml:"-"`
	// Allow lists addresses (CIDR, or one address) that the guard lets through
	// although it would refuse them: private, loopback, link-local, metadata,
	// multicast. Every client of this node can then make it send requests there. An
	// address of this machine needs an entry of its own.
	Allow []string `yaml:"allow" doc:"Addresses (CIDR) that origins may have although they are private, loopback, link-local, metadata or multicast, such as 10.0.0.0/8 where any server there may be asked. Registries under hosts, mirror.registries and proxy.intercept need no entry. An address of this machine itself needs an entry of its own."`
	// Proxy is the HTTP proxy for all upstreams: "" follows HTTPS_PROXY,
	// HTTP_PROXY and NO_PROXY, "none" uses none, anything else is a URL. Behind a
	// proxy host names are resolved by the proxy, so the guard sees only addresses
	// that URLs spell out.
	Proxy string `yaml:"proxy" doc:"HTTP proxy for origins: a URL, none, or empty for HTTPS_PROXY, HTTP_PROXY and NO_PROXY."`
	// DockerConfig is the path of a docker config.json with the node's own
	// credentials, plain or by credential helper; "" = none. They are used when a
	// client sends none itself and the registry asks for one, so they open to
	// every client of this node what they open to the node. Read anew whenever a
	// token is needed.
	DockerConfig string `yaml:"dockerConfig" file:"read" doc:"Path of a docker config.json with credentials of this node; empty = none."`
	// UserAgent is sent where the client's header has none.
	UserAgent string `yaml:"-"`

	// DialTimeout bounds one TCP connect, and likewise the TLS handshake.
	// Default 10 s.
	DialTimeout time.Duration `yaml:"dialTimeout" doc:"Longest TCP connect to an origin, and longest TLS handshake."`
	// AnswerTimeout is how long an origin, or its token realm, may take to begin its
	// answer. Registries that fetch on demand take minutes, and a request that is
	// hung up starts their work anew. A dead peer is found sooner, by TCP and by
	// HTTP/2's pings. Default 5 min.
	AnswerTimeout time.Duration `yaml:"answerTimeout" doc:"How long an origin may take to begin its answer; registries that fetch on demand take minutes, and a request that is hung up starts their work anew."`
	// StallTimeout is how long an origin may be silent once it has begun: between
	// two reads of a body, and before the headers of what takes a broken body up
	// again. Then the body is taken up on another connection. Default 20 s.
	StallTimeout time.Duration `yaml:"stallTimeout" doc:"How long an origin may be silent in the middle of a body before that is taken up again elsewhere."`
	// MaxRetryAfter is the longest wait that an origin may ask for (429, 503 with
	// Retry-After) and that Read grants; above it Read fails with a StatusError.
	// Default 30 s.
	MaxRetryAfter time.Duration `yaml:"maxRetryAfter" doc:"Longest wait that an origin may ask for (429, 503) and is granted."`
	// MaxSkip is how many bytes Read reads and drops in order to reach its offset
	// when an origin ignores Range. Default 1 GiB.
	MaxSkip int64 `yaml:"maxSkip" doc:"Bytes that are read and dropped to reach an offset when an origin ignores ranges."`
	// MaxRequests bounds the requests under way to one host: so many reads and
	// so many other requests. More wait. Default 64.
	MaxRequests int `yaml:"maxRequests" doc:"Requests under way to one host: so many reads and so many others."`
	// MaxStreams bounds the streams by which one blob is read where an origin gives
	// each of them little; 1 reads every blob by one. Default 8.
	MaxStreams int `yaml:"maxStreams" doc:"Streams by which one blob is read, where more of them bring more; 1 = always one."`
	// MaxExtraStreams bounds the streams beyond the first of each read, of all reads
	// of one host together, and at half of MaxRequests. What each brings early waits
	// in up to 4 MiB of memory. Default 8.
	MaxExtraStreams int `yaml:"maxExtraStreams" doc:"Streams beyond the first of each read, of all reads of one host together; each may take 4 MiB of memory."`
}

// Host is one upstream that the operator vouches for: the guard lets it have any
// address but those of cloud metadata, and those too where endpoint spells them out.
type Host struct {
	// Name is the registry's name as image references spell it: "docker.io",
	// "registry.example.com:5000".
	Name string `yaml:"name" doc:"Registry name as image references spell it."`
	// Endpoint is where it is served: scheme://host[:port][/prefix]; the prefix
	// goes before "/v2/". Default https://<name>. An http endpoint sends
	// credentials in the clear.
	Endpoint string `yaml:"endpoint" doc:"Where it is served: scheme://host[:port][/prefix]. Default https://<name>."`
	// CAFile holds PEM certificates that the host's own certificate may chain to,
	// beside the system's, and likewise those of the token realm and of redirects
	// that its answers name. There is no way to switch verification off.
	CAFile string `yaml:"caFile" file:"read" doc:"PEM certificates that certificates of the host, its token realm and its redirects may chain to, beside the system's."`
	// CertFile is a PEM certificate with its chain, and KeyFile its private key,
	// for a host that wants to know its clients by TLS. They open to every client
	// of this node what they open to the node. They are shown to the endpoint
	// alone, never to a realm or a redirect elsewhere, and read anew when the
	// files change.
	CertFile string `yaml:"certFile" file:"read" doc:"PEM client certificate with its chain, shown to the endpoint alone; it opens to all clients of this node what it opens to the node."`
	KeyFile  string `yaml:"keyFile" file:"read" doc:"PEM private key of certFile."`
}

// DefaultConfig is the Config that the zero one stands for.
func DefaultConfig() Config { return Config{}.withDefaults() }

// withDefaults is c with the defaults put in.
func (c Config) withDefaults() Config {
	setDefault(&c.DialTimeout, 10*time.Second)
	setDefault(&c.AnswerTimeout, 5*time.Minute)
	setDefault(&c.StallTimeout, 20*time.Second)
	setDefault(&c.MaxRetryAfter, 30*time.Second)
	setDefault(&c.MaxSkip, 1<<30)
	setDefault(&c.MaxRequests, 64)
	setDefault(&c.MaxStreams, 8)
	setDefault(&c.MaxExtraStreams, 8)
	setDefault(&c.UserAgent, "damselfly")
	return c
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Validate says what is wrong with c. It reads no file.
func (c Config) Validate() error {
	seen := map[string]bool{}
	for i, h := range c.Hosts {
		name, _, err := h.parse()
		if err != nil {
			return fmt.Errorf("hosts[%d]: %w", i, err)
		}
		if seen[name] {
			return fmt.Errorf("hosts[%d]: %s is listed twice; keep one entry", i, name)
		}
		seen[name] = true
	}
	for i, s := range c.Allow {
		if _, err := parsePrefix(s); err != nil {
			return fmt.Errorf("allow[%d]: %w", i, err)
		}
	}
	if _, err := parseProxy(c.Proxy); err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	return c.validateBounds()
}

func (c Config) validateBounds() error {
	for _, v := range []struct {
		name string
		n    int64
	}{
		{"dialTimeout", int64(c.DialTimeout)}, {"stallTimeout", int64(c.StallTimeout)},
		{"answerTimeout", int64(c.AnswerTimeout)},
		{"maxRetryAfter", int64(c.MaxRetryAfter)}, {"maxSkip", c.MaxSkip}, {"maxRequests", int64(c.MaxRequests)},
		{"maxStreams", int64(c.MaxStreams)}, {"maxExtraStreams", int64(c.MaxExtraStreams)},
	} {
		if v.n < 0 {
			return fmt.Errorf("%s: must not be below zero; leave it out for the default", v.name)
		}
	}
	return nil
}

// parse returns the host's name in its one spelling, and its endpoint.
func (h Host) parse() (string, *url.URL, error) {
	name, err := ParseRegistry(h.Name)
	if err != nil {
		return "", nil, err
	}
	if (h.CertFile == "") != (h.KeyFile == "") {
		return "", nil, fmt.Errorf("%s has one of certFile and keyFile; give both, or none", name)
	}
	if h.Endpoint == "" {
		return name, defaultEndpoint(name), nil
	}
	u, err := parseHTTP(h.Endpoint)
	switch {
	case err != nil:
		return "", nil, fmt.Errorf("endpoint of %s: %w; want scheme://host[:port][/prefix]", name, err)
	case u.RawQuery != "" || u.Fragment != "":
		return "", nil, fmt.Errorf("endpoint of %s: must have no query and no fragment", name)
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	return name, u, nil
}

// defaultEndpoint is where a registry is that nobody configured.
func defaultEndpoint(name string) *url.URL {
	if name == dockerHub {
		name = dockerHubHost
	}
	return &url.URL{Scheme: "https", Host: name}
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q: want an address or a CIDR, such as 127.0.0.0/8", clip(s))
	}
	return p.Masked(), nil
}

// parseProxy returns the URL of a proxy that c names, nil where it names none.
func parseProxy(s string) (*url.URL, error) {
	if s == "" || s == "none" {
		return nil, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5") {
		return nil, fmt.Errorf("want none or a URL such as http://proxy.example.com:3128")
	}
	return u, nil
}
