package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// How a server proves that it keeps a blob that a client wants by URL and digest. The
// questions are ours, wherever the client begins and however little it wants:
//
//   - A server that sends the whole has proven it when that has the digest, and is what the
//     client gets. So are small blobs.
//   - Of a blob that is held whole, it shows proofPlaces places, one in each part of the
//     blob, at random. Then the client may read the blob for Config.GrantTTL.
//   - Of a blob that is still coming, it shows as many places in each stretch before any
//     byte of the stretch goes out: the first has firstStretch bytes, each further one
//     growth times as many. No permission comes of that. Nothing of the blob is fetched
//     before the server has shown something, and no more than one piece before that fits.
//
// Who does not have the bytes guesses proofPlaces times proofLength of them. What remains is
// who knows most of a blob and asks for the rest by guesses: each that fails costs the blob a
// pause for all that have not proven it (claims).

const (
	// smallBlob is what a server shows whole, in bytes.
	smallBlob = 64 << 10
	// proofPlaces of proofLength bytes each are shown of a whole blob.
	proofPlaces = 4
	proofLength = 1 << 10
	// firstStretch is the first that goes out of a blob that is not whole here.
	firstStretch = 256 << 10
	growth       = 4
)

// errNotKept: the server does not keep what the digest names.
var errNotKept = &apiError{status: http.StatusForbidden, code: codeDenied,
	message: "the server at the URL does not keep the blob that the digest names"}

// claim is one request for a blob by URL that nothing permits yet.
type claim struct {
	p    *Proxy
	q    question
	size int64 // 0: not known
	// proven says that the server has shown what it was asked for first. It may be called
	// again.
	proven func()
}

// shown is what a server has shown of a blob.
type shown struct {
	span
	data []byte
}

// serve proves the claim and sends the blob.
func (c *claim) serve(w *response, r *http.Request) error {
	if c.q.digest.Matches(nil) {
		return c.p.sendBlob(w, r, c.q, 0, nil)
	}
	dropOddRange(r)
	ctx, cancel := context.WithTimeout(r.Context(), c.p.cfg.OriginTimeout)
	defer cancel()
	if c.size == 0 {
		whole, err := c.ask(ctx, span{0, 1})
		if whole != nil || err != nil {
			return c.sendWhole(w, r, whole, err)
		}
	}
	if c.size <= smallBlob {
		whole, err := c.ask(ctx, span{0, c.size})
		return c.sendWhole(w, r, whole, err)
	}
	first := c.stretch(r)
	seen := places(first)
	whole, err := c.show(ctx, seen)
	if whole != nil || err != nil {
		return c.sendWhole(w, r, whole, err)
	}
	held, err := c.compare(ctx, first, seen)
	if err != nil {
		return c.refuse(err)
	}
	if held {
		if err := c.proveWhole(ctx); err != nil {
			return c.refuse(err)
		}
		c.p.metrics.authz.WithLabelValues(authzAllowed).Inc()
		c.p.allow(c.q, info{size: c.size, told: true})
		c.proven()
		return c.p.sendBlob(w, r, c.q, c.size, nil)
	}
	return c.p.sendBlob(w, r, c.q, c.size, func(ctx context.Context, b *content) error {
		c.p.metrics.authz.WithLabelValues(authzAllowed).Inc()
		b.gate = &gate{claim: c}
		err := b.gate.pass(ctx, b, first, seen)
		if err == nil {
			c.proven()
		}
		return err
	})
}

// refuse counts why a claim was not proven.
func (c *claim) refuse(err error) error {
	result := authzError
	var status *origin.StatusError
	if errors.Is(err, errNotKept) || errors.As(err, &status) {
		result = authzRefused
	}
	c.p.metrics.authz.WithLabelValues(result).Inc()
	return err
}

// stretch is the first of the bytes that the request wants, firstStretch at most and as
// many as a proof needs at least.
func (c *claim) stretch(r *http.Request) span {
	s := span{0, c.size}
	if spans, err := parseRange(r.Header.Get("Range"), c.size); err == nil && len(spans) > 0 {
		s = spans[0]
	}
	s.n = min(max(s.n, proofPlaces*proofLength), firstStretch, c.size)
	s.off = min(s.off, c.size-s.n)
	return s
}

