package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// originPrefix marks headers of a URL request that are for the origin, without
// the prefix.
const originPrefix = "Damselfly-Origin-"

// serveURL answers GET /damselfly/v1/blob?digest=D&url=U[&size=N] to clients on
// this machine: the blob D, which the server at U keeps. The request's
// Authorization and the headers with originPrefix go to that server.
//
// Anybody can have a server that claims to keep D, so the server must show that it does:
// see proof.go.
func (p *Proxy) serveURL(w *response, r *http.Request) error {
	if err := localOnly(r); err != nil {
		return err
	}
	if r.Method != http.MethodGet {
		return errMethod(r.Method)
	}
	q, size, err := p.urlQuestion(r)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", typeOctets)
	nameContent(h, q.digest)
	if result, ok := p.granted(q); ok {
		p.metrics.authz.WithLabelValues(result).Inc()
		return p.sendBlob(w, r, q, size, nil)
	}
	done, err := p.claims.begin(claimant{q.who, hostOf(r.RemoteAddr)}, q.digest, time.Now())
	if err != nil {
		return err
	}
	defer done()
	err = (&claim{p: p, q: q, size: size, proven: done}).serve(w, r)
	if errors.Is(err, errNotKept) {
		p.claims.fail(q.digest, time.Now())
	}
	return err
}

// hostOf is an address without its port.
func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// localOnly refuses clients on other machines, and web pages in a browser on
// this one.
func localOnly(r *http.Request) error {
	refuse := &apiError{status: http.StatusForbidden, code: codeDenied, message: "only programs on this machine may ask here"}
	if r.Header.Get("Origin") != "" || strings.HasPrefix(r.Header.Get("Sec-Fetch-Site"), "cross") {
		return refuse
	}
	if r.RemoteAddr == "" || r.RemoteAddr == "@" {
		return nil // a unix socket
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !from.Addr().Unmap().IsLoopback() {
		return refuse
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && !strings.EqualFold(host, "localhost") {
		return refuse // a name that was made to point here
	}
	return nil
}

// urlQuestion reads the query and headers of a URL request.
func (p *Proxy) urlQuestion(r *http.Request) (question, int64, error) {
	bad := func(code string, err error) (question, int64, error) {
		return question{}, 0, &apiError{status: http.StatusBadRequest, code: code, message: err.Error()}
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return bad(codeNameInvalid, fmt.Errorf("the query cannot be parsed"))
	}
	d, err := blob.ParseDigest(query.Get("digest"))
	if err != nil {
		return bad(codeDigestInvalid, err)
	}
	u, err := origin.ParseURL(query.Get("url"))
	if err != nil {
		return bad(codeNameInvalid, err)
	}
	var size int64
	if s := query.Get("size"); s != "" {
		if size, err = strconv.ParseInt(s, 10, 64); err != nil || size < 0 || size > blob.MaxSize {
			return bad(codeSizeInvalid, fmt.Errorf("size %q is not a number of bytes", clip(s)))
		}
	}
	header, keys := http.Header{}, []string{}
	for k, v := range r.Header {
		name, ok := strings.CutPrefix(k, originPrefix)
		if !ok && k != "Authorization" {
			continue
		}
		if ok {
			k = textproto.CanonicalMIMEHeaderKey(name)
		}
		if ownHeader(k) {
			continue
		}
		header[k] = append(header[k], v...)
	}
	for k := range header {
		keys = append(keys, k)
	}
	who := p.credentialOf(header, keys...)
	header.Set(viaHeader, p.via(r.Header))
	ref := origin.Ref{Kind: origin.KindURL, URL: u}
	return question{ref: ref, digest: d, who: who, header: header, upstream: p.upstream}, size, nil
}

// ownHeader tells whether a header of a request to an origin is not a client's
// to set.
func ownHeader(k string) bool {
	switch k {
	case "", "Host", "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since",
		"Accept-Encoding", "Expect", "Content-Type", "Content-Encoding":
		return true
	}
	for _, hop := range hopHeaders() {
		if k == hop {
			return true
		}
	}
	return strings.HasPrefix(k, "Damselfly-")
}
