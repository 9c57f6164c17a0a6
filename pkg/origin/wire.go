package origin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/limit"
)

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// wire sends single requests: it follows no redirect, tries nothing twice and
// solves no challenge.
type wire struct {
	stall   time.Duration
	plain   lanes
	special map[string]hostLanes // by the origin of an endpoint
	metrics *metrics
	limits  []*limit.Bucket // that the bytes of blobs wait for
	// http2Only are origins that do not speak HTTP/1.1.
	http2Only *expiring[string, struct{}]
}

const (
	// maxPush bounds one request of a push, which may be a blob of many GB.
	maxPush = 24 * time.Hour
	// maxPass bounds the silence of an origin that a client asks.
	maxPass = 5 * time.Minute
)

func newWire(cfg Config, dial dialFunc, choose proxyFunc, m *metrics, log *zap.Logger) (*wire, error) {
	special, err := newHostLanes(cfg, dial, choose, log)
	if err != nil {
		return nil, err
	}
	return &wire{
		stall: cfg.StallTimeout, metrics: m, special: special,
		plain:     newLanes(cfg, dial, choose, &tls.Config{}),
		http2Only: newExpiring[string, struct{}](maxTold),
	}, nil
}

// send sends req as it stands and returns the answer's headers, whatever its
// status. It, or a read of the answer's body, which the caller closes, fails with
// ErrStalled when the origin is silent for w.stall. Errors hold no URL.
func (w *wire) send(req *http.Request, r route) (*http.Response, error) {
	stall := w.stall
	switch r.lane {
	case lanePush:
		stall = maxPush
	case lanePass:
		stall = maxPass
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(stall, func() { cancel(ErrStalled) })
	resp, err := w.roundTrip(req.WithContext(ctx), r)
	timer.Stop()
	if err != nil {
		w.metrics.requests.WithLabelValues("error").Inc()
		err = cause(ctx, err)
		cancel(nil)
		if errors.Is(err, io.EOF) {
			// To a reader io.EOF would say that all is there.
			err = fmt.Errorf("connection closed without an answer: %w", io.ErrUnexpectedEOF)
		}
		return nil, err
	}
	w.metrics.count(resp.StatusCode)
	body := &watchedBody{body: resp.Body, ctx: ctx, cancel: cancel, timer: timer, stall: stall, metrics: w.metrics}
	if r.lane == laneBulk {
		body.limits, body.class = w.limits, limit.ClassOf(ctx)
	}
	resp.Body = body
	return resp, nil
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

	stall   time.Duration
	metrics *metrics
	limits  []*limit.Bucket
	class   limit.Class
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall)
	n, err := b.body.Read(p)
	b.timer.Stop()
	b.metrics.bytes.Add(float64(n))
	if err != nil && err != io.EOF {
		err = cause(b.ctx, err)
	}
	// What is not read stays in the origin's line.
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
