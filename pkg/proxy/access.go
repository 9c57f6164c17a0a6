package proxy

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// Who may read what. The origin decides, per credential and per place: knowing a
// digest opens nothing, and a right to a digest in one repository opens nothing
// in another. A permission comes from the origin's answer to the client's own
// header, or from a manifest that the origin has granted and that names the
// digest.

// place is where a client says that a digest is kept.
type place struct {
	registry   string
	repository string // or the URL of a KindURL
	kind       origin.Kind
	digest     blob.Digest
}

// grantKey is a place as one credential sees it.
type grantKey struct {
	place
	who credential
}

// grant is what the origin decided, until it is to be asked again.
type grant struct {
	until  time.Time
	denied *answer // nil: allowed
}

// info is what is known of a digest's content at a place.
type info struct {
	size      int64  // in bytes; 0 when unknown
	mediaType string // "" when unknown
	told      bool   // by the origin itself, not by a manifest that names it
}

// question asks for one digest on behalf of one client.
type question struct {
	ref      origin.Ref
	digest   blob.Digest
	who      credential
	header   http.Header // what the origin may see
	upstream Upstream
}

func (q question) place() place {
	if q.ref.Kind == origin.KindURL {
		return place{repository: q.ref.URL, kind: q.ref.Kind, digest: q.digest}
	}
	return place{q.ref.Registry, q.ref.Repository, q.ref.Kind, q.digest}
}

// at is the same question about another digest of the repository.
func (q question) at(kind origin.Kind, d blob.Digest) question {
	q.ref = origin.Ref{Kind: kind, Registry: q.ref.Registry, Repository: q.ref.Repository, Reference: d.String()}
	q.digest = d
	return q
}

// Results of access checks, as the metric's label has them.
const (
	authzPublic  = "public"  // anybody may, as was found for a client without credential
	authzGranted = "granted" // remembered permission
	authzDenied  = "denied"  // remembered refusal
	authzAllowed = "origin_allowed"
	authzRefused = "origin_refused"
	authzError   = "error" // the origin gave no decision
)

// authorize tells whether the client may read the digest at its place. Nil
// answer and nil error: it may. Otherwise the answer is the origin's refusal, to
// be relayed. With fresh the origin is asked in any case.
func (p *Proxy) authorize(ctx context.Context, q question, fresh bool) (info, *answer, error) {
	if !fresh {
		if g, result, ok := p.remembered(q); ok {
			p.metrics.authz.WithLabelValues(result).Inc()
			return p.known(q.place()), g.denied, nil
		}
	}
	got, err := once(ctx, p, q.flight("authorize"), func(ctx context.Context) (decision, error) { return p.ask(ctx, q) })
	switch {
	case err != nil:
		p.metrics.authz.WithLabelValues(authzError).Inc()
	case got.refusal == nil:
		p.metrics.authz.WithLabelValues(authzAllowed).Inc()
	case refusal(got.refusal.status):
		p.metrics.authz.WithLabelValues(authzRefused).Inc()
	default:
		p.metrics.authz.WithLabelValues(authzError).Inc()
	}
	return got.info, got.refusal, err
}

// remembered looks for a decision that still holds.
func (p *Proxy) remembered(q question) (grant, string, bool) {
	now := time.Now()
	at := q.place()
	if g, ok := p.grants.get(grantKey{place: at}); ok && now.Before(g.until) && g.denied == nil {
		return g, authzPublic, true
	}
	g, ok := p.grants.get(grantKey{at, q.who})
	if !ok || !now.Before(g.until) {
		return grant{}, "", false
	}
	if g.denied != nil {
		return g, authzDenied, true
	}
	return g, authzGranted, true
}

// decision is the origin's word on a question.
type decision struct {
	info    info
	refusal *answer
}

// ask puts the question to the origin and remembers the decision.
func (p *Proxy) ask(ctx context.Context, q question) (decision, error) {
	resp, err := q.upstream.Head(ctx, q.ref, q.header)
	if err != nil {
		return decision{}, fmt.Errorf("asking the origin for %s: %w", q.ref, err)
	}
	if noHead(resp.StatusCode) {
		_ = resp.Body.Close()
		header := q.header.Clone()
		header.Set("Range", "bytes=0-0")
		if resp, err = q.upstream.Get(ctx, q.ref, header); err != nil {
			return decision{}, fmt.Errorf("asking the origin for %s: %w", q.ref, err)
		}
	}
	switch {
	case resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent:
		_ = resp.Body.Close()
		i := infoOf(resp, q.ref.Kind)
		p.allow(q, i)
		return decision{info: p.known(q.place())}, nil
	case refusal(resp.StatusCode):
		a := answerOf(resp)
		p.deny(q, a)
		return decision{refusal: a}, nil
	}
	return decision{refusal: answerOf(resp)}, nil
}

// allow remembers that the client may read the digest, and what is known of it.
func (p *Proxy) allow(q question, i info) {
	p.learn(q.place(), i)
	until := time.Now().Add(p.cfg.GrantTTL)
	if exp, ok := expiry(q.header.Get("Authorization")); ok && exp.Before(until) {
		until = exp
	}
	p.grants.put(grantKey{q.place(), q.who}, grant{until: until}, nil)
}

// deny remembers the origin's refusal, for this credential alone.
func (p *Proxy) deny(q question, a *answer) {
	if p.cfg.DenyTTL > 0 {
		p.grants.put(grantKey{q.place(), q.who}, grant{time.Now().Add(p.cfg.DenyTTL), a}, nil)
	}
}

// learn keeps what is known of a digest. The origin's own word wins over that of
// manifests; of two manifests that disagree neither is believed.
func (p *Proxy) learn(at place, i info) {
	p.infos.put(at, i, func(old, next info) info {
		switch {
		case old.told && !next.told:
			return old
		case next.told || old.size == next.size:
			if next.mediaType == "" {
				next.mediaType = old.mediaType
			}
			if next.size == 0 {
				next.size = old.size
			}
			return next
		}
		return info{mediaType: old.mediaType}
	})
}

func (p *Proxy) known(at place) info {
	i, _ := p.infos.get(at)
	return i
}

// flight names the question among those under way. The client's Accept belongs
// to it, because origins answer by it.
func (q question) flight(what string) string {
	return strings.Join([]string{
		what, q.ref.Kind.String(), q.ref.Registry, q.ref.Repository, q.ref.Reference, q.ref.URL, q.digest.String(),
		string(q.who[:]), strings.Join(q.header["Accept"], ","),
	}, "\x00")
}

// refusal tells whether a status is an origin's decision about this credential.
func refusal(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusNotFound
}

// noHead tells whether a status means that the origin does not do HEAD.
func noHead(status int) bool {
	return status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented
}

// infoOf reads an origin's answer that grants the content.
func infoOf(resp *http.Response, kind origin.Kind) info {
	i := info{told: true}
	if kind == origin.KindManifest {
		i.mediaType = mediaType(resp.Header.Get("Content-Type"))
	}
	switch {
	case resp.Header.Get("Content-Encoding") != "":
	case resp.StatusCode == http.StatusPartialContent:
		_, total, _ := strings.Cut(resp.Header.Get("Content-Range"), "/")
		if n, err := strconv.ParseInt(total, 10, 64); err == nil {
			i.size = n
		}
	case resp.ContentLength > 0:
		i.size = resp.ContentLength
	}
	if i.size < 0 || i.size > blob.MaxSize {
		i.size = 0
	}
	return i
}
