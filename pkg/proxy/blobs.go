package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// serveBlob answers GET and HEAD of a blob.
func (p *Proxy) serveBlob(w *response, r *http.Request, q question) error {
	head := r.Method == http.MethodHead
	i, refused, err := p.authorize(r.Context(), q, head)
	switch {
	case err != nil:
		return err
	case refused != nil:
		w.result = resultOf(refused.status)
		refused.relay(w, opBlob)
		return nil
	}
	h := w.Header()
	h.Set(apiVersionHeader, apiVersion)
	h.Set("Content-Type", typeOctets)
	nameContent(h, q.digest)
	if head {
		h.Set("Accept-Ranges", "bytes")
		if i.size > 0 || q.digest.Matches(nil) {
			h.Set("Content-Length", strconv.FormatInt(i.size, 10))
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return p.sendBlob(w, r, q, i.size, nil)
}

// sendBlob sends a blob, or the ranges of it that the request asks for. The
// headers that describe it are set already. prove, if given, is called before
// the first byte is sent.
func (p *Proxy) sendBlob(w *response, r *http.Request, q question, size int64, prove func(context.Context, *content) error) error {
	etag := w.Header().Get("Etag")
	if q.digest.Matches(nil) {
		w.result = resultHit
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
	size, err := c.start(r, etag)
	if errors.Is(err, errUnsatisfiable) {
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
	if f, ok := c.sealed(); ok {
		defer f.Close()
		w.result = resultHit
		http.ServeContent(w, r, "", time.Time{}, f)
		return w.finish(nil)
	}
	w.result = resultMiss
	if err := p.firstByte(ctx, c); err != nil {
		return err
	}
	w.flushHeader = true
	http.ServeContent(w, r, "", time.Time{}, c)
	return w.finish(c.failure())
}

// firstByte waits for the first byte that is wanted, but not longer than headers
// may wait.
func (p *Proxy) firstByte(ctx context.Context, c *content) error {
	wait, cancel := context.WithTimeout(ctx, p.cfg.HeaderWait)
	defer cancel()
	err := c.ready(wait)
	if err != nil && wait.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return err
}
