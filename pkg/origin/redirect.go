package origin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// call is one question to an origin, with the redirects that lead to its answer.
type call struct {
	method string
	url    *url.URL
	header http.Header // as sent to the home; see awayHeader for elsewhere
	home   string      // origin that Authorization and Cookie are for
	// solve sends a request that has no Authorization to the home, nil: as any.
	solve func(*http.Request, route) (*http.Response, error)
	lane  lane
	// verified: the content is checked by digest, so it may come by plain http.
	verified bool
	// relay: a redirect that cannot be followed is the answer, for a client that may be
	// able to.
	relay bool
	// resumed: it takes up what had begun to come.
	resumed bool
	// inside: url is where a host that the operator named led.
	inside bool
	// pause is whom a 429 in answer is for.
	pause pauseKey
}

// answer is the last answer of a call.
type answer struct {
	*http.Response
	// from is where it came from.
	from *url.URL
	// away: some hop was not at home.
	away bool
	// inside: it may be at a private address, see insideNext.
	inside bool
}

const maxRedirects = 10

// follow makes a call. Redirects are followed by hand: Authorization and Cookie
// go to the home's scheme, host and port alone, and not even there once a hop has
// led away, since that hop chose the path; Range goes everywhere. The error wraps
// ErrRedirect for what is not followed.
func (w *wire) follow(ctx context.Context, c call) (answer, error) {
	u, away, inside, seen := c.url, false, c.inside, map[string]bool{}
	var first *http.Response // the redirect that came from c.url
	for {
		seen[u.String()] = true
		away = away || originOf(u) != c.home
		resp, err := w.hop(ctx, c, u, away, inside)
		if err != nil {
			return redirected(c, first, ctx.Err(), err)
		}
		next, err := redirectTarget(resp, u)
		if next == nil && err == nil {
			return answer{Response: resp, from: u, away: away, inside: inside}, nil
		}
		if first == nil {
			first = resp
		}
		discard(resp.Body)
		switch {
		case err != nil:
		case u.Scheme == "https" && next.Scheme != "https" && !c.verified:
			err = fmt.Errorf("%w: from https to plain http at %s, and no digest would show a change on the way", ErrRedirect, redactURL(next))
		case seen[next.String()]:
			err = fmt.Errorf("%w: %s leads back to itself", ErrRedirect, redactURL(next))
		case len(seen) > maxRedirects:
			err = fmt.Errorf("%w: %s leads to more than %d others", ErrRedirect, redactURL(c.url), maxRedirects)
		}
		if err != nil {
			return redirected(c, first, ctx.Err(), err)
		}
		inside = w.insideNext(u, next, inside)
		u = next
	}
}

// redirected is what a call that could not be followed to its end returns: the first
// redirect, where the caller wants that rather than err.
func redirected(c call, first *http.Response, gone, err error) (answer, error) {
	if !c.relay || first == nil || gone != nil {
		return answer{}, err
	}
	first.Body, first.ContentLength = http.NoBody, 0
	return answer{Response: first, from: c.url}, nil
}

// insideNext reports whether next, to which the server at u leads, may be at a private
// address: where the operator named u, or u itself was reached by that and next is the same
// host.
func (w *wire) insideNext(u, next *url.URL, inside bool) bool {
	return w.leads(u) || inside && strings.EqualFold(u.Hostname(), next.Hostname())
}

