package proxy

import (
	"context"
	"errors"
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
// header; or from a manifest that the origin has granted and that names the digest,
// where the origin is known to keep it in that repository: a manifest's word alone is
// that of whoever pushed it. Where there is no permission, the client's own request
// goes to the origin.

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

// info is what is known of a digest's content at a place: hints, until bytes have
// proven them.
type info struct {
	size      int64  // in bytes; 0 when unknown
	mediaType string // "" when unknown
	told      bool   // by the origin itself, not by a manifest that names it
	sent      bool   // with the content, in answer to GET
}

// question asks for one digest or tag on behalf of one client.
type question struct {
	ref      origin.Ref
	digest   blob.Digest // "" of a tag
	who      credential
	header   http.Header // what the origin sees when we ask by ourselves
	upstream Upstream
	solved   bool // the upstream answers challenges for the client
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
	authzAllowed = "origin_allowed"
	authzRefused = "origin_refused"
	authzError   = "error" // the origin gave no decision
)

// hintPatience is how long the origin's word by HEAD is waited for, where the client
// asked by GET. A client shall not wait for both.
const hintPatience = 300 * time.Millisecond

// permission is what permits a client to be given content from here.
type permission struct {
	info
	// named: only by the word of a manifest that names the content. Before any of it is
	// given out, confirm must say that the registry keeps it there.
	named bool
}

// permit tells whether the client of q, which names a digest, may be given its content
// from here. Where it may not, why says for what reason the client's own request is the
// origin's to answer.
func (p *Proxy) permit(ctx context.Context, q question) (have permission, why reason) {
	result, told := p.granted(q)
	if named := !told && p.named(q); told || named {
		p.metrics.authz.WithLabelValues(result).Inc()
		if until, ok := p.unfit.get(q.place()); ok && time.Now().Before(until) {
			return permission{}, whyDigest
		}
		return permission{p.known(q.place()), named}, ""
	}
	if q.ref.Kind == origin.KindManifest && !p.countsGets(q.ref.Registry) {
		return permission{}, whyUnknown // one GET tells more than HEAD and costs the same
	}
	if why := p.asked(ctx, q); why != "" {
		return permission{}, why
	}
	return permission{info: p.known(q.place())}, ""
}

// asked asks the origin whether the client may read what q names; "" is yes.
func (p *Proxy) asked(ctx context.Context, q question) (why reason) {
	wait, cancel := context.WithTimeout(ctx, hintPatience)
	defer cancel()
	allowed, err := once(wait, p, q.flight("permit"), func(ctx context.Context) (bool, error) { return p.hint(ctx, q) })
	switch {
	case err == nil && allowed:
		p.metrics.authz.WithLabelValues(authzAllowed).Inc()
		return ""
	case err == nil:
		p.metrics.authz.WithLabelValues(authzRefused).Inc()
		return whyHead
	}
	p.metrics.authz.WithLabelValues(authzError).Inc()
	if wait.Err() == nil {
		return whyHead
	}
	if ctx.Err() == nil && p.base.Err() == nil {
		p.mistrustHead(q.ref.Registry)
	}
	return whySlow
}

// mistrustHead has a registry not be asked by HEAD for a while.
func (p *Proxy) mistrustHead(registry string) {
	p.headless.put(registry, time.Now().Add(p.cfg.GrantTTL), nil)
}

// hint asks the origin by HEAD, and for a blob that HEAD does not open by a GET of one
// byte, whether the client may read, and remembers a yes. A no is nothing to go by: only
// the client's own GET tells.
func (p *Proxy) hint(ctx context.Context, q question) (bool, error) {
	until, known := p.headless.get(q.ref.Registry)
	if q.ref.Kind != origin.KindBlob || !known || time.Now().After(until) {
		resp, err := q.upstream.Head(ctx, q.ref, q.header)
		if err != nil && q.ref.Kind != origin.KindBlob {
			return false, err
		}
		if err == nil {
			_ = resp.Body.Close()
			if opens(q, resp) {
				p.allow(q, infoOf(resp, q.ref.Kind))
				return true, nil
			}
			if q.ref.Kind != origin.KindBlob || resp.StatusCode == http.StatusUnauthorized && q.who == (credential{}) {
				return false, nil
			}
		}
	}
	return p.hintByByte(ctx, q)
}

// hintByByte is hint by a GET of one byte. Where that opens what HEAD did not, HEAD is not
// asked again for a while.
func (p *Proxy) hintByByte(ctx context.Context, q question) (bool, error) {
	header := q.header.Clone()
	header.Set("Range", "bytes=0-0")
	resp, err := q.upstream.Get(ctx, q.ref, header)
	if err != nil {
		return false, err
	}
	_ = resp.Body.Close()
	if !opens(q, resp) {
		return false, nil
	}
	p.mistrustHead(q.ref.Registry)
	p.allow(q, infoOf(resp, q.ref.Kind))
	return true, nil
}

// learn keeps what is known of a digest. The origin's own word wins over that of
// manifests; of two manifests that disagree neither is believed.
func (p *Proxy) learn(at place, i info) {
	p.infos.put(at, i, func(old, next info) info {
		switch {
		case old.told && !next.told, old.sent && !next.sent:
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
		string(q.who[:]), strings.Join(q.header["Accept"], ","), strconv.FormatBool(q.solved),
	}, "\x00")
}

// refusal tells whether a status is an origin's decision about this credential.
func refusal(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusNotFound
}

// opens tells whether an answer of the origin says that the client may read what q names. A
// page to log in at is no content, and another digest is other content.
func opens(q question, resp *http.Response) bool {
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		return false
	}
	switch mediaType(resp.Header.Get("Content-Type")) {
	case "text/html", "application/xhtml+xml":
		return false
	}
	named, err := blob.ParseDigest(resp.Header.Get(digestHeader))
	return q.digest == "" || err != nil || named == q.digest
}

// infoOf reads an origin's answer that grants the content.
func infoOf(resp *http.Response, kind origin.Kind) info {
	i := info{told: true, sent: resp.Request == nil || resp.Request.Method == http.MethodGet}
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

// countsGets tells whether a registry counts GETs of manifests against a limit, as Docker
// Hub does, and HEADs not. There HEAD is asked where others are asked by GET.
func (p *Proxy) countsGets(registry string) bool {
	if registry == dockerHub {
		return true
	}
	_, ok := p.counting.get(registry)
	return ok
}

// noteLimits notes by an answer's header that its registry counts.
func (p *Proxy) noteLimits(registry string, h http.Header) {
	if h.Get("Ratelimit-Limit") != "" || h.Get("Ratelimit-Remaining") != "" {
		p.counting.put(registry, struct{}{}, nil)
	}
}

// sizeTold is the size that the origin told in an answer to GET, where err says that it is
// another one than was expected.
func sizeTold(err error) (int64, bool) {
	var other *origin.SizeError
	if !errors.As(err, &other) || other.Size <= 0 || other.Size > blob.MaxSize {
		return 0, false
	}
	return other.Size, true
}
