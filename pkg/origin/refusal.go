package origin

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// refusal is a copy of an answer that is not the content asked for. It is never
// changed.
type refusal struct {
	code   int
	header http.Header
	body   []byte
}

// readRefusal copies resp, of its body the first 64 KiB, and closes it.
func readRefusal(resp *http.Response) *refusal {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	discard(resp.Body)
	return &refusal{code: resp.StatusCode, header: resp.Header, body: body}
}

// later is r with another Retry-After.
func (r *refusal) later(left time.Duration) *refusal {
	out := &refusal{code: r.code, header: r.header.Clone(), body: r.body}
	out.header.Set("Retry-After", strconv.FormatInt(int64((left+time.Second-1)/time.Second), 10))
	return out
}

// response makes an answer to req of the copy.
func (r *refusal) response(req *http.Request) *http.Response {
	resp := &http.Response{
		Status: fmt.Sprintf("%d %s", r.code, http.StatusText(r.code)), StatusCode: r.code,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: r.header.Clone(), ContentLength: int64(len(r.body)),
		Body: io.NopCloser(bytes.NewReader(r.body)), Request: req,
	}
	resp.Header.Del("Transfer-Encoding")
	if req.Method == http.MethodHead {
		resp.Body, resp.ContentLength = http.NoBody, -1
		if n, ok := parseDigits(resp.Header.Get("Content-Length")); ok {
			resp.ContentLength = n
		}
		return resp
	}
	resp.Header.Set("Content-Length", strconv.Itoa(len(r.body)))
	return resp
}

// err is the copy as an error about ref.
func (r *refusal) err(ref Ref, now time.Time) *StatusError {
	e := &StatusError{Code: r.code, Header: http.Header{}, Body: r.body, Ref: ref}
	for k, vs := range r.header {
		if keptHeader(k) {
			e.Header[k] = vs
		}
	}
	e.RetryAfter, _ = retryAfter(r.header, now)
	return e
}