func (w *wire) hop(ctx context.Context, c call, u *url.URL, away, inside bool) (*http.Response, error) {
	req := &http.Request{
		Method: c.method, URL: u, Host: u.Host, Header: c.header.Clone(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	req = req.WithContext(ctx)
	r := route{home: c.home, away: away, inside: inside, lane: c.lane, resumed: c.resumed}
	if away {
		req.Header = awayHeader(c.header)
	} else if c.solve != nil && req.Header.Get("Authorization") == "" {
		return c.solve(req, r)
	}
	return w.send(req, r)
}

// redirectTarget is where an answer from u redirects to; nil when it is no
// redirect that a client follows.
func redirectTarget(resp *http.Response, u *url.URL) (*url.URL, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	location := resp.Header.Get("Location")
	if location == "" {
		return nil, nil
	}
	next, err := u.Parse(location)
	if err != nil || next.Host == "" {
		return nil, fmt.Errorf("%w: Location of %s is not a URL", ErrRedirect, redactURL(u))
	}
	if next.Scheme != "http" && next.Scheme != "https" {
		return nil, fmt.Errorf("%w: %s leads to scheme %q", ErrRedirect, redactURL(u), clip(next.Scheme))
	}
	next.User, next.Fragment, next.RawFragment = nil, "", ""
	return next, nil
}

// passHeader is the part of a client's header that an origin gets: all but what belongs
// to the client's own connection. Registries may decide by any of it (dockerd's
// HttpHeaders, containerd's host.header).
func passHeader(h http.Header, userAgent string) http.Header {
	out := http.Header{}
	for k, vs := range h {
		if k = http.CanonicalHeaderKey(k); !connectionHeader(k, h) && !steers(k) {
			out[k] = append([]string(nil), vs...)
		}
	}
	if _, ok := out["User-Agent"]; !ok {
		out.Set("User-Agent", userAgent)
	}
	return out
}

// steers tells whether a header may make a server in front of an origin answer another
// question than the one that is asked, or take the client for somebody else. We ask by the
// URL and the method, and go by the answer.
func steers(key string) bool {
	switch key {
	case "Forwarded", "X-Real-Ip", "X-Client-Ip", "True-Client-Ip", "X-Method-Override", "X-Http-Method":
		return true
	}
	for _, family := range []string{"X-Forwarded-", "X-Original-", "X-Rewrite-", "X-Http-Method-"} {
		if strings.HasPrefix(key, family) {
			return true
		}
	}
	return false
}

// awayHeader is the part of a request's header that other hosts get.
func awayHeader(h http.Header) http.Header {
	out := http.Header{}
	for k, vs := range h {
		if passes(k) {
			out[k] = vs
		}
	}
	return out
}

// Decides reports whether an origin may decide by a header of a client who may read what.
// All do but those that say what is wanted, by which program, and for which trace.
func Decides(key string) bool { return !passes(key) }

// passes tells whether a header may go to any host, because it is no credential.
// Damselfly-Via is how pkg/proxy knows a request that has come back to it.
func passes(key string) bool {
	switch key {
	case "Accept", "Range", "If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since",
		"If-Range", "User-Agent", "Accept-Encoding", "Accept-Language", "Cache-Control", "Pragma",
		"Docker-Distribution-Api-Version", "Damselfly-Via":
		return true
	}
	return Traces(key)
}

// Traces reports whether a header names a trace or a request: it differs with each, and
// no origin decides by it.
func Traces(key string) bool {
	switch key {
	case "Traceparent", "Tracestate", "Baggage", "B3", "X-Request-Id", "X-Amzn-Trace-Id",
		"X-Cloud-Trace-Context", "Uber-Trace-Id", "Sentry-Trace":
		return true
	}
	return strings.HasPrefix(key, "X-B3-")
}

// connectionHeader tells whether a header of h is about the client's connection
// and not about the content (RFC 9110 section 7.6.1).
func connectionHeader(key string, h http.Header) bool {
	switch key {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Host", "Content-Length", "Expect":
		return true
	}
	for _, f := range h.Values("Connection") {
		for name := range strings.SplitSeq(f, ",") {
			if http.CanonicalHeaderKey(strings.TrimSpace(name)) == key {
				return true
			}
		}
	}
	return false
}

// presignedLife is how long the location u, received now, may be used again: as
// long as its signature says, and maxLocation at most.
func presignedLife(u *url.URL, now time.Time) time.Duration {
	life := maxLocation
	q := u.Query()
	for _, key := range []string{"X-Amz-Expires", "X-Goog-Expires"} { // S3, GCS: seconds
		if n, ok := parseDigits(q.Get(key)); ok && n < int64(life/time.Second) {
			life = time.Duration(n) * time.Second
		}
	}
	if end, err := time.Parse(time.RFC3339, q.Get("se")); err == nil { // Azure: a date
		life = min(life, end.Sub(now))
	}
	if n, ok := parseDigits(q.Get("Expires")); ok { // CloudFront, OSS, S3 v2: Unix time
		life = min(life, time.Unix(n, 0).Sub(now))
	}
	return life
}

// maxLocation is how long a location is used that the origin redirected to:
// after it the registry is asked again whether the reader may.
const maxLocation = 5 * time.Minute
