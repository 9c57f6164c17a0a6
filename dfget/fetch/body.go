package fetch

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// DefaultStall is how long a source may send nothing before it is given up.
const DefaultStall = 20 * time.Second

// maxErrorBody bounds what is kept of the body of an error answer.
const maxErrorBody = 64 << 10

// watchdog ends a request, and the reading of its body, when nothing comes for
// a while. The time that the reader takes for itself does not count.
type watchdog struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
}

// newWatchdog returns a watchdog that is counting. Its ctx is for the request;
// stop releases it.
func newWatchdog(ctx context.Context, stall time.Duration) *watchdog {
	w := &watchdog{stall: stall}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(stall, func() {
		w.cancel(fmt.Errorf("nothing came for %s: %w", stall, origin.ErrStalled))
	})
	return w
}

func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain puts the watchdog's own reason in the place of the "context canceled"
// that net/http reports.
func (w *watchdog) explain(err error) error {
	if err == nil || err == io.EOF || w.ctx.Err() == nil {
		return err
	}
	return context.Cause(w.ctx)
}

// guarded is a body under a watchdog.
type guarded struct {
	io.ReadCloser
	dog *watchdog
}

func (g *guarded) Read(b []byte) (int, error) {
	g.dog.timer.Reset(g.dog.stall)
	n, err := g.ReadCloser.Read(b)
	g.dog.timer.Stop()
	return n, g.dog.explain(err)
}

func (g *guarded) Close() error {
	err := g.ReadCloser.Close()
	g.dog.stop()
	return err
}

// reply reads the headers of resp, an answer to a request for w. It
// errs, and closes the body, unless resp brings content.
func reply(resp *http.Response, w Want) (*Reply, error) {
	r := &Reply{Body: resp.Body, Size: resp.ContentLength, MediaType: resp.Header.Get("Content-Type"), Validator: validator(resp.Header)}
	if d, err := blob.ParseDigest(resp.Header.Get("Docker-Content-Digest")); err == nil {
		r.Digest = d
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return r, nil
	case http.StatusPartialContent:
		contentRange := resp.Header.Get("Content-Range")
		r.Size = contentRangeSize(contentRange)
		start, ok := contentRangeStart(contentRange)
		if !ok {
			resp.Body.Close()
			return nil, fmt.Errorf("%s: answer 206 with Content-Range %q: %w", w.Ref, contentRange, origin.ErrProtocol)
		}
		r.Offset = start
		return r, nil
	}
	defer resp.Body.Close()
	return nil, statusError(resp, w.Ref)
}

func statusError(resp *http.Response, ref origin.Ref) *origin.StatusError {
	// What cannot be read of an error's explanation is not worth another error.
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	e := &origin.StatusError{Code: resp.StatusCode, Header: resp.Header, Body: body, Ref: ref}
	e.RetryAfter = retryAfter(resp.Header)
	return e
}

// retryAfter reads Retry-After, seconds or a date (RFC 9110 section 10.2.3).
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.Atoi(v); err == nil && s >= 0 && s < 1<<30 {
		return time.Duration(s) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return max(0, at.Sub(now))
}

// validator is what If-Range may name (RFC 9110 section 13.1.5): a strong ETag,
// else a Last-Modified date that is old enough to be one.
func validator(h http.Header) string {
	if tag := h.Get("ETag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	modified, err := http.ParseTime(h.Get("Last-Modified"))
	if err != nil {
		return ""
	}
	if date, err := http.ParseTime(h.Get("Date")); err != nil || date.Sub(modified) < time.Minute {
		return ""
	}
	return h.Get("Last-Modified")
}

// contentRangeStart reads a from "bytes a-b/size".
func contentRangeStart(s string) (int64, bool) {
	spec, ok := strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, false
	}
	first, _, ok := strings.Cut(spec, "-")
	n, err := strconv.ParseInt(first, 10, 64)
	return n, ok && err == nil && n >= 0
}

// contentRangeSize reads the size from "bytes a-b/size" or "bytes */size"; below
// zero when it is not there.
func contentRangeSize(s string) int64 {
	_, size, ok := strings.Cut(s, "/")
	if !ok {
		return -1
	}
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil || n < 0 {
		return -1
	}
	return n
}

// requestHeader is the header of a request for w from off on.
func requestHeader(w Want, off int64, validator string) http.Header {
	h := w.Header.Clone()
	if h == nil {
		h = http.Header{}
	}
	// Encoded content has another length and another digest.
	h.Set("Accept-Encoding", "identity")
	h.Del("If-Range")
	h.Del("Range")
	if off > 0 {
		h.Set("Range", fmt.Sprintf("bytes=%d-", off))
		if validator != "" {
			h.Set("If-Range", validator)
		}
	}
	return h
}
