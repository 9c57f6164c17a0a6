package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// serveManifest answers GET and HEAD of a manifest. A tag is the origin's to
// tell; the bytes come through Tasks, so that a cluster GETs each manifest once.
func (p *Proxy) serveManifest(w *response, r *http.Request, t target, q question) error {
	if t.digest != "" {
		return p.serveManifestByDigest(w, r, t, q)
	}
	got, err := p.resolve(r.Context(), q)
	switch {
	case err != nil:
		return err
	case got.refused != nil && (r.Method == http.MethodHead || !noHead(got.refused.status)):
		w.result = resultOf(got.refused.status)
		got.refused.relay(w, opManifest)
		return nil
	case r.Method == http.MethodHead:
		headManifest(w, r, got)
		return nil
	case got.digest == "":
		return p.passManifest(w, r, q)
	}
	q = q.at(origin.KindManifest, got.digest)
	err = p.sendManifest(w, r, q, got.info)
	if err != nil {
		p.forgetTags(t.registry, t.repository) // it may have moved or gone since
	}
	return err
}

func (p *Proxy) serveManifestByDigest(w *response, r *http.Request, t target, q question) error {
	head := r.Method == http.MethodHead
	i, refused, err := p.authorize(r.Context(), q, head)
	switch {
	case err != nil:
		return err
	case refused != nil:
		w.result = resultOf(refused.status)
		refused.relay(w, opManifest)
		return nil
	case head:
		headManifest(w, r, resolved{digest: t.digest, info: i, header: http.Header{}})
		return nil
	}
	return p.sendManifest(w, r, q, i)
}

