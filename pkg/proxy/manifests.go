package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// serveManifest answers GET and HEAD of a manifest. What the client may have by digest
// comes through Tasks, so that a cluster GETs it once; all else is the origin's to tell.
func (p *Proxy) serveManifest(w *response, r *http.Request, t target, q question) error {
	if r.Method == http.MethodHead {
		return p.orStale(p.passHead(w, r, t, q), w, r, t, q)
	}
	why := whyUnknown
	if at, tagged, ok := p.chosen(r.Context(), t, q); ok {
		var have permission
		if have, why = p.permit(r.Context(), at); why == "" {
			if tagged.sent {
				have.info = tagged
			}
			err := p.sendManifest(w, r, at, have)
			if err == nil || !p.mayPass(w, r, err) {
				return err
			}
			p.forgetTags(t.registry, t.repository) // it may have moved or gone since
			why = reasonOf(err)
			if doubt := (*typeDoubt)(nil); errors.As(err, &doubt) {
				why = whyType
			}
		}
	}
	return p.orStale(p.pass(w, r, t, q, why), w, r, t, q)
}

// chosen is the manifest that a request means by its digest: it names one, or a tag that
// is known to be one, and as what.
func (p *Proxy) chosen(ctx context.Context, t target, q question) (question, info, bool) {
	if q.digest != "" {
		return q, info{}, true
	}
	got, ok := p.resolve(ctx, t, q)
	if !ok {
		return q, info{}, false
	}
	return q.at(origin.KindManifest, got.digest), got.info, true
}

// mayPass tells whether, after err, the origin can still be asked in the client's name.
func (p *Proxy) mayPass(w *response, r *http.Request, err error) bool {
	return w.status == 0 && r.Context().Err() == nil && p.base.Err() == nil && !errors.Is(err, errClientGone)
}

// typeDoubt: a manifest does not say its media type, and who named it said another than it
// looks like, or none.
type typeDoubt struct{ named string }

func (e *typeDoubt) Error() string {
	return "the manifest does not say its media type, and is named as " + e.named
}

// nameContent sets the headers that say which content this is.
func nameContent(h http.Header, d blob.Digest) {
	h.Set(digestHeader, d.String())
	h.Set("Etag", `"`+d.String()+`"`)
}

// sendManifest sends the manifest that q names and the client may read.
func (p *Proxy) sendManifest(w *response, r *http.Request, q question, have permission) error {
	i := have.info
	if i.size > maxManifest {
		return errManifestSize()
	}
	header := q.header.Clone()
	if i.mediaType != "" {
		header.Set("Accept", i.mediaType+", */*")
	}
	body, held, err := p.readManifest(r.Context(), Request{Digest: q.digest, Size: i.size, Ref: q.ref, Header: header, Length: -1})
	if size, ok := sizeTold(err); ok && size <= maxManifest {
		p.learn(q.place(), info{size: size, mediaType: i.mediaType, told: i.told, sent: i.sent})
		body, held, err = p.readManifest(r.Context(), Request{Digest: q.digest, Size: size, Ref: q.ref, Header: header, Length: -1})
	}
	if err != nil {
		return err
	}
	if have.named {
		if err := p.confirm(r.Context(), q); err != nil {
			return err
		}
	}
	typ, own := p.admit(q, body, i.mediaType)
	switch {
	case i.sent:
	case own == "":
		return &typeDoubt{named: typ} // only GET tells
	default:
		typ = own // what the registry took it for, whatever HEAD or an index say
	}
	w.result = resultOfHeld(held)
	sendBody(w, r, q.digest, typ, body)
	return nil
}

// readManifest reads a whole manifest through Tasks, within the time for that,
// and tells whether it was held already.
func (p *Proxy) readManifest(ctx context.Context, req Request) (body []byte, held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.OriginTimeout)
	defer cancel()
	h, err := p.tasks.Open(ctx, req)
	if err != nil {
		return nil, false, timely(ctx, err)
	}
	defer h.Close()
	f, held := h.Sealed()
	var content io.ReadSeeker
	if held {
		defer f.Close()
		content = f
	} else {
		content = h.Content()
	}
	size, err := content.Seek(0, io.SeekEnd)
	switch {
	case err != nil:
		return nil, held, timely(ctx, err)
	case size > maxManifest:
		return nil, held, errManifestSize()
	}
	if _, err := content.Seek(0, io.SeekStart); err != nil {
		return nil, held, timely(ctx, err)
	}
	body = make([]byte, size)
	_, err = io.ReadFull(content, body)
	return body, held, timely(ctx, err)
}

// timely makes an error that came of a passed deadline say so.
func timely(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return err
}

func errManifestSize() *apiError {
	return &apiError{status: http.StatusRequestEntityTooLarge, code: codeSizeInvalid,
		message: fmt.Sprintf("the manifest is larger than %d bytes, the most that are read here", maxManifest)}
}

// admit remembers what a manifest names: sizes and media types, and that the
// client may read what the manifest vouches for. It returns the media type, and the one
// that the manifest itself tells, "" if none.
func (p *Proxy) admit(q question, body []byte, typ string) (_, own string) {
	read := p.read(q.digest, body, typ)
	typ, own = read.typ, read.own
	for _, c := range read.children {
		kid := q.at(c.kind, c.digest)
		p.learn(kid.place(), info{size: c.size, mediaType: c.mediaType})
		if c.vouched {
			p.inherit(q, kid)
		}
	}
	if typ == "" {
		typ = typeOctets
	}
	return typ, own
}

// parsed is what parseManifest gives.
type parsed struct {
	typ, own string
	children []child
}

// parsedKey is a manifest, as a media type.
type parsedKey struct {
	digest blob.Digest
	typ    string
}

const (
	// maxParsed is how many manifests are remembered, and maxParsedChildren how many
	// children one of them may have: together some MiB.
	maxParsed         = 64
	maxParsedChildren = 256
)

// read is parseManifest, once for a manifest that is asked for often.
func (p *Proxy) read(d blob.Digest, body []byte, typ string) parsed {
	key := parsedKey{d, typ}
	if got, ok := p.parsed.get(key); ok {
		return got
	}
	var got parsed
	got.typ, got.own, got.children = parseManifest(body, typ)
	if len(got.children) <= maxParsedChildren {
		p.parsed.put(key, got, nil)
	}
	return got
}

// sendBody sends a manifest whose bytes are proven.
func sendBody(w *response, r *http.Request, d blob.Digest, typ string, body []byte) {
	h := w.Header()
	h.Set(apiVersionHeader, apiVersion)
	h.Set("Content-Type", typ)
	nameContent(h, d)
	r.Header.Del("Range") // RFC 9110 section 14.2: may be ignored; nobody resumes a manifest
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}
