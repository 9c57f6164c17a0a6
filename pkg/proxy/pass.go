package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// The pass-through. What a client can pull directly it can pull through this node: on any
// doubt before the first byte the client's own request goes to the origin as it stands, and
// the origin's answer comes back unread. Every step may choose it. What goes past and has
// the digest that names it is kept all the same.

// reason is why the client's own request went to the origin, as the metric's label has it.
type reason string

const (
	// whyUnknown is no doubt: a tag, or what only the origin can tell.
	whyUnknown reason = "unknown"
	// whyHead: HEAD, and a GET of one byte, did not open what GET may.
	whyHead reason = "head"
	// whySlow: the origin did not answer HEAD in time.
	whySlow reason = "slow"
	// whySize: the content has another size than HEAD or a manifest told, or none is told.
	whySize reason = "size"
	// whyDigest: the origin's bytes do not have the digest, or are encoded.
	whyDigest reason = "digest"
	// whyType: documents disagree on a manifest's media type.
	whyType reason = "type"
	// whyLarge: a manifest is larger than those that are kept.
	whyLarge reason = "large"
	// whyRefused: the origin refused the read for the cluster, or makes it wait.
	whyRefused reason = "refused"
	// whyProtocol: ranges or redirects of the origin are not understood.
	whyProtocol reason = "protocol"
	// whyFailed: the content could not be read for another reason.
	whyFailed reason = "failed"
)

func reasons() []reason {
	return []reason{whyUnknown, whyHead, whySlow, whySize, whyDigest, whyType, whyLarge, whyRefused, whyProtocol, whyFailed}
}

// advice is what an operator can do about a reason, "" where nothing needs doing.
func (r reason) advice() string {
	switch r {
	case whyHead:
		return "the registry does not answer HEAD as it answers GET; let what stands in front of it pass HEAD"
	case whySlow:
		return "the registry is slow to answer HEAD; each pull that finds no permission waits for it"
	case whySize:
		return "lengths that the registry or its manifests tell are wrong; what fits its digest is kept after one pull"
	case whyDigest:
		return "bytes do not have the digest that names them, so nothing is kept: schema 1 manifests, or a proxy that changes content"
	case whyType:
		return "an index and the manifest that it names disagree on the media type"
	case whyLarge:
		return "a manifest is larger than 1 MiB, so it is read from the registry each time"
	case whyRefused:
		return "the registry refuses reads of this node or its seed that it may grant to the client; look at credentials and rate limits"
	case whyProtocol:
		return "the registry's ranges or redirects are not understood"
	case whyFailed:
		return "reads for the cluster failed; the debug log has each"
	}
	return ""
}

// reasonOf is why content could not be opened.
func reasonOf(err error) reason {
	var status *origin.StatusError
	var api *apiError
	var doubt *unconfirmed
	switch {
	case errors.As(err, &doubt):
		return doubt.why
	case errors.As(err, &status):
		return whyRefused
	case errors.As(err, &api) && api.code == codeSizeInvalid:
		return whyLarge
	case errors.Is(err, origin.ErrSize):
		return whySize
	case errors.Is(err, blob.ErrMismatch):
		return whyDigest
	case errors.Is(err, origin.ErrProtocol), errors.Is(err, origin.ErrNoRange), errors.Is(err, origin.ErrRedirect):
		return whyProtocol
	}
	return whyFailed
}

// tells takes note of whether what this registry sent as q has the digest. Bytes that do
// not will not soon: they are not read for the cluster again.
func (p *Proxy) tells(q question, fits bool) {
	if fits {
		p.unfit.remove(q.place())
		return
	}
	p.unfit.put(q.place(), time.Now().Add(p.cfg.GrantTTL), nil)
}

// maxPassed bounds what is remembered as told.
const maxPassed = 256

