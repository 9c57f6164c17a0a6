package origin

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// host is what the client keeps of one registry or plain server.
type host struct {
	// name is a registry's name, or a plain server's origin.
	name string
	// endpoint is scheme, host and, of a registry, the prefix of its path.
	endpoint *url.URL
	gate     *gate
	streams  *streamBudget
	// solvers of challenges by asker; nil for plain servers.
	solvers map[asker]*solver
}

// asker is on whose behalf a request without Authorization is sent.
type asker int

const (
	// askClient: a client that may answer a challenge itself. Only a credential
	// of this node spares it that.
	askClient asker = iota
	// askNode: this node, with its credential or else as anybody.
	askNode
	// askAnybody: somebody without a credential.
	askAnybody
)

// maxHosts bounds what is kept of hosts that nobody asks at the moment; clients
// may name as many as they like.
const maxHosts = 512

// host returns the host of ref. The error wraps ErrUnlistedHost or says what is
// wrong with ref.
func (c *Client) host(ref Ref) (*host, error) {
	if ref.Kind == KindURL {
		u, err := parseHTTP(ref.URL)
		if err != nil {
			return nil, err
		}
		name := originOf(u)
		if c.cfg.OnlyListed && !c.origins[name] {
			return nil, unlisted(name)
		}
		return c.keep(name, &url.URL{Scheme: u.Scheme, Host: u.Host}, true), nil
	}
	name, err := ParseRegistry(ref.Registry)
	if err != nil {
		return nil, err
	}
	name, endpoint := c.listed(name)
	if endpoint == nil {
		if c.cfg.OnlyListed {
			return nil, unlisted(name)
		}
		endpoint = defaultEndpoint(name)
	}
	return c.keep(name, endpoint, false), nil
}

// listed returns the endpoint of the listed host that a registry's name means, in
// the spelling of the list; nil, and the name as it is, where there is none. A
// name with the default port of the endpoint's scheme is the name without it.
func (c *Client) listed(name string) (string, *url.URL) {
	if u, ok := c.endpoints[name]; ok {
		return name, u
	}
	for scheme, port := range map[string]string{"http": ":80", "https": ":443"} {
		other, has := strings.CutSuffix(name, port)
		if !has {
			other = name + port
		}
		if other == "index."+dockerHub || other == dockerHubHost {
			other = dockerHub
		}
		if u, ok := c.endpoints[other]; ok && u.Scheme == scheme {
			return other, u
		}
	}
	return name, nil
}

// acceptManifests is what this node reads as a manifest when it asks by itself.
const acceptManifests = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*"

func unlisted(name string) error {
	return fmt.Errorf("%w: %s is not among origin.hosts and origin.onlyListed is set; add it there if it is meant", ErrUnlistedHost, name)
}

func (c *Client) keep(name string, endpoint *url.URL, plain bool) *host {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if h, ok := c.hosts[name]; ok {
		return h
	}
	if len(c.hosts) >= maxHosts {
		for name, h := range c.hosts {
			if h.gate.idle(now) {
				delete(c.hosts, name)
			}
		}
	}
	h := &host{name: name, endpoint: endpoint, gate: newGate(c.cfg.MaxRequests, now), streams: newStreamBudget(c.cfg)}
	if !plain {
		h.solvers = map[asker]*solver{
			askClient:  newSolver(c, name, endpoint, c.keys, false),
			askNode:    newSolver(c, name, endpoint, c.keys, true),
			askAnybody: newSolver(c, name, endpoint, nil, true),
		}
	}
	c.hosts[name] = h
	return h
}

// call is the call that asks h for ref with a client's header.
func (h *host) call(method string, ref Ref, header http.Header, who asker, l lane) (call, error) {
	_, verified := ref.Digest()
	out := call{method: method, header: header, home: originOf(h.endpoint), lane: l, verified: verified, pause: pauseKeyOf(method, ref, header, who)}
	if who != askClient && ref.Kind == KindManifest && header.Get("Accept") == "" {
		header.Set("Accept", acceptManifests)
	}
	if ref.Kind == KindURL {
		u, err := parseHTTP(ref.URL)
		if err != nil {
			return call{}, err
		}
		u.Fragment, u.RawFragment = "", ""
		out.url = u
		return out, nil
	}
	p, err := ref.path()
	if err != nil {
		return call{}, err
	}
	u := *h.endpoint
	u.Path, u.RawQuery = h.endpoint.Path+p.Path, p.RawQuery
	out.url = &u
	if header.Get("Authorization") == "" {
		out.pause.entry = h.solvers[who].entry(ref.Repository)
	}
	out.solve = func(req *http.Request, r route) (*http.Response, error) {
		return h.solvers[who].do(req, ref.Repository, r)
	}
	return out, nil
}