// places are some within a stretch that nobody can foresee, one in each part of it.
func places(s span) []shown {
	var out []shown
	part := s.n / proofPlaces
	for i := range int64(proofPlaces) {
		n := min(proofLength, part)
		out = append(out, shown{span: span{s.off + i*part + randomBelow(part-n+1), n}})
	}
	// What the division leaves over belongs to the last part.
	last := &out[proofPlaces-1]
	last.off += randomBelow(s.n%proofPlaces + 1)
	return out
}

// show has the server show places. Where it sends the whole instead, that is returned.
func (c *claim) show(ctx context.Context, places []shown) (whole *http.Response, err error) {
	if whole, err = c.showOne(ctx, &places[0]); whole != nil || err != nil {
		return whole, err
	}
	group, ctx := errgroup.WithContext(ctx)
	for i := range places[1:] {
		group.Go(func() error {
			whole, err := c.showOne(ctx, &places[1+i])
			if whole != nil {
				_ = whole.Body.Close()
				return errNotKept // it showed a part before
			}
			return err
		})
	}
	return nil, group.Wait()
}

func (c *claim) showOne(ctx context.Context, place *shown) (whole *http.Response, err error) {
	resp, err := c.get(ctx, place.span)
	if err != nil || resp.StatusCode == http.StatusOK {
		return resp, err
	}
	defer resp.Body.Close()
	if err := c.fits(resp, place.span); err != nil {
		return nil, err
	}
	place.data = make([]byte, place.n)
	if _, err := io.ReadFull(resp.Body, place.data); err != nil {
		return nil, fmt.Errorf("reading %s at the origin: %w", c.q.ref, timely(ctx, err))
	}
	return nil, nil
}

// get asks the server for a span: the answer is a part or the whole.
func (c *claim) get(ctx context.Context, s span) (*http.Response, error) {
	header := c.q.header.Clone()
	header.Set("Range", formatRange([]span{s}))
	resp, err := c.q.upstream.Get(ctx, c.q.ref, header)
	if err != nil {
		return nil, fmt.Errorf("asking the origin for %s: %w", c.q.ref, err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		a := answerOf(resp)
		return nil, &origin.StatusError{Code: a.status, Header: a.header, Body: a.body, Ref: c.q.ref}
	}
	return resp, nil
}

// fits returns nil when a 206 is exactly the span of a blob of the size that is known, and
// learns the size where none is.
func (c *claim) fits(resp *http.Response, s span) error {
	expect := fmt.Sprintf("bytes %d-%d/", s.off, s.off+s.n-1)
	total, ok := strings.CutPrefix(resp.Header.Get("Content-Range"), expect)
	size, err := strconv.ParseInt(total, 10, 64)
	switch {
	case !ok || err != nil || size < s.off+s.n || size > blob.MaxSize:
		return fmt.Errorf("the origin sent another range than %sa size: %.80q", expect, resp.Header.Get("Content-Range"))
	case c.size == 0:
		c.size = size
	case c.size != size:
		return errNotKept
	}
	return nil
}

// ask is show of a span of which the bytes do not matter, or which is all.
func (c *claim) ask(ctx context.Context, s span) (whole *http.Response, err error) {
	resp, err := c.get(ctx, s)
	if err != nil || resp.StatusCode == http.StatusOK {
		return resp, err
	}
	if err := c.fits(resp, s); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	if s.off == 0 && s.n == c.size {
		resp.ContentLength = s.n
		return resp, nil
	}
	return nil, resp.Body.Close()
}

// compare returns nil when what was shown is what is here, of which no more than the first
// stretch is fetched for that, and whether all of the blob is here.
func (c *claim) compare(ctx context.Context, first span, seen []shown) (held bool, err error) {
	h, err := c.p.tasks.Open(ctx, Request{
		Digest: c.q.digest, Size: c.size, Ref: c.q.ref, Header: c.q.header, Offset: first.off, Length: first.n,
	})
	if err != nil {
		return false, timely(ctx, err)
	}
	defer h.Close()
	if f, ok := h.Sealed(); ok {
		return true, f.Close() // proveWhole looks at more of it
	}
	return false, check(ctx, h.Content(), seen)
}

// check returns nil when what is here is what was shown.
func check(ctx context.Context, here io.ReadSeeker, seen []shown) error {
	for _, s := range seen {
		if _, err := here.Seek(s.off, io.SeekStart); err != nil {
			return timely(ctx, err)
		}
		held := make([]byte, s.n)
		if _, err := io.ReadFull(here, held); err != nil {
			return timely(ctx, err)
		}
		if !bytes.Equal(held, s.data) {
			return errNotKept
		}
	}
	return nil
}

// proveWhole has the server show places all over a blob that is held whole.
func (c *claim) proveWhole(ctx context.Context) error {
	h, err := c.p.tasks.Open(ctx, Request{Digest: c.q.digest, Size: c.size, Ref: c.q.ref, Header: c.q.header, Length: proofLength})
	if err != nil {
		return timely(ctx, err)
	}
	defer h.Close()
	f, ok := h.Sealed()
	if !ok {
		return errors.New("the blob has just been given up; ask again")
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err != nil || end != c.size {
		return errors.Join(errNotKept, err)
	}
	seen := places(span{0, c.size})
	whole, err := c.show(ctx, seen)
	if whole != nil {
		_ = whole.Body.Close()
		err = errNotKept // it showed a part before
	}
	if err != nil {
		return err
	}
	return check(ctx, f, seen)
}

// sendWhole sends the client what the server sends: the last bytes only where all of them
// have the digest, and then they are kept and the client may read the blob.
func (c *claim) sendWhole(w *response, r *http.Request, resp *http.Response, err error) error {
	if err != nil {
		return c.refuse(err)
	}
	defer resp.Body.Close()
	switch n := resp.ContentLength; {
	case c.size == 0 && n > 0:
		c.size = n
	case n >= 0 && n != c.size:
		return c.refuse(errNotKept)
	}
	body := &proven{in: bufio.NewReader(resp.Body), claim: c, sum: c.q.digest.Hash(), kept: c.p.tasks.Keep(c.q.ref, c.q.digest, resp.ContentLength)}
	defer body.drop()
	w.result = resultPassed
	if 0 < c.size && c.size <= smallBlob { // in memory, so that the client is given a status
		data, err := io.ReadAll(body)
		if err != nil {
			return c.refuse(err)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		return w.finish(nil)
	}
	if c.size > 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(c.size, 10))
	}
	w.flushHeader = true
	if _, err := w.ReadFrom(body); err != nil {
		if w.err != nil {
			return fmt.Errorf("%w: %w", errClientGone, w.err)
		}
		return c.refuse(err)
	}
	return nil
}

// proven reads a whole blob from a server, and gives its last part only when all of it has
// the digest.
type proven struct {
	in    *bufio.Reader
	claim *claim
	sum   interface {
		io.Writer
		Sum([]byte) []byte
	}
	kept io.WriteCloser // may be nil

	ahead []byte // read, and not given yet
	room  [32 << 10]byte
	read  int64
	done  bool
}

// Read implements io.Reader.
func (b *proven) Read(p []byte) (int, error) {
	for !b.done && len(b.ahead) == 0 {
		if err := b.fill(); err != nil {
			return 0, err
		}
	}
	if len(b.ahead) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.ahead)
	b.ahead = b.ahead[n:]
	return n, nil
}

