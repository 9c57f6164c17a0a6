package proxy

import (
	"errors"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// blobPath is the local end point of dfget.
const blobPath = "/damselfly/v1/blob"

// face is the handler of one face: it guards, logs and counts around serve.
func (p *Proxy) face(f face) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		start := time.Now()
		w := newResponse(rw, p.cfg.WriteTimeout, &p.buffers)
		w.extend()
		t := target{}
		defer func() {
			v := recover()
			p.account(w, r, t, time.Since(start), v)
			if v != nil && (w.status != 0 || v == http.ErrAbortHandler) {
				panic(http.ErrAbortHandler) // the client must not take what it has for whole
			}
			if v != nil {
				errInternal().write(w)
			}
		}()
		err := p.serve(f, w, r, &t)
		p.conclude(w, r, t, err)
	})
}

// conclude turns the error of a request into a status, or, when the answer has
// begun, into a connection that breaks.
func (p *Proxy) conclude(w *response, r *http.Request, t target, err error) {
	switch {
	case err == nil:
	case r.Context().Err() != nil || errors.Is(err, errClientGone):
		w.result = resultAborted
		panic(http.ErrAbortHandler)
	case w.status != 0:
		w.result = resultShort
		p.log.Warn("response cut short", zap.Stringer("ref", t.ref()), zap.Int64("sent", w.written), zap.String("error", scrub(err)))
		panic(http.ErrAbortHandler)
	default:
		a, e := errOf(err)
		if a != nil {
			w.result = resultOf(a.status)
			a.relay(w, t.op)
			return
		}
		w.result = resultOf(e.status)
		if errors.Is(err, origin.ErrForbiddenAddress) && p.first(t.registry+" address") {
			p.log.Warn("a registry leads to an address that origins may not have; clients go on to it by themselves. If it is meant, list it under origin.hosts, on the seeds too",
				zap.String("registry", t.registry), zap.String("error", scrub(err)))
		}
		if e.cause != nil {
			p.log.Info("request failed", zap.Stringer("ref", t.ref()), zap.Int("status", e.status), zap.String("error", scrub(e.cause)))
		}
		e.write(w)
	}
}

// account logs and counts a request that is over; v is what it panicked with.
func (p *Proxy) account(w *response, r *http.Request, t target, took time.Duration, v any) {
	if v != nil && v != http.ErrAbortHandler {
		w.result = resultFailed
		p.log.Error("panic while serving a request", zap.Any("panic", v), zap.String("method", r.Method),
			zap.String("path", r.URL.Path), zap.ByteString("stack", debug.Stack()))
	}
	if kind := kindOf(t.op); kind != "" && r.Method == http.MethodGet && w.result != "" {
		p.metrics.pulls.WithLabelValues(w.result).Inc()
		if w.result == resultHit || w.result == resultMiss || w.result == resultPassed {
			p.metrics.duration.WithLabelValues(kind).Observe(took.Seconds())
		}
	}
	p.log.Debug("request", zap.String("method", r.Method), zap.String("path", r.URL.Path), zap.String("registry", t.registry),
		zap.Int("status", w.status), zap.Int64("bytes", w.written), zap.Duration("took", took), zap.String("result", w.result),
		zap.String("client", r.RemoteAddr), zap.String("userAgent", r.UserAgent()))
}

// kindOf is the metric's label for a pull, "" where the request is none.
func kindOf(op operation) string {
	switch op {
	case opManifest:
		return "manifest"
	case opBlob:
		return "blob"
	}
	return ""
}

// serve routes a request and fills t in. It returns what went wrong and was not
// answered yet.
func (p *Proxy) serve(f face, w *response, r *http.Request, t *target) error {
	if p.looped(r.Header) {
		return &apiError{status: http.StatusLoopDetected, code: codeUnsupported,
			message: "the request came from this proxy: the upstream leads back here; check the origin's endpoints and the client's mirrors"}
	}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	if read && (r.ContentLength != 0 || len(r.TransferEncoding) > 0) {
		w.Header().Set("Connection", "close")
		return &apiError{status: http.StatusBadRequest, code: codeUnsupported, message: "a request to read must have no body"}
	}
	if r.URL.Path == blobPath && f.registry == "" {
		t.op = opBlob
		t.url = origin.Redact(r.URL.Query().Get("url"))
		return p.serveURL(w, r)
	}
	parsed, bad := f.parse(r.Method, r.URL)
	*t = parsed
	if bad != nil {
		return bad
	}
	switch t.op {
	case opPing:
		return p.servePing(w, r, *t)
	case opForward:
		return p.forward(w, r, *t)
	case opPassThrough:
		out := r.Clone(r.Context())
		out.URL.Scheme, out.URL.Host = f.server.Scheme, f.server.Host
		p.plain.ServeHTTP(w, out)
		return nil
	case opTags, opReferrers:
		if r.Method == http.MethodHead {
			return p.forward(w, r, *t)
		}
	}
	q := p.question(r, *t)
	switch t.op {
	case opManifest:
		return p.serveManifest(w, r, *t, q)
	case opBlob:
		return p.serveBlob(w, r, *t, q)
	}
	q.ref.Query = t.query(r.URL)
	return p.pass(w, r, *t, q, whyUnknown)
}

