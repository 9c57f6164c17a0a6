package origin

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// attempt asks the origin once for the bytes from pos on. On success it returns
// nil and there is a body that stands at pos.
func (r *reader) attempt() *failure {
	c, gate := r.client, r.host.gate
	if refused, err := gate.wait(r.ctx, r.question.pause, c.cfg.MaxRetryAfter); err != nil {
		return &failure{err: err}
	} else if refused != nil {
		return &failure{err: refused.err(r.ref, time.Now())}
	}
	if _, ok := r.ref.Digest(); ok {
		if refused, ok := c.missing.get(r.key); ok {
			return &failure{err: refused.err(r.ref, time.Now())}
		}
	}
	leave, err := gate.enter(r.ctx, true)
	if err != nil {
		return &failure{err: err}
	}
	question, known := r.ranged()
	sent := time.Now()
	ans, err := c.wire.follow(r.ctx, question)
	if err != nil {
		leave()
		c.locations.drop(r.key)
		// An origin that was given the time to answer and did not is not asked anew: that
		// would start its work anew.
		hung := errors.Is(err, ErrStalled) && !question.resumed && !known
		return &failure{err: err, again: !permanent(err) && !hung, free: r.free(known)}
	}
	if ans.StatusCode == http.StatusOK || ans.StatusCode == http.StatusPartialContent {
		gate.saw(question.pause, sent, time.Now(), nil)
		ans.Body = &leavingBody{ReadCloser: ans.Body, leave: leave}
		return r.take(ans, known)
	}
	refused := readRefusal(ans.Response)
	leave()
	return r.refuse(refused, ans.away, known, sent)
}

// ranged is the question for what is missing, and whether it goes straight to
// where an earlier answer was.
func (r *reader) ranged() (call, bool) {
	q := r.question
	q.header, q.resumed = q.header.Clone(), r.pos > r.first
	if r.parts() {
		q.header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.pos, r.end-1))
		if v := r.validator; v != "" && !strings.HasPrefix(v, "W/") && r.versioned() {
			q.header.Set("If-Range", v)
		}
	}
	location, known := r.client.locations.get(r.key)
	if known {
		q.url, q.inside = location.url, location.inside
	}
	return q, known
}

// parts tells whether a range is asked for.
func (r *reader) parts() bool { return !r.plain && (r.pos > 0 || r.end < r.size) }

// toWhole has the next attempt ask for the whole, and tells whether that may help: an origin
// that answers a range with nonsense, or refuses it, may well serve what it is asked for
// without one.
func (r *reader) toWhole() bool {
	if !r.parts() || r.helps || r.versioned() || r.pos > r.client.cfg.MaxSkip {
		return false
	}
	r.plain, r.rangeless = true, true
	return true
}

// versioned tells whether the content may change under its name.
func (r *reader) versioned() bool {
	_, ok := r.ref.Digest()
	return !ok
}

// refuse decides what an answer without content means.
func (r *reader) refuse(refused *refusal, away, known bool, sent time.Time) *failure {
	c, now := r.client, time.Now()
	err := refused.err(r.ref, now)
	c.locations.drop(r.key)
	switch code := refused.code; {
	case code == http.StatusTooManyRequests:
		if r.helps {
			return &failure{err: err} // there were too many streams; others may well ask
		}
		after := max(err.RetryAfter, firstPause)
		if !away {
			// The gate makes this reader wait, with all that read alike.
			after = 0
			r.host.gate.saw(r.question.pause, sent, now, refused)
		}
		if err.RetryAfter > c.cfg.MaxRetryAfter {
			return &failure{err: err}
		}
		return &failure{err: err, again: true, after: after}
	case known:
		return &failure{err: err, again: true, free: r.free(known)}
	case passing(code):
		if r.barren >= maxTries-2 {
			r.toWhole()
		}
		return &failure{err: err, again: true, after: err.RetryAfter}
	case away && (code == http.StatusForbidden || code == http.StatusBadRequest || code == http.StatusUnauthorized ||
		code == http.StatusNotFound || code == http.StatusGone):
		// A location may have expired between the registry and here, or be of a
		// cache that has not got the blob yet.
		return &failure{err: err, again: true}
	case code == http.StatusRequestedRangeNotSatisfiable:
		if cr, e := parseContentRange(refused.header.Get("Content-Range")); e == nil && cr.First < 0 && cr.Size != r.size {
			return &failure{err: r.sizeDiffers(cr.Size)}
		}
		return &failure{err: err, again: r.toWhole()}
	case code == http.StatusBadRequest, code == http.StatusForbidden, code == http.StatusMethodNotAllowed, code == http.StatusNotImplemented:
		return &failure{err: err, again: r.toWhole()}
	case code == http.StatusNotFound && !r.versioned() && !r.helps:
		c.missing.put(r.key, refused, missingLife)
	}
	return &failure{err: err}
}