// fill reads the next part. The one that ends the blob is checked before it is given.
func (b *proven) fill() error {
	n, err := io.ReadFull(b.in, b.room[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	b.ahead = b.room[:n]
	b.read += int64(n)
	_, more := b.in.Peek(1)
	switch size := b.claim.size; {
	case more != nil && !errors.Is(more, io.EOF):
		return more
	case more != nil && size > b.read:
		return io.ErrUnexpectedEOF
	case size > 0 && b.read > size, b.read > blob.MaxSize:
		return errNotKept
	}
	_, _ = b.sum.Write(b.ahead) // never fails (hash.Hash)
	if b.kept != nil {
		if _, err := b.kept.Write(b.ahead); err != nil {
			b.drop()
		}
	}
	if more == nil {
		return nil
	}
	b.done = true
	q := b.claim.q
	if fmt.Sprintf("%s:%x", q.digest.Algorithm(), b.sum.Sum(nil)) != q.digest.String() {
		return errNotKept
	}
	b.claim.p.metrics.authz.WithLabelValues(authzAllowed).Inc()
	b.claim.p.allow(q, info{size: b.read, told: true})
	if b.kept != nil {
		_ = b.kept.Close() // it has the digest; that there is no room is nothing to the client
		b.kept = nil
	}
	return nil
}

// drop gives up keeping.
func (b *proven) drop() {
	if d, ok := b.kept.(interface{ Discard() }); ok {
		d.Discard()
	}
	b.kept = nil
}

// randomBelow is a number in [0, n) that nobody can foresee.
func randomBelow(n int64) int64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return int64(binary.BigEndian.Uint64(b[:]) % uint64(max(n, 1)))
}