// question is what a client's request asks of the origin.
func (p *Proxy) question(r *http.Request, t target) question {
	header := p.originHeader(r.Header)
	upstream := p.upstreamFor(r, t)
	return question{
		ref: t.ref(), digest: t.digest, who: p.whoSends(header), header: header, upstream: upstream, solved: upstream != p.upstream,
	}
}

func (p *Proxy) upstreamFor(r *http.Request, t target) Upstream {
	if t.form == formPrefix && p.cfg.Solver != nil && r.Header.Get("Authorization") == "" {
		return p.cfg.Solver
	}
	return p.upstream
}

// servePing answers GET /v2/ (end-1). Where the registry is known it is the
// registry's ping, because Docker, podman and skopeo take the challenge for
// everything that follows from there; else all that can be said is that this
// speaks the API.
func (p *Proxy) servePing(w *response, r *http.Request, t target) error {
	if t.form != formDefault {
		return p.forward(w, r, t)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return errMethod(r.Method)
	}
	h := w.Header()
	h.Set(apiVersionHeader, apiVersion)
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", "2")
	_, err := w.Write([]byte("{}"))
	if err != nil {
		return errClientGone
	}
	return nil
}

func errMethod(method string) *apiError {
	return &apiError{status: http.StatusMethodNotAllowed, code: codeUnsupported, message: "method " + clip(method) + " is not supported here"}
}

// forward lets the origin answer: pushes, deletes, and whatever this face does
// not know.
func (p *Proxy) forward(w *response, r *http.Request, t target) error {
	switch r.Method {
	case http.MethodConnect, http.MethodTrace:
		return errMethod(r.Method)
	case http.MethodGet, http.MethodHead, http.MethodOptions:
	default:
		defer p.forgetWritten(t)
	}
	out := r.Clone(r.Context())
	if t.prefix != "" {
		out.URL.Path = t.path
		out.URL.RawPath = ""
		if raw, ok := strings.CutPrefix(r.URL.RawPath, "/v2/"+t.prefix); ok {
			out.URL.RawPath = "/v2" + raw
		}
	}
	out.URL.RawQuery = t.query(r.URL)
	if from := r.URL.Query().Get("from"); t.prefix != "" && strings.HasPrefix(from, t.prefix+"/") {
		// A mount names its other repository as the client spells it (end-11).
		query := out.URL.Query()
		query.Set("from", strings.TrimPrefix(from, t.prefix+"/"))
		out.URL.RawQuery = query.Encode()
	}
	out.Header.Set(viaHeader, p.via(r.Header))
	w.localize = t.localizeHeader
	return p.upstreamFor(r, t).Forward(w, out, t.registry)
}

// forgetWritten drops what is believed of a repository that was written to.
func (p *Proxy) forgetWritten(t target) {
	rest := strings.TrimPrefix(t.path, "/v2/")
	for _, noun := range []string{"/manifests/", "/blobs/"} {
		if i := strings.LastIndex(rest, noun); i > 0 {
			p.forgetTags(t.registry, rest[:i])
			p.public.drop(func(at place) bool { return at.registry == t.registry && at.repository == rest[:i] })
			p.last.drop(func(k tagKey) bool { return k.registry == t.registry && k.repository == rest[:i] })
			p.grants.drop(func(k grantKey) bool {
				return k.registry == t.registry && k.repository == rest[:i] && k.kind != origin.KindURL
			})
		}
	}
}

func clip(s string) string {
	if len(s) > 160 {
		return s[:160] + "…"
	}
	return s
}
