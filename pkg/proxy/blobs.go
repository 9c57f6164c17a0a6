package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// serveBlob answers GET and HEAD of a blob.
func (p *Proxy) serveBlob(w *response, r *http.Request, t target, q question) error {
	if r.Method == http.MethodHead {
		return p.orStale(p.passHead(w, r, t, q), w, r, t, q)
	}
	have, why := p.permit(r.Context(), q)
	if why == "" {
		err := p.sendRegistryBlob(w, r, q, have)
		if size, ok := sizeTold(err); ok && p.mayPass(w, r, err) {
			p.learn(q.place(), info{size: size, told: true})
			have.size = size
			err = p.sendRegistryBlob(w, r, q, have)
		}
		if err == nil || !p.mayPass(w, r, err) {
			return err
		}
		why = reasonOf(err)
	}
	return p.orStale(p.pass(w, r, t, q, why), w, r, t, q)
}

// sendRegistryBlob is sendBlob for a blob of a registry. It leaves the request as it was.
func (p *Proxy) sendRegistryBlob(w *response, r *http.Request, q question, have permission) error {
	h := w.Header()
	h.Set(apiVersionHeader, apiVersion)
	h.Set("Content-Type", typeOctets)
	nameContent(h, q.digest)
	var confirm func(context.Context, *content) error
	if have.named {
		confirm = func(ctx context.Context, c *content) error {
			if err := c.ready(ctx); err != nil {
				return err
			}
			return p.confirm(ctx, q)
		}
	}
	err := p.sendBlob(w, r.Clone(r.Context()), q, have.size, confirm)
	if err != nil && w.status == 0 {
		unname(h)
	}
	return err
}

// sendBlob sends a blob, or the ranges of it that the request asks for. The
// headers that describe it are set already. prove, if given, is called before
// the first byte is sent.
func (p *Proxy) sendBlob(w *response, r *http.Request, q question, size int64, prove func(context.Context, *content) error) error {
	etag := w.Header().Get("Etag")
	if q.digest.Matches(nil) {
		w.result = resultHit
		r.Header.Del("Range") // nothing has no part (RFC 9110 section 14.2)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(nil))
		return nil
	}
	if v := r.Header.Get("If-None-Match"); v != "" && matches(v, etag) && prove == nil {
		w.result = resultHit
		w.Header().Del("Content-Type")
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	ctx, cancel := context.WithCancel(r.Context())
	c := newContent(ctx, p.tasks, Request{Digest: q.digest, Size: size, Ref: q.ref, Header: q.header})
	defer func() {
		cancel() // what still waits in c ends
		c.close()
	}()
	ours := q.ref.Kind == origin.KindURL // to judge, for there is no pass-through
	if ours {
		dropOddRange(r)
	}
	size, err := c.start(r, etag)
	if errors.Is(err, errUnsatisfiable) {
		if !ours {
			return err // the size is a hint: the origin shall tell
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return &apiError{status: http.StatusRequestedRangeNotSatisfiable, code: codeRangeInvalid,
			message: fmt.Sprintf("the range lies outside the blob, which has %d bytes", size)}
	}
	if err != nil {
		return err
	}
	if prove != nil {
		if err := prove(ctx, c); err != nil {
			return err
		}
	}
	// What has become whole since its server was asked for a part goes out by parts, too.
	if f, ok := c.sealed(); ok && c.gate != nil {
		_ = f.Close() // it was not read
	} else if ok {
		defer f.Close()
		w.result = resultHit
		http.ServeContent(w, r, "", time.Time{}, f)
		return w.finish(nil)
	}
	w.result = resultMiss
	// Headers go out with the first byte: until then the client can be given a status, and
	// try its next host.
	if err := c.ready(ctx); err != nil {
		return err
	}
	w.flushHeader = true
	http.ServeContent(w, r, "", time.Time{}, c)
	return w.finish(c.failure())
}
