package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// Error codes of the OCI distribution spec ("Error Codes"), and RANGE_INVALID
// and UNAVAILABLE, which the distribution project adds.
const (
	codeBlobUnknown     = "BLOB_UNKNOWN"
	codeDenied          = "DENIED"
	codeDigestInvalid   = "DIGEST_INVALID"
	codeManifestUnknown = "MANIFEST_UNKNOWN"
	codeNameInvalid     = "NAME_INVALID"
	codeNameUnknown     = "NAME_UNKNOWN"
	codeRangeInvalid    = "RANGE_INVALID"
	codeSizeInvalid     = "SIZE_INVALID"
	codeTooManyRequests = "TOOMANYREQUESTS"
	codeUnauthorized    = "UNAUTHORIZED"
	codeUnavailable     = "UNAVAILABLE"
	codeUnknown         = "UNKNOWN"
	codeUnsupported     = "UNSUPPORTED"
)

// apiVersion is the header by which clients know a registry (API version).
const (
	apiVersionHeader = "Docker-Distribution-Api-Version"
	apiVersion       = "registry/2.0"
	digestHeader     = "Docker-Content-Digest"
)

// apiError is an answer of our own that is not what the client asked for, in
// the distribution spec's form.
type apiError struct {
	status  int
	code    string
	message string
	detail  any
	cause   error // for the log
	// retryAfter is when the client may ask again; 0: that is not known.
	retryAfter time.Duration
}

func (e *apiError) Error() string { return fmt.Sprintf("%s: %s", e.code, e.message) }

func (e *apiError) Unwrap() error { return e.cause }

func errName(message string) *apiError {
	return &apiError{status: http.StatusBadRequest, code: codeNameInvalid, message: message}
}

func errInternal() *apiError {
	return &apiError{status: http.StatusInternalServerError, code: codeUnknown, message: "internal error; the node's log has the details"}
}

// body is the spec's error body.
func (e *apiError) body() []byte {
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail,omitempty"`
	}
	b, err := json.Marshal(map[string][]item{"errors": {{e.code, e.message, e.detail}}})
	if err != nil {
		return []byte(`{"errors":[{"code":"UNKNOWN","message":"error without description"}]}`)
	}
	return append(b, '\n')
}

// write sends e, if no answer has begun.
func (e *apiError) write(w http.ResponseWriter) {
	body := e.body()
	h := w.Header()
	unname(h)
	h.Set(apiVersionHeader, apiVersion)
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if e.retryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((e.retryAfter+time.Second-1)/time.Second), 10))
	}
	w.WriteHeader(e.status)
	_, _ = w.Write(body)
}

// unname takes back the headers of the content that is not sent after all, but
// for the Content-Range of a 416.
func unname(h http.Header) {
	for _, k := range []string{"Accept-Ranges", "Content-Encoding", "Content-Type", "Etag", "Last-Modified", digestHeader} {
		h.Del(k)
	}
}

// answer is what an origin said when that was not the content asked for. It goes
// to the client as it is.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// maxAnswer bounds what is kept of the body of such an answer, in bytes.
const maxAnswer = 64 << 10

// answerOf keeps a response and closes it.
func answerOf(resp *http.Response) *answer {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		body = nil
	}
	return &answer{status: resp.StatusCode, header: resp.Header, body: body}
}

// relay sends the origin's answer: status, challenge and body verbatim. Where it
// answered a HEAD, and so had no body, the spec's body is made for it.
func (a *answer) relay(w http.ResponseWriter, op operation) {
	if a.status < 400 || a.status > 599 {
		(&apiError{status: http.StatusBadGateway, code: codeUnknown,
			message: fmt.Sprintf("the origin answered %d, which is neither the content nor an error", a.status)}).write(w)
		return
	}
	h := w.Header()
	unname(h)
	copyEndToEnd(h, a.header)
	body := a.body
	if len(body) == 0 {
		code := codeOf(a.status, op)
		body = (&apiError{code: code, message: fmt.Sprintf("the origin answered %d %s", a.status, http.StatusText(a.status))}).body()
		h.Set("Content-Type", "application/json; charset=utf-8")
		h.Del("Content-Encoding")
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(a.status)
	_, _ = w.Write(body)
}

// codeOf is the spec's code for an origin's status.
func codeOf(status int, op operation) string {
	switch status {
	case http.StatusUnauthorized:
		return codeUnauthorized
	case http.StatusForbidden:
		return codeDenied
	case http.StatusNotFound, http.StatusGone:
		switch op {
		case opManifest:
			return codeManifestUnknown
		case opBlob:
			return codeBlobUnknown
		}
		return codeNameUnknown
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return codeUnsupported
	case http.StatusTooManyRequests:
		return codeTooManyRequests
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return codeUnavailable
	}
	return codeUnknown
}

// hopHeaders say something about one connection (RFC 9110 section 7.6.1), or
// about a host that is not ours, and are not passed on.
func hopHeaders() []string {
	return []string{
		"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer",
		"Transfer-Encoding", "Upgrade", "Alt-Svc", "Set-Cookie", "Strict-Transport-Security", "Content-Length",
	}
}

// copyEndToEnd copies the headers of an answer that concern the client.
func copyEndToEnd(dst, src http.Header) {
	for k, v := range src {
		dst[k] = append([]string(nil), v...)
	}
	for _, list := range src["Connection"] {
		for k := range strings.SplitSeq(list, ",") {
			dst.Del(strings.TrimSpace(k))
		}
	}
	for _, k := range hopHeaders() {
		dst.Del(k)
	}
}

// errOf says what a failed call to the origin or to a task is to the client. It
// is an *answer where the origin answered, else an *apiError.
func errOf(err error) (*answer, *apiError) {
	var status *origin.StatusError
	var api *apiError
	var forbidden *origin.ForbiddenAddressError
	switch {
	case errors.As(err, &status):
		a := &answer{status: status.Code, header: status.Header.Clone(), body: status.Body}
		if a.header == nil {
			a.header = http.Header{}
		}
		if status.RetryAfter > 0 && a.header.Get("Retry-After") == "" {
			a.header.Set("Retry-After", strconv.Itoa(int((status.RetryAfter+time.Second-1)/time.Second)))
		}
		return a, nil
	case errors.As(err, &api):
		return nil, api
	case errors.As(err, &forbidden): // clients show little of a message, and the hint ends it
		return nil, &apiError{status: http.StatusForbidden, code: codeDenied, message: "this node refuses: " + scrub(forbidden), cause: err}
	case errors.Is(err, origin.ErrForbiddenAddress), errors.Is(err, origin.ErrUnlistedHost):
		return nil, &apiError{status: http.StatusForbidden, code: codeDenied, message: scrub(err), cause: err}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, origin.ErrStalled):
		return nil, &apiError{status: http.StatusGatewayTimeout, code: codeUnavailable, message: "nothing came in time; the origin or the cluster is slow, try again", cause: err}
	case errors.Is(err, errClosed):
		return nil, &apiError{status: http.StatusServiceUnavailable, code: codeUnavailable, message: "the node is stopping", cause: err}
	case errors.Is(err, blob.ErrMismatch):
		return nil, &apiError{status: http.StatusBadGateway, code: codeDigestInvalid, message: "what the origin sent does not match the digest", cause: err}
	}
	return nil, &apiError{status: http.StatusBadGateway, code: codeUnavailable, message: scrub(err), cause: err}
}

var queryInText = regexp.MustCompile(`\?[^\s"']+`)

// scrub is an error's text without the queries of URLs in it: a presigned query
// is a credential.
func scrub(err error) string {
	return queryInText.ReplaceAllString(err.Error(), "?…")
}
