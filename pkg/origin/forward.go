package origin

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
)

// Forward sends a client's request as it is to a registry and its answer back:
// pushes, and whatever else of the registry API this package has no word for.
// Bodies stream both ways; redirects and challenges are the client's to follow;
// the query's "ns" is dropped. Only the client's own Authorization counts.
//
// It returns an error, and has written nothing, when no answer came: those of
// Head, or that the path is not one of the registry API. A client's body or
// connection that breaks once the answer has begun aborts the handler with
// http.ErrAbortHandler, as httputil.ReverseProxy does.
func (c *Client) Forward(w http.ResponseWriter, r *http.Request, registry string) error {
	h, err := c.host(Ref{Registry: registry})
	if err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	target, err := forwardTarget(h.endpoint, r.URL)
	if err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		defer c.missing.dropIf(func(k secretRef) bool { return k.ref.Registry == h.name || k.ref.Registry == registry })
	}
	var failed error
	proxy := httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL, p.Out.Host = target, target.Host
			for _, k := range []string{"Accept-Encoding", "Upgrade", "Connection"} {
				p.Out.Header.Del(k)
			}
		},
		Transport:     forwarder{c.wire},
		FlushInterval: -1,
		ModifyResponse: func(resp *http.Response) error {
			leadBack(resp.Header, h.endpoint)
			return nil
		},
		ErrorLog:     log.New(io.Discard, "", 0), // the error goes to the caller or the client
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	proxy.ServeHTTP(w, r)
	if failed != nil {
		return fmt.Errorf("origin: %s %s: %w", r.Method, redactURL(target), failed)
	}
	return nil
}

// leadBack makes a Location at the endpoint relative: the client knows the registry by
// another name, and goes on where it came in.
func leadBack(header http.Header, endpoint *url.URL) {
	to, err := url.Parse(header.Get("Location"))
	if err != nil || to.Host == "" || originOf(to) != originOf(endpoint) {
		return
	}
	path, ok := strings.CutPrefix(to.EscapedPath(), endpoint.EscapedPath())
	if !ok || !strings.HasPrefix(path, "/") {
		return
	}
	if to.RawQuery != "" {
		path += "?" + to.RawQuery
	}
	header.Set("Location", path)
}

// forwardTarget is where a request for u goes at endpoint. A path with "." or
// ".." could leave the endpoint's prefix.
func forwardTarget(endpoint, u *url.URL) (*url.URL, error) {
	if !strings.HasPrefix(u.Path, "/v2/") {
		return nil, fmt.Errorf("path %q is not one of the registry API; want /v2/…", clip(u.Path))
	}
	for part := range strings.SplitSeq(u.Path, "/") {
		if part == "." || part == ".." || strings.ContainsAny(part, "\x00\r\n\\") {
			return nil, fmt.Errorf("path %q: has a part that no registry path has", clip(u.Path))
		}
	}
	q := u.Query()
	query := u.RawQuery
	if q.Has("ns") {
		q.Del("ns")
		query = q.Encode()
	}
	out := &url.URL{Scheme: endpoint.Scheme, Host: endpoint.Host, Path: endpoint.Path + u.Path, RawQuery: query}
	if u.RawPath != "" {
		out.RawPath = endpoint.EscapedPath() + u.RawPath
	}
	return out, nil
}

// forwarder is the transport of Forward.
type forwarder struct{ wire *wire }

// RoundTrip implements http.RoundTripper.
func (f forwarder) RoundTrip(req *http.Request) (*http.Response, error) {
	return f.wire.send(req, route{home: originOf(req.URL), lane: lanePush})
}