// free tells whether a failed attempt says nothing about the origin, because it
// went to a known location. Readers may hand each other bad ones, so it does not
// say so for ever.
func (r *reader) free(known bool) bool {
	if known {
		r.frees++
	}
	return known && r.frees < maxTries
}

func (r *reader) sizeDiffers(size int64) error {
	if r.versioned() && r.validator != "" {
		return fmt.Errorf("%w: %d bytes instead of %d", ErrChanged, size, r.size)
	}
	return &SizeError{Size: size, Expected: r.size}
}

// take makes the body of a 200 or 206 the reader's, at pos.
func (r *reader) take(ans answer, known bool) *failure {
	skip, err := r.check(ans)
	if err == nil && skip > 0 {
		if _, err := io.CopyN(io.Discard, ans.Body, skip); err != nil {
			_ = ans.Body.Close()
			return &failure{err: whole(err), again: true}
		}
	}
	if err != nil {
		_ = ans.Body.Close()
		r.client.locations.drop(r.key)
		return &failure{err: err, again: ans.StatusCode == http.StatusPartialContent && errors.Is(err, ErrProtocol) && r.toWhole()}
	}
	if ans.away && !known {
		r.client.locations.put(r.key, place{url: ans.from, inside: ans.inside}, presignedLife(ans.from, time.Now()))
	}
	if r.validator == "" {
		r.validator = validatorOf(ans.Header)
	}
	r.body, r.got = ans.Body, 0
	return nil
}

// check compares an answer with what was asked for, sets where its body ends,
// and returns how many bytes of it lie before pos.
func (r *reader) check(ans answer) (skip int64, err error) {
	if err := r.checkVersion(ans); err != nil {
		return 0, err
	}
	if !r.versioned() && encoded(ans.Header) {
		return 0, fmt.Errorf("%w: encoded as %q though asked for as it is", ErrProtocol, clip(ans.Header.Get("Content-Encoding")))
	}
	length := ans.ContentLength
	r.rangeless = r.rangeless || strings.EqualFold(ans.Header.Get("Accept-Ranges"), "none")
	if ans.StatusCode == http.StatusOK {
		if r.helps {
			return 0, errWhole
		}
		r.rangeless = r.rangeless || r.pos > 0 || r.end < r.size
		if length >= 0 && length != r.size {
			return 0, r.sizeDiffers(length)
		}
		if r.pos > r.client.cfg.MaxSkip {
			return 0, fmt.Errorf("%w: it sends the whole file where bytes from %d on were asked for", ErrNoRange, r.pos)
		}
		r.bodyEnd = r.end
		r.openEnd, r.untold = length < 0 && r.end == r.size, length < 0
		return r.pos, nil
	}
	if t := ans.Header.Get("Content-Type"); strings.HasPrefix(strings.ToLower(t), "multipart/byteranges") {
		return 0, fmt.Errorf("%w: several ranges in reply to one", ErrProtocol)
	}
	cr, err := parseContentRange(ans.Header.Get("Content-Range"))
	switch {
	case err != nil:
		return 0, err
	case cr.First != r.pos || cr.Last >= r.end:
		return 0, fmt.Errorf("%w: bytes %d to %d in reply to %d to %d", ErrProtocol, cr.First, cr.Last, r.pos, r.end-1)
	case cr.Size >= 0 && cr.Size != r.size:
		return 0, r.sizeDiffers(cr.Size)
	case length >= 0 && length != cr.Last-cr.First+1:
		return 0, fmt.Errorf("%w: %d bytes in a range of %d", ErrProtocol, length, cr.Last-cr.First+1)
	}
	r.bodyEnd, r.untold = cr.Last+1, cr.Size < 0
	r.openEnd = length < 0 && r.bodyEnd == r.end
	return 0, nil
}

// checkVersion errs when an answer is of another version of a file than the one
// that is read. A 206 without a validator is of the version that If-Range named.
func (r *reader) checkVersion(ans answer) error {
	if r.validator == "" || !r.versioned() {
		return nil
	}
	etag, date := ans.Header.Get("Etag"), ans.Header.Get("Last-Modified")
	if r.helps && etag == "" && ans.StatusCode == http.StatusPartialContent {
		return errUnsure // a server that knows no If-Range says nothing either
	}
	switch weak := strings.TrimPrefix(r.validator, "W/"); {
	case weak == strings.TrimPrefix(etag, "W/"), weak == date:
		return nil
	case etag == "" && date == "" && ans.StatusCode == http.StatusPartialContent:
		return nil
	}
	return fmt.Errorf("%w: it was %s", ErrChanged, clip(r.validator))
}
