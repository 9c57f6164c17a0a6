package origin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/limit"
)

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// dialPair dials hops to which a host that the operator named led, and others.
type dialPair struct {
	outside, inside dialFunc
}

// wire sends single requests: it follows no redirect, tries nothing twice and
// solves no challenge.
type wire struct {
	answer  time.Duration // silence before an answer
	stall   time.Duration // silence in the middle of one
	plain   lanePair
	leads   func(*url.URL) bool  // of the guard
	special map[string]hostLanes // by the origin of an endpoint
	metrics *metrics
	limits  []*limit.Bucket // that the bytes of blobs wait for
	// http2Only are origins that do not speak HTTP/1.1.
	http2Only *expiring[string, struct{}]
}

// maxPush bounds one request of a push, which may be a blob of many GB.
const maxPush = 24 * time.Hour

func newWire(cfg Config, dial dialPair, choose proxyFunc, leads func(*url.URL) bool, m *metrics, log *zap.Logger) (*wire, error) {
	special, err := newHostLanes(cfg, dial, choose, log)
	if err != nil {
		return nil, err
	}
	return &wire{
		answer: cfg.AnswerTimeout, stall: cfg.StallTimeout, metrics: m, special: special, leads: leads,
		plain:     newLanePair(cfg, dial, choose, func() *tls.Config { return &tls.Config{} }),
		http2Only: newExpiring[string, struct{}](maxTold),
	}, nil
}

// send sends req as it stands and returns the answer's headers, whatever its
// status. It, or a read of the answer's body, which the caller closes, fails with
// ErrStalled when the origin is silent for longer than w.patience. Where req does
// not say which encodings it takes, it takes none: some origins encode what is
// not asked for as it is. Errors hold no URL.
func (w *wire) send(req *http.Request, r route) (*http.Response, error) {
	answer, stall := w.patience(r)
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(answer, func() { cancel(ErrStalled) })
	resp, err := w.roundTrip(identity(req.WithContext(traced(ctx))), r)
	timer.Stop()
	if err != nil {
		w.metrics.requests.WithLabelValues("error").Inc()
		err = cause(ctx, err)
		cancel(nil)
		if refusesCertificate(err) {
			err = fmt.Errorf("%w; certFile and keyFile under origin.hosts say which client certificate a host is shown", err)
		}
		if errors.Is(err, io.EOF) {
			// To a reader io.EOF would say that all is there.
			err = fmt.Errorf("connection closed without an answer: %w", io.ErrUnexpectedEOF)
		}
		return nil, err
	}
	w.metrics.count(resp.StatusCode)
	body := &watchedBody{body: resp.Body, ctx: ctx, cancel: cancel, timer: timer, first: answer, stall: stall, metrics: w.metrics}
	if r.lane == laneBulk {
		body.limits, body.class = w.limits, limit.ClassOf(ctx)
	}
	resp.Body = body
	return resp, nil
}

// patience is how long the origin may be silent before its answer, and within.
func (w *wire) patience(r route) (answer, stall time.Duration) {
	switch {
	case r.lane == lanePush:
		return maxPush, maxPush
	case r.lane == lanePass:
		return w.answer, w.answer
	case r.resumed:
		return w.stall, w.stall
	}
	return w.answer, w.stall
}

// identity is req, or a copy that asks for the content as it is.
func identity(req *http.Request) *http.Request {
	if _, decided := req.Header["Accept-Encoding"]; decided {
		return req
	}
	out := *req
	if out.Header = req.Header.Clone(); out.Header == nil {
		out.Header = http.Header{}
	}
	out.Header.Set("Accept-Encoding", "identity")
	return &out
}

// encoded tells whether the body of an answer is other bytes than the content.
// "aws-chunked" is left over in object stores from the upload.
func encoded(h http.Header) bool {
	for _, field := range h.Values("Content-Encoding") {
		for coding := range strings.SplitSeq(field, ",") {
			switch strings.ToLower(strings.TrimSpace(coding)) {
			case "", "identity", "aws-chunked":
			default:
				return true
			}
		}
	}
	return false
}

// cause is err, or why ctx ended when that is what made err.
func cause(ctx context.Context, err error) error {
	if why := context.Cause(ctx); why != nil {
		return why
	}
	return err
}

// watchedBody counts bytes, keeps them within limits, and ends a body that stalls.
// The clock runs only while the body is read, so a slow reader or a limit is no stall.
type watchedBody struct {
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer

	first   time.Duration // that it may take to begin; 0 once it has
	stall   time.Duration
	metrics *metrics
	limits  []*limit.Bucket
	class   limit.Class
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.timer.Reset(max(b.first, b.stall))
	n, err := b.body.Read(p)
	b.timer.Stop()
	b.first = 0
	b.metrics.bytes.Add(float64(n))
	if err != nil && err != io.EOF {
		err = cause(b.ctx, err)
	}
	// What is not read stays in the origin's line.
	if len(b.limits) > 0 {
		defer noteLimited(b.ctx, time.Now())
	}
	for _, l := range b.limits {
		if waited := l.Wait(b.ctx, b.class, "", n); waited != nil {
			return n, waited
		}
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.timer.Stop()
	err := b.body.Close()
	b.cancel(nil)
	return err
}

// discard reads what little may be left of a body, so that its connection can
// be used again, and closes it.
func discard(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, 4<<10)
	_ = body.Close()
}
