package proxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// originPrefix marks headers of a URL request that are for the origin, without
// the prefix.
const originPrefix = "Damselfly-Origin-"

const (
	// proofLength is how many bytes an origin must show, and proofReach how far into
	// what is wanted they lie at most when the blob is not here yet.
	proofLength = 4 << 10
	proofReach  = 256 << 10
)

// serveURL answers GET /damselfly/v1/blob?digest=D&url=U[&size=N] to clients on
// this machine: the blob D, which the server at U keeps. The request's
// Authorization and the headers with originPrefix go to that server.
//
// Anybody can have a server that claims to keep D. Therefore, before the first
// byte, the server must show a few bytes of D at a place that it cannot foresee.
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
	result, ok := p.granted(q)
	if !ok {
		return p.sendBlob(w, r, q, size, func(ctx context.Context, c *content) error { return p.prove(ctx, q, c) })
	}
	p.metrics.authz.WithLabelValues(result).Inc()
	return p.sendBlob(w, r, q, size, nil)
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

// prove lets the origin show that it keeps the blob, and for this client. It
// costs one ranged GET for a credential and URL, and Config.GrantTTL long no more.
func (p *Proxy) prove(ctx context.Context, q question, c *content) error {
	result := authzRefused
	defer func() { p.metrics.authz.WithLabelValues(result).Inc() }()
	ctx, cancel := context.WithTimeout(ctx, p.cfg.OriginTimeout)
	defer cancel()
	want := p.proofSpan(c)
	header := q.header.Clone()
	header.Set("Range", formatRange([]span{want}))
	resp, err := q.upstream.Get(ctx, q.ref, header)
	if err != nil {
		result = authzError
		return fmt.Errorf("asking the origin for %s: %w", q.ref, err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		a := answerOf(resp)
		return &origin.StatusError{Code: a.status, Header: a.header, Body: a.body, Ref: q.ref}
	}
	defer resp.Body.Close()
	shown, want, err := shownBytes(resp, want, c.req.Size)
	if err != nil {
		result = authzError
		return fmt.Errorf("reading %s at the origin: %w", q.ref, timely(ctx, err))
	}
	held := make([]byte, want.n)
	back := c.pos
	c.pos = want.off
	_, err = io.ReadFull(c, held)
	c.pos = back
	if err != nil {
		result = authzError
		return err
	}
	if !bytes.Equal(held, shown) {
		return &apiError{status: http.StatusForbidden, code: codeDenied,
			message: "the server at the URL does not keep the blob that the digest names"}
	}
	result = authzAllowed
	p.allow(q, info{size: c.req.Size, told: true})
	return nil
}

// proofSpan chooses the bytes to show: anywhere in a blob that is here, else near
// the start of what is wanted, where waiting for them costs nothing.
func (p *Proxy) proofSpan(c *content) span {
	from := span{0, c.req.Size}
	if f, ok := c.sealed(); ok {
		_ = f.Close()
	} else {
		if s := c.first(); s.n > 0 {
			from = s
		}
		from.n = min(from.n, proofReach)
	}
	n := min(proofLength, from.n)
	return span{from.off + randomBelow(from.n-n+1), n}
}

// shownBytes reads what the origin shows. One that ignores Range shows bytes
// near its start instead, so that no more than that is read.
func shownBytes(resp *http.Response, want span, size int64) ([]byte, span, error) {
	if resp.StatusCode == http.StatusPartialContent {
		expect := fmt.Sprintf("bytes %d-%d/", want.off, want.off+want.n-1)
		total, ok := strings.CutPrefix(resp.Header.Get("Content-Range"), expect)
		if !ok || total != "*" && total != strconv.FormatInt(size, 10) {
			return nil, want, fmt.Errorf("the origin sent another range than %sof %d bytes", expect, size)
		}
	} else {
		reach := min(size, proofReach)
		n := min(proofLength, reach)
		want = span{randomBelow(reach - n + 1), n}
		if _, err := io.CopyN(io.Discard, resp.Body, want.off); err != nil {
			return nil, want, err
		}
	}
	shown := make([]byte, want.n)
	_, err := io.ReadFull(resp.Body, shown)
	return shown, want, err
}

// randomBelow is a number in [0, n) that nobody can foresee.
func randomBelow(n int64) int64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return int64(binary.BigEndian.Uint64(b[:]) % uint64(max(n, 1)))
}
