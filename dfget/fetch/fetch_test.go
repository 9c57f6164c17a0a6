package fetch_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/damselfly-p2p/damselfly/dfget/fetch"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a sink that a later run can go on with.
type memory struct {
	buf  []byte
	note []byte
}

func (m *memory) Resume(h hash.Hash) (int64, error) {
	h.Write(m.buf)
	return int64(len(m.buf)), nil
}
func (m *memory) Write(b []byte) (int, error) { m.buf = append(m.buf, b...); return len(b), nil }
func (m *memory) Reset() error                { m.buf = nil; return nil }
func (m *memory) Note() []byte                { return m.note }
func (m *memory) SetNote(b []byte) error      { m.note = b; return nil }

// counter is a Watch that adds up.
type counter struct{ size, done int64 }

func (c *counter) Expect(n int64) { c.size = n }
func (c *counter) Kept(n int64)   { c.done = n }
func (c *counter) Add(n int64)    { c.done += n }

// act is what a scripted source does with one request.
type act struct {
	kind string // "send", "cut", "status", "reset", "flip", "whole", "long", "short size"
	n    int    // bytes before a cut
	code int
}

func (a act) String() string { return fmt.Sprintf("%s(%d,%d)", a.kind, a.n, a.code) }

// scripted is a Source that follows a script, and sends what is asked when the
// script is over.
type scripted struct {
	name  string
	body  []byte
	acts  []act
	calls int
}

func (s *scripted) Name() string { return s.name }

func (s *scripted) Open(ctx context.Context, w fetch.Want, off int64, validator string) (*fetch.Reply, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.calls++
	a := act{kind: "send"}
	if len(s.acts) > 0 {
		a, s.acts = s.acts[0], s.acts[1:]
	}
	body := s.body
	r := &fetch.Reply{Offset: off, Size: int64(len(body)), Validator: `"` + hex.EncodeToString(body[:min(4, len(body))]) + `"`}
	if off > int64(len(body)) {
		return nil, &origin.StatusError{Code: http.StatusRequestedRangeNotSatisfiable, Header: http.Header{}, Ref: w.Ref}
	}
	rest := body[off:]
	switch a.kind {
	case "cut":
		r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(rest[:min(a.n, len(rest))]), broken{}))
		return r, nil
	case "status":
		return nil, &origin.StatusError{Code: a.code, Header: http.Header{}, Ref: w.Ref}
	case "reset":
		return nil, fmt.Errorf("dial: %w", syscall.ECONNRESET)
	case "flip":
		rest = bytes.Clone(rest)
		if len(rest) > 0 {
			rest[a.n%len(rest)] ^= 0x80
		}
	case "whole":
		r.Offset, rest = 0, body
	case "long":
		rest = append(bytes.Clone(rest), 1, 2, 3)
	case "short size":
		r.Size = max(0, r.Size-1)
	}
	r.Body = io.NopCloser(bytes.NewReader(rest))
	return r, nil
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func scripts(label string) *rapid.Generator[[]act] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) act {
		return act{
			kind: rapid.SampledFrom([]string{"send", "cut", "status", "reset", "flip", "whole", "long", "short size"}).Draw(t, label),
			n:    rapid.IntRange(0, 3000).Draw(t, "n"),
			code: rapid.SampledFrom([]int{400, 403, 416, 429, 500, 503}).Draw(t, "code"),
		}
	}), 0, 6)
}

