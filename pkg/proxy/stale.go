package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// When a registry is down, what it once served to anybody is served from here: by digest,
// and by tag as it was last seen, for Config.StaleTTL. Private content ends with its grant.

// staleHeader tells a client that its registry did not answer (RFC 7234 section 5.5.1).
const (
	staleHeader = "Warning"
	staleText   = `111 damselfly "Revalidation Failed"`
)

// orStale is err, the outcome of asking the origin, unless that did not answer and what the
// client wants can be served all the same.
func (p *Proxy) orStale(err error, w *response, r *http.Request, t target, q question) error {
	if err == nil || p.cfg.StaleTTL < 0 || !p.mayPass(w, r, err) || !silent(err) {
		return err
	}
	at, have, ok := p.stale(q)
	if !ok {
		return err
	}
	w.Header().Set(staleHeader, staleText)
	served := p.serveStale(w, r, at, have)
	if served != nil {
		w.Header().Del(staleHeader)
		return errors.Join(err, served)
	}
	p.metrics.stale.Inc()
	if !p.first(t.registry + " stale") {
		return nil
	}
	p.log.Warn("a registry does not answer; what it last served to anybody is served from here",
		zap.String("registry", t.registry), zap.Stringer("ref", t.ref()), zap.Error(err))
	return nil
}

// silent tells whether err says that the origin does not answer anybody: it cannot be found
// or connected to, or says nothing. What a client's own request can bring about is not that.
func silent(err error) bool {
	var broken *net.OpError
	var unknown *net.DNSError
	switch {
	case errors.Is(err, origin.ErrForbiddenAddress), errors.Is(err, origin.ErrUnlistedHost), errors.Is(err, origin.ErrRedirect):
		return false
	case errors.As(err, &unknown), errors.As(err, &broken) && broken.Op == "dial":
		return true
	}
	return errors.Is(err, origin.ErrStalled) || errors.Is(err, context.DeadlineExceeded)
}

// stale is what q's client may have of what was seen last.
func (p *Proxy) stale(q question) (question, permission, bool) {
	if q.digest == "" {
		got, ok := p.last.get(keyOf(q))
		if !ok {
			anybody := keyOf(q)
			anybody.who = credential{}
			got, ok = p.last.get(anybody)
		}
		if !ok || time.Now().After(got.until) {
			return q, permission{}, false
		}
		q = q.at(origin.KindManifest, got.digest)
	}
	if _, ok := p.granted(q); ok {
		return q, permission{info: p.known(q.place())}, true
	}
	now := time.Now()
	g, ok := p.public.get(q.place())
	told := ok && now.Before(g.told)
	return q, permission{p.known(q.place()), !told}, told || ok && now.Before(g.named) || p.named(q)
}

func (p *Proxy) serveStale(w *response, r *http.Request, q question, have permission) error {
	if r.Method == http.MethodHead {
		return p.headStale(w, q, have)
	}
	if q.ref.Kind == origin.KindManifest {
		have.told, have.sent = true, true
		return p.sendManifest(w, r, q, have)
	}
	return p.sendRegistryBlob(w, r, q, have)
}

func (p *Proxy) headStale(w *response, q question, i permission) error {
	if i.named && !p.tasks.Served(q.ref, q.digest) {
		return &unconfirmed{whyHead}
	}
	if i.size <= 0 {
		return errors.New("the size is not known")
	}
	h := w.Header()
	h.Set(apiVersionHeader, apiVersion)
	h.Set("Content-Type", i.mediaType)
	if i.mediaType == "" {
		h.Set("Content-Type", typeOctets)
	}
	nameContent(h, q.digest)
	h.Set("Content-Length", strconv.FormatInt(i.size, 10))
	w.WriteHeader(http.StatusOK)
	return nil
}