// headManifest answers HEAD with what the origin answered.
func headManifest(w *response, r *http.Request, got resolved) {
	h := w.Header()
	copyEndToEnd(h, got.header)
	h.Del("Content-Encoding")
	h.Set(apiVersionHeader, apiVersion)
	if got.digest != "" {
		nameContent(h, got.digest)
	}
	if got.info.mediaType != "" {
		h.Set("Content-Type", got.info.mediaType)
	}
	if got.info.size > 0 {
		h.Set("Content-Length", strconv.FormatInt(got.info.size, 10))
	}
	if v := r.Header.Get("If-None-Match"); v != "" && got.digest != "" && matches(v, h.Get("Etag")) {
		h.Del("Content-Length")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// nameContent sets the headers that say which content this is.
func nameContent(h http.Header, d blob.Digest) {
	h.Set(digestHeader, d.String())
	h.Set("Etag", `"`+d.String()+`"`)
}

// sendManifest sends the manifest that q names and the client may read.
func (p *Proxy) sendManifest(w *response, r *http.Request, q question, i info) error {
	if i.size > maxManifest {
		return errManifestSize()
	}
	header := q.header.Clone()
	if i.mediaType != "" {
		header.Set("Accept", i.mediaType+", */*")
	}
	body, held, err := p.readManifest(r.Context(), Request{Digest: q.digest, Size: i.size, Ref: q.ref, Header: header, Length: -1})
	if err != nil {
		return err
	}
	typ := p.admit(q, body, i.mediaType)
	w.result = resultOfHeld(held)
	sendBody(w, r, q.digest, typ, body)
	return nil
}

// readManifest reads a whole manifest through Tasks, within the time for that,
// and tells whether it was held already.
func (p *Proxy) readManifest(ctx context.Context, req Request) (body []byte, held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.OriginTimeout)
	defer cancel()
	h, err := p.tasks.Open(ctx, req)
	if err != nil {
		return nil, false, timely(ctx, err)
	}
	defer h.Close()
	f, held := h.Sealed()
	var content io.ReadSeeker
	if held {
		defer f.Close()
		content = f
	} else {
		content = h.Content()
	}
	size, err := content.Seek(0, io.SeekEnd)
	switch {
	case err != nil:
		return nil, held, timely(ctx, err)
	case size > maxManifest:
		return nil, held, errManifestSize()
	}
	if _, err := content.Seek(0, io.SeekStart); err != nil {
		return nil, held, timely(ctx, err)
	}
	body = make([]byte, size)
	_, err = io.ReadFull(content, body)
	return body, held, timely(ctx, err)
}

// timely makes an error that came of a passed deadline say so.
func timely(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return err
}

func errManifestSize() *apiError {
	return &apiError{status: http.StatusRequestEntityTooLarge, code: codeSizeInvalid,
		message: fmt.Sprintf("the manifest is larger than %d bytes, the most that clients accept", maxManifest)}
}

// admit remembers what a manifest names: sizes and media types, and that the
// client may read what the manifest vouches for. It returns the media type.
func (p *Proxy) admit(q question, body []byte, typ string) string {
	typ, kids := parseManifest(body, typ)
	for _, c := range kids {
		kid := q.at(c.kind, c.digest)
		i := info{size: c.size, mediaType: c.mediaType}
		if c.vouched {
			p.allow(kid, i)
		} else {
			p.learn(kid.place(), i)
		}
	}
	if typ == "" {
		return typeOctets
	}
	return typ
}

// sendBody sends a manifest whose bytes are proven.
func sendBody(w *response, r *http.Request, d blob.Digest, typ string, body []byte) {
	h := w.Header()
	h.Set(apiVersionHeader, apiVersion)
	h.Set("Content-Type", typ)
	nameContent(h, d)
	r.Header.Del("Range") // RFC 9110 section 14.2: may be ignored; nobody resumes a manifest
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// passManifest GETs a manifest by tag from an origin that does not tell its
// digest, and finds the digest out.
func (p *Proxy) passManifest(w *response, r *http.Request, q question) error {
	type passed struct {
		digest  blob.Digest
		typ     string
		body    []byte
		refused *answer
	}
	got, err := once(r.Context(), p, q.flight("pass"), func(ctx context.Context) (passed, error) {
		resp, err := q.upstream.Get(ctx, q.ref, q.header)
		if err != nil {
			return passed{}, fmt.Errorf("reading %s at the origin: %w", q.ref, err)
		}
		if resp.StatusCode != http.StatusOK {
			return passed{refused: answerOf(resp)}, nil
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
		switch {
		case err != nil:
			return passed{}, fmt.Errorf("reading %s at the origin: %w", q.ref, err)
		case len(body) > maxManifest:
			return passed{}, errManifestSize()
		}
		d := blob.FromBytes(body)
		if named, err := blob.ParseDigest(resp.Header.Get(digestHeader)); err == nil && named != d {
			if !named.Matches(body) {
				return passed{}, fmt.Errorf("reading %s at the origin: %w", q.ref, blob.ErrMismatch)
			}
			d = named
		}
		at := q.at(origin.KindManifest, d)
		typ := mediaType(resp.Header.Get("Content-Type"))
		p.allow(at, info{size: int64(len(body)), mediaType: typ, told: true})
		return passed{digest: d, typ: p.admit(at, body, typ), body: body}, nil
	})
	switch {
	case err != nil:
		return err
	case got.refused != nil:
		w.result = resultOf(got.refused.status)
		got.refused.relay(w, opManifest)
		return nil
	}
	w.result = resultPassed
	sendBody(w, r, got.digest, got.typ, got.body)
	return nil
}

// pass answers with what the origin says, unread: tags and referrers change.
func (p *Proxy) pass(w *response, r *http.Request, t target, q question) error {
	q.ref.Query = t.query(r.URL)
	resp, err := q.upstream.Get(r.Context(), q.ref, q.header)
	if err != nil {
		return fmt.Errorf("reading %s at the origin: %w", q.ref, err)
	}
	if resp.StatusCode >= 400 {
		answerOf(resp).relay(w, t.op)
		return nil
	}
	defer resp.Body.Close()
	h := w.Header()
	copyEndToEnd(h, resp.Header)
	t.localizeHeader(h)
	if resp.ContentLength >= 0 {
		h.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	w.WriteHeader(resp.StatusCode)
	if _, err := w.ReadFrom(resp.Body); err != nil {
		return fmt.Errorf("passing on %s: %w", q.ref, err)
	}
	return nil
}