// Whatever a source does, a fetch ends, and never well with other bytes than
// those that were asked for.
func TestNoMisbehaviourDeliversWrongBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		body := rapid.SliceOfN(rapid.Byte(), 0, 2000).Draw(t, "body")
		kept := rapid.SliceOfN(rapid.Byte(), 0, 2100).Draw(t, "kept")
		if rapid.Bool().Draw(t, "kept bytes are right") {
			kept = bytes.Clone(body[:min(len(kept), len(body))])
		}
		daemon := &scripted{name: "daemon", body: body, acts: scripts("daemon").Draw(t, "daemon acts")}
		last := &scripted{name: "origin", body: body}
		if rapid.Bool().Draw(t, "origin misbehaves") {
			last.acts = scripts("origin").Draw(t, "origin acts")
		}
		honest := len(last.acts) == 0
		w := fetch.Want{Ref: origin.Ref{Kind: origin.KindURL, URL: "http://x/"}, Digest: blob.FromBytes(body), Size: int64(len(body))}
		if rapid.Bool().Draw(t, "size is unknown") {
			w.Size = -1
		}
		sink, seen := &memory{buf: kept}, &counter{}
		f := fetch.New(fetch.Config{Pause: time.Nanosecond}, daemon, last)
		res, err := f.Fetch(t.Context(), w, sink, seen)
		if daemon.calls+last.calls > 60 {
			t.Fatalf("%d requests", daemon.calls+last.calls)
		}
		if err != nil {
			if honest {
				t.Fatalf("the origin is honest, yet: %v", err)
			}
			return
		}
		if !bytes.Equal(sink.buf, body) || res.Digest != w.Digest || res.Size != int64(len(body)) {
			t.Fatalf("wrong bytes: %d instead of %d, %+v", len(sink.buf), len(body), res)
		}
		if seen.done != int64(len(body)) || (w.Size >= 0 && seen.size != w.Size) {
			t.Fatalf("progress ended at %d of %d, want %d", seen.done, seen.size, len(body))
		}
		if res.Kept+res.Fetched < int64(len(body)) {
			t.Fatalf("%d kept and %d fetched make no %d", res.Kept, res.Fetched, len(body))
		}
	})
}

// Content without digest may change while it is fetched; two versions are never
// mixed.
func TestVersionsAreNotMixed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one := rapid.SliceOfN(rapid.Byte(), 10, 1000).Draw(t, "one")
		two := bytes.Clone(one)
		two[0] ^= 1
		src := &scripted{name: "origin", body: one, acts: []act{{kind: "cut", n: rapid.IntRange(0, 1000).Draw(t, "cut")}}}
		sink := &memory{}
		changing := &changingSource{scripted: src, next: two, strict: rapid.Bool().Draw(t, "If-Range is known")}
		f := fetch.New(fetch.Config{Pause: time.Nanosecond}, changing)
		_, err := f.Fetch(t.Context(), fetch.Want{Ref: origin.Ref{Kind: origin.KindURL, URL: "http://x/"}, Size: -1}, sink, &counter{})
		if err == nil && !bytes.Equal(sink.buf, two) && !bytes.Equal(sink.buf, one) {
			t.Fatal("bytes of two versions were mixed")
		}
		if err != nil && !errors.Is(err, origin.ErrChanged) {
			t.Fatal(err)
		}
	})
}

// changingSource has another content from the second request on.
type changingSource struct {
	*scripted
	next   []byte
	strict bool
}

func (c *changingSource) Open(ctx context.Context, w fetch.Want, off int64, validator string) (*fetch.Reply, error) {
	if c.calls == 1 {
		c.body = c.next
		if c.strict && validator != "" {
			off = 0
		}
	}
	return c.scripted.Open(ctx, w, off, validator)
}

func TestRetryAfterIsGrantedWithinBounds(t *testing.T) {
	for _, c := range []struct {
		asked   time.Duration
		succeed bool
	}{{7 * time.Second, true}, {10 * time.Minute, false}} {
		synctest.Test(t, func(t *testing.T) {
			src := &limited{scripted: scripted{name: "origin", body: []byte("x")}, wait: c.asked}
			var warned []string
			f := fetch.New(fetch.Config{Warn: func(s string) { warned = append(warned, s) }}, src)
			start := time.Now()
			_, err := f.Fetch(t.Context(), fetch.Want{Digest: blob.FromBytes([]byte("x")), Size: 1}, &memory{}, &counter{})
			took := time.Since(start)
			if c.succeed && (err != nil || took != c.asked || len(warned) != 1) {
				t.Errorf("%v after %s, told %q; want success after %s", err, took, warned, c.asked)
			}
			if !c.succeed && (err == nil || took > 0) {
				t.Errorf("%v after %s, want to give up at once", err, took)
			}
		})
	}
}