// note counts what is passed, and says so once for a registry and reason.
func (p *Proxy) note(t target, why reason) {
	p.metrics.passthrough.WithLabelValues(string(why)).Inc()
	if why == whyUnknown {
		return
	}
	if !p.first(t.registry + " " + string(why)) {
		return
	}
	p.log.Warn("client's requests go to the registry unread; this is told once",
		zap.String("registry", t.registry), zap.String("reason", string(why)), zap.String("todo", why.advice()), zap.Stringer("ref", t.ref()))
}

// first tells whether it is called with key for the first time in long.
func (p *Proxy) first(key string) bool {
	_, known := p.passed.get(key)
	p.passed.put(key, struct{}{}, nil)
	return !known
}

// pass answers with what the origin says to the client's own request. Nothing was
// written before.
func (p *Proxy) pass(w *response, r *http.Request, t target, q question, why reason) error {
	p.note(t, why)
	if q.ref.Kind == origin.KindManifest && r.Method == http.MethodGet && r.Header.Get("Range") == "" && why != whyLarge {
		return p.passManifest(w, r, t, q)
	}
	resp, err := q.upstream.Pass(r.Context(), r.Method, q.ref, p.ownHeader(r.Header))
	if err != nil {
		return fmt.Errorf("asking the origin for %s: %w", q.ref, err)
	}
	defer resp.Body.Close()
	p.noteLimits(t.registry, resp.Header)
	var kept io.WriteCloser
	if q.digest != "" {
		kept = p.heed(r, q, resp)
	}
	w.result = resultPassed
	if resp.StatusCode >= 400 {
		w.result = resultOf(resp.StatusCode)
	}
	h := w.Header()
	copyEndToEnd(h, resp.Header)
	if resp.ContentLength >= 0 {
		h.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	w.localize, w.flushHeader = t.localizeHeader, true
	w.WriteHeader(resp.StatusCode)
	if r.Method == http.MethodHead {
		return nil
	}
	body := &passing{Reader: resp.Body, copy: kept}
	if _, err := w.ReadFrom(body); err != nil {
		body.drop()
		if w.err != nil {
			return fmt.Errorf("%w: %w", errClientGone, w.err)
		}
		return fmt.Errorf("passing on %s: %w", q.ref, err)
	}
	if kept != nil && body.copy != nil {
		if err := kept.Close(); err == nil || errors.Is(err, blob.ErrMismatch) {
			p.tells(q, err == nil)
		}
	}
	return nil
}

// heed learns from the origin's answer to a client's own request about a digest. It returns
// where to write the content to, if that may be worth keeping.
func (p *Proxy) heed(r *http.Request, q question, resp *http.Response) io.WriteCloser {
	switch {
	case refusal(resp.StatusCode) && r.Method == http.MethodGet:
		p.disallow(q)
	case opens(q, resp):
		p.allow(q, infoOf(resp, q.ref.Kind))
	}
	if resp.StatusCode != http.StatusOK || r.Method != http.MethodGet || resp.Header.Get("Content-Encoding") != "" {
		return nil
	}
	return p.tasks.Keep(q.ref, q.digest, resp.ContentLength)
}

// passing is a body on its way to a client, and to who keeps it.
type passing struct {
	io.Reader
	copy io.WriteCloser // nil: nobody
}

func (b *passing) Read(buf []byte) (int, error) {
	n, err := b.Reader.Read(buf)
	if b.copy != nil && n > 0 {
		if _, werr := b.copy.Write(buf[:n]); werr != nil {
			b.drop()
		}
	}
	return n, err
}

// drop gives up keeping: a Close would take what came for the whole.
func (b *passing) drop() {
	if d, ok := b.copy.(interface{ Discard() }); ok {
		d.Discard()
	}
	b.copy = nil
}

// passedManifest is the origin's answer to a client's GET of a manifest.
type passedManifest struct {
	answer *answer
	// digest is that of the body where it is what was asked for; "" where it is not, or
	// where it cannot be known.
	digest blob.Digest
	info   info
	large  bool // more than is kept: each client asks by itself
}

// passManifest is pass for a whole manifest. The request is made once for all clients that
// ask the same at a time, and lasts although they go: registries that fetch on demand take
// minutes, and one that is hung up on begins its work anew.
func (p *Proxy) passManifest(w *response, r *http.Request, t target, q question) error {
	own := p.ownHeader(r.Header)
	got, err := once(r.Context(), p, q.flight("pass")+p.digestOf(own), func(ctx context.Context) (passedManifest, error) {
		return p.fetchManifest(ctx, t, q, own)
	})
	switch {
	case err != nil:
		return err
	case got.large:
		return p.pass(w, r, t, q, whyLarge)
	}
	w.result = resultPassed
	if got.answer.status >= 400 {
		w.result = resultOf(got.answer.status)
	}
	w.localize = t.localizeHeader
	got.answer.send(w)
	return nil
}

func (p *Proxy) fetchManifest(ctx context.Context, t target, q question, own http.Header) (passedManifest, error) {
	resp, err := q.upstream.Pass(ctx, http.MethodGet, q.ref, own)
	if err != nil {
		return passedManifest{}, fmt.Errorf("asking the origin for %s: %w", q.ref, err)
	}
	defer resp.Body.Close()
	p.noteLimits(t.registry, resp.Header)
	if resp.ContentLength > maxManifest {
		return passedManifest{large: true}, nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	switch {
	case err != nil:
		return passedManifest{}, fmt.Errorf("reading %s at the origin: %w", q.ref, err)
	case len(body) > maxManifest:
		return passedManifest{large: true}, nil
	}
	got := passedManifest{answer: &answer{status: resp.StatusCode, header: resp.Header, body: body}}
	switch {
	case refusal(resp.StatusCode) && q.digest != "":
		p.disallow(q)
	case resp.StatusCode == http.StatusOK && resp.Header.Get("Content-Encoding") == "":
		p.adopt(t, q, resp, &got)
	}
	return got, nil
}

// adopt takes a manifest that the origin has sent for what it is: its bytes tell the digest,
// whatever headers say.
func (p *Proxy) adopt(t target, q question, resp *http.Response, got *passedManifest) {
	body := got.answer.body
	d := q.digest
	if named, err := blob.ParseDigest(resp.Header.Get(digestHeader)); d == "" && err == nil {
		d = named
	}
	switch {
	case q.digest != "" && !d.Matches(body):
		p.note(t, whyDigest)
		p.tells(q, false)
		return
	case d == "" || !d.Matches(body):
		d = blob.FromBytes(body)
	}
	at := q.at(origin.KindManifest, d)
	got.digest, got.info = d, info{size: int64(len(body)), mediaType: mediaType(resp.Header.Get("Content-Type")), told: true, sent: true}
	// What a tag is sent as says little of what the digest is sent as.
	p.allow(at, info{size: got.info.size, mediaType: got.info.mediaType, told: true, sent: q.digest != ""})
	p.admit(at, body, got.info.mediaType)
	if q.digest == "" {
		p.noteTag(q, got.digest, got.info)
	}
	p.tells(at, true)
	if kept := p.tasks.Keep(at.ref, d, int64(len(body))); kept != nil {
		if _, err := io.Copy(kept, bytes.NewReader(body)); err == nil {
			_ = kept.Close()
		}
	}
}

// digestOf tells apart clients' headers that an origin may answer by.
func (p *Proxy) digestOf(h http.Header) string {
	var keys []string
	for k := range h {
		if k != viaHeader && !origin.Traces(k) {
			keys = append(keys, k)
		}
	}
	c := p.credentialOf(h, keys...)
	return string(c[:])
}

// send sends the answer as it came.
func (a *answer) send(w *response) {
	h := w.Header()
	copyEndToEnd(h, a.header)
	if a.status != http.StatusNotModified && a.status != http.StatusNoContent {
		h.Set("Content-Length", strconv.Itoa(len(a.body)))
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body)
}

// passHead answers a client's own HEAD, and takes what it tells as hints.
func (p *Proxy) passHead(w *response, r *http.Request, t target, q question) error {
	got, err := p.head(r.Context(), t, q, p.ownHeader(r.Header))
	if err != nil {
		return err
	}
	w.localize = t.localizeHeader
	h := w.Header()
	copyEndToEnd(h, got.header)
	if got.length >= 0 {
		h.Set("Content-Length", strconv.FormatInt(got.length, 10))
	}
	w.WriteHeader(got.status)
	return nil
}

// headed is an origin's answer to HEAD.
type headed struct {
	status int
	header http.Header
	length int64 // -1 where it told none
	until  time.Time
}

// head asks by HEAD. Equal questions share an answer, for Config.TagTTL if it is a good one
// about a tag.
func (p *Proxy) head(ctx context.Context, t target, q question, own http.Header) (headed, error) {
	key := tagKey{q.ref.Registry, q.ref.Repository, q.ref.Reference, q.who, p.digestOf(own) + strconv.FormatBool(q.solved)}
	tag := q.ref.Kind == origin.KindManifest && q.digest == ""
	if tag {
		if got, ok := p.heads.get(key); ok && time.Now().Before(got.until) {
			return got, nil
		}
	}
	return once(ctx, p, q.flight("head")+key.header, func(ctx context.Context) (headed, error) {
		got, err := p.askHead(ctx, t, q, own)
		if err != nil || got.status != http.StatusOK {
			return got, err
		}
		if tag && p.cfg.TagTTL > 0 {
			p.heads.put(key, got, nil)
		}
		return got, nil
	})
}

// askHead puts a client's HEAD to the origin, and learns from a good answer.
func (p *Proxy) askHead(ctx context.Context, t target, q question, own http.Header) (headed, error) {
	resp, err := q.upstream.Pass(ctx, http.MethodHead, q.ref, own)
	if err == nil && resp.StatusCode == http.StatusTooManyRequests && q.ref.Kind == origin.KindManifest {
		_ = resp.Body.Close()
		if got, ok := p.headByGet(ctx, t, q, own); ok {
			return got, nil
		}
		resp, err = q.upstream.Head(ctx, q.ref, own) // which waits: clients ask again at once, or give up
	}
	if err != nil {
		return headed{}, fmt.Errorf("asking the origin for %s: %w", q.ref, err)
	}
	_ = resp.Body.Close()
	p.noteLimits(t.registry, resp.Header)
	got := headed{status: resp.StatusCode, header: resp.Header, length: resp.ContentLength, until: time.Now().Add(p.cfg.TagTTL)}
	if got.status != http.StatusOK {
		return got, nil
	}
	i := infoOf(resp, q.ref.Kind)
	switch d, err := blob.ParseDigest(resp.Header.Get(digestHeader)); {
	case !opens(q, resp):
	case q.digest != "":
		p.allow(q, i)
	case err == nil:
		p.allow(q.at(origin.KindManifest, d), i)
		p.noteLast(q, resolved{digest: d, info: i})
	}
	return got, nil
}

// headByGet answers a HEAD that is limited by a GET that may not be.
func (p *Proxy) headByGet(ctx context.Context, t target, q question, own http.Header) (headed, bool) {
	if p.countsGets(t.registry) {
		return headed{}, false // nor would GET be answered
	}
	got, err := p.fetchManifest(ctx, t, q, own)
	if err != nil || got.large || got.answer.status != http.StatusOK {
		return headed{}, false
	}
	p.note(t, whyHead)
	h := got.answer.header.Clone()
	if h.Get(digestHeader) == "" && got.digest != "" {
		h.Set(digestHeader, got.digest.String())
	}
	return headed{status: http.StatusOK, header: h, length: int64(len(got.answer.body)), until: time.Now().Add(p.cfg.TagTTL)}, true
}

// acceptOf is a client's Accept as part of a key.
func acceptOf(h http.Header) string { return strings.Join(h["Accept"], ",") }
