package origin

import (
	"context"
	"net"
	"net/http"
	"net/url"
)

// Dial connects to addr, host:port, by TCP, for callers that carry a client's own
// bytes (tunnels): directly and through the guard, or by the proxy that
// Config.Proxy or HTTPS_PROXY names for https at this address. Config.OnlyListed
// does not count. The error wraps ErrForbiddenAddress where the guard says no.
func (c *Client) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	via, err := c.proxy(&url.URL{Scheme: "https", Host: addr}, false)
	if err != nil {
		return nil, err
	}
	if via != nil {
		return dialThrough(ctx, c.dial, via, addr, c.cfg.DialTimeout)
	}
	return c.dial(ctx, network, addr)
}

// Transport returns a RoundTripper that sends any absolute URL as it stands,
// once: by the guard, the proxy and the CA that a Client's own requests go by,
// with the client's header. It follows no redirect and solves no challenge. A URL at the name of a
// listed host (https://registry.example.com/token) goes to that host's endpoint,
// below its prefix. Config.OnlyListed does not count. Bodies stream.
//
// The RoundTripper is safe for concurrent use. Its errors hold no URL.
func (c *Client) Transport() http.RoundTripper { return transport{c} }

type transport struct{ c *Client }

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if endpoint := t.c.endpointAt(req.URL); endpoint != nil {
		out := *req
		out.URL, out.Host = atEndpoint(endpoint, req.URL), endpoint.Host
		req = &out
	}
	r := route{home: originOf(req.URL), lane: lanePass}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		r.lane = lanePush
	}
	return t.c.wire.send(req, r)
}

// endpointAt is the endpoint of the listed host whose name u is at; nil when
// there is none, or it is where u leads anyway.
func (c *Client) endpointAt(u *url.URL) *url.URL {
	name, err := ParseRegistry(u.Host)
	if err != nil || u.Scheme != "https" {
		return nil
	}
	_, endpoint := c.listed(name)
	if endpoint == nil || originOf(endpoint) == originOf(u) && endpoint.Path == "" {
		return nil
	}
	return endpoint
}

// atEndpoint is u at an endpoint instead of its own host, below the prefix.
func atEndpoint(endpoint, u *url.URL) *url.URL {
	out := *u
	out.Scheme, out.Host, out.Path = endpoint.Scheme, endpoint.Host, endpoint.Path+u.Path
	if u.RawPath != "" {
		out.RawPath = endpoint.EscapedPath() + u.RawPath
	}
	return &out
}