// An image has many blobs; one cause is told once.
func TestAFailingSourceIsToldOnce(t *testing.T) {
	body := []byte("abc")
	daemon := &scripted{name: "daemon", body: body, acts: []act{{kind: "status", code: 403}, {kind: "status", code: 403}, {kind: "status", code: 403}}}
	var warned []string
	f := fetch.New(fetch.Config{Warn: func(s string) { warned = append(warned, s) }}, daemon, &scripted{name: "origin", body: body})
	for range 3 {
		if _, err := f.Fetch(t.Context(), fetch.Want{Digest: blob.FromBytes(body), Size: 3}, &memory{}, &counter{}); err != nil {
			t.Fatal(err)
		}
	}
	if len(warned) != 1 || !strings.Contains(warned[0], "403") {
		t.Errorf("told %q", warned)
	}
}

// Wrong bytes from the first source are what the user hears of when the second does
// not answer.
func TestWrongBytesAreNotHiddenByAnUnreachableOrigin(t *testing.T) {
	body := []byte("abc")
	daemon := &scripted{name: "daemon", body: body, acts: []act{{kind: "flip"}}}
	gone := &scripted{name: "origin", body: body, acts: slices.Repeat([]act{{kind: "reset"}}, 20)}
	f := fetch.New(fetch.Config{Pause: time.Microsecond}, daemon, gone)
	_, err := f.Fetch(t.Context(), fetch.Want{Digest: blob.FromBytes(body), Size: 3}, &memory{}, &counter{})
	if bad := (*fetch.IntegrityError)(nil); !errors.As(err, &bad) || bad.Source != "daemon" {
		t.Errorf("the fetch ended with %v", err)
	}
}

// limited refuses its first request with Retry-After.
type limited struct {
	scripted
	wait time.Duration
}

func (l *limited) Open(ctx context.Context, w fetch.Want, off int64, validator string) (*fetch.Reply, error) {
	if l.wait > 0 {
		wait := l.wait
		l.wait = 0
		return nil, &origin.StatusError{Code: http.StatusTooManyRequests, RetryAfter: wait, Header: http.Header{}}
	}
	return l.scripted.Open(ctx, w, off, validator)
}

func TestFullSinkEndsTheFetch(t *testing.T) {
	src := &scripted{name: "origin", body: []byte("abc")}
	f := fetch.New(fetch.Config{}, src, &scripted{name: "other", body: []byte("abc")})
	_, err := f.Fetch(t.Context(), fetch.Want{Digest: blob.FromBytes([]byte("abc")), Size: 3}, &full{}, &counter{})
	if !errors.Is(err, syscall.ENOSPC) || src.calls != 1 {
		t.Errorf("%v after %d requests, want ENOSPC after one", err, src.calls)
	}
}

type full struct{ memory }

func (*full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestManifestIsBounded(t *testing.T) {
	f := fetch.New(fetch.Config{}, &scripted{name: "origin", body: make([]byte, 11)})
	if _, _, err := f.Manifest(t.Context(), fetch.Want{Size: -1}, 10); !errors.Is(err, fetch.ErrTooLarge) {
		t.Errorf("11 bytes where 10 may be: %v", err)
	}
	if body, res, err := f.Manifest(t.Context(), fetch.Want{Size: -1}, 11); err != nil || len(body) != 11 || res.Digest != blob.FromBytes(body) {
		t.Errorf("%d bytes, %+v, %v", len(body), res, err)
	}
}
