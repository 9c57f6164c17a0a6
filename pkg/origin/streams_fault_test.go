package origin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// ranged is an answer to ranged requests alone.
func ranged(answer func(w http.ResponseWriter, r *http.Request, n int)) func(http.ResponseWriter, *http.Request, int) bool {
	return func(w http.ResponseWriter, r *http.Request, n int) bool {
		if r.Header.Get("Range") == "" {
			return false
		}
		answer(w, r, n)
		return true
	}
}

// An origin that does not serve parts is not harmed by the question, and not asked again
// where the answer was no accident.
func TestStreamsNotServed(t *testing.T) {
	b := content(16 << 20)
	status := func(code int) func(http.ResponseWriter, *http.Request, int) {
		return func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(code) }
	}
	for name, k := range map[string]struct {
		answer  func(http.ResponseWriter, *http.Request, int)
		lasting bool
	}{
		"ignored": {func(w http.ResponseWriter, r *http.Request, _ int) {
			r.Header.Del("Range")
			_, _ = w.Write(headOf(w, r, b))
		}, true},
		"416": {status(416), true}, "403": {status(403), true}, "404": {status(404), true},
		"several ranges": {func(w http.ResponseWriter, r *http.Request, _ int) {
			w.Header().Set("Content-Type", "multipart/byteranges; boundary=x")
			_, _ = w.Write(headOf(w, r, b))
		}, true},
		"another range": {func(w http.ResponseWriter, r *http.Request, _ int) {
			first, _ := asked(r, len(b))
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first-1, len(b)-1))
			_, _ = w.Write(headOf(w, r, b))
		}, true},
		"another size": {func(w http.ResponseWriter, r *http.Request, _ int) {
			_, _ = w.Write(headOf(w, r, append(b[:len(b):len(b)], 'x')))
		}, true},
		"429": {status(429), false}, "503": {status(503), false},
		"cut":    {func(w http.ResponseWriter, _ *http.Request, _ int) { cut(w) }, false},
		"silent": {func(_ http.ResponseWriter, r *http.Request, _ int) { <-r.Context().Done() }, false},
		"silent after the header": {func(w http.ResponseWriter, r *http.Request, _ int) {
			headOf(w, r, b)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := &slowOrigin{content: b, perConn: slowConn, answer: ranged(k.answer)}
				n, rec := o.serve(t)
				c := testClient(t, n, nil)
				for range 2 {
					got, took, err := readTimed(t, c, blobRef(b), len(b))
					if err != nil || !bytes.Equal(got, b) || took > o.alone()*102/100+10*time.Millisecond {
						t.Errorf("%d bytes, %v, in %s, one stream %s", len(got), err, took, o.alone())
					}
				}
				sent, _ := o.counts()
				if sent > 2*len(b)*102/100 {
					t.Errorf("%d bytes sent", sent)
				}
				if rec.count() > 2+2 || k.lasting && rec.count() > 2+1 {
					t.Errorf("asked for %q", rec.ranges())
				}
				// Others are not made to wait, and nothing is believed to be missing.
				resp, err := c.Head(t.Context(), tagRef("v1"), nil)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				checkIdle(t, c)
			})
		})
	}
}

// A refusal to many streams is one to some of them: the read goes on with fewer.
func TestStreamsFewer(t *testing.T) {
	b := content(32 << 20)
	for _, code := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := &slowOrigin{content: b, perConn: slowConn}
				o.answer = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
					o.mu.Lock()
					defer o.mu.Unlock()
					if o.now > 4 {
						w.WriteHeader(code)
						return true
					}
					return false
				}
				n, _ := o.serve(t)
				got, took, err := readTimed(t, testClient(t, n, nil), blobRef(o.content), len(o.content))
				if err != nil || !bytes.Equal(got, o.content) || took > o.alone()*2/3 {
					t.Errorf("%d bytes, %v, in %s, one stream %s", len(got), err, took, o.alone())
				}
				if sent, _ := o.counts(); sent > len(o.content)*101/100 {
					t.Errorf("%d bytes sent", sent)
				}
			})
		})
	}
}

// One stream that hangs, or is far slower than the others, does not hold up the rest.
func TestStreamsStraggler(t *testing.T) {
	b := content(32 << 20)
	for name, pace := range map[string]int{"slow": slowConn / 20, "silent": 0} {
		for _, at := range []int{1, 2, 3, 6, 12} {
			t.Run(fmt.Sprint(name, " ", at), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					o := &slowOrigin{content: b, perConn: slowConn}
					o.answer = func(w http.ResponseWriter, r *http.Request, n int) bool {
						if n != at {
							return false
						}
						part := headOf(w, r, o.content)
						lead := part[:min(len(part), 800<<10)]
						_, _ = w.Write(lead)
						if pace == 0 {
							w.(http.Flusher).Flush()
							<-r.Context().Done()
							return true
						}
						w.(*slowWriter).perSecond = pace
						_, _ = w.Write(part[len(lead):])
						return true
					}
					n, _ := o.serve(t)
					got, took, err := readTimed(t, testClient(t, n, nil), blobRef(o.content), len(o.content))
					if err != nil || !bytes.Equal(got, o.content) || took > o.alone()/8+4*time.Second {
						t.Errorf("%d bytes, %v, in %s, eight streams at once %s", len(got), err, took, o.alone()/8)
					}
					if sent, _ := o.counts(); sent > len(o.content)*101/100 {
						t.Errorf("%d bytes sent", sent)
					}
				})
			})
		}
	}
}

// What has no digest is of one version, or an error: never of two.
func TestStreamsOfChangedFile(t *testing.T) {
	const size = 32 << 20
	before, after := content(size), bytes.Repeat([]byte("new!"), size/4)
	for name, k := range map[string]struct {
		tags   [2]string
		naive  bool // knows no If-Range, and tells no version with a part
		one    bool // stream is all there is
		change time.Duration
	}{
		"unchanged":      {tags: [2]string{`"a"`, `"b"`}, change: time.Hour},
		"at the first":   {tags: [2]string{`"a"`, `"b"`}, change: 50 * time.Millisecond},
		"in the middle":  {tags: [2]string{`"a"`, `"b"`}, change: 600 * time.Millisecond},
		"weak validator": {tags: [2]string{`W/"a"`, `W/"b"`}, change: 50 * time.Millisecond, one: true},
		"no validator":   {change: 50 * time.Millisecond, one: true},
		"naive server":   {tags: [2]string{`"a"`, `"b"`}, change: 50 * time.Millisecond, naive: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := &slowOrigin{content: before, perConn: slowConn}
				began := time.Now()
				o.answer = func(w http.ResponseWriter, r *http.Request, _ int) bool {
					b, tag := before, k.tags[0]
					if time.Since(began) >= k.change {
						b, tag = after, k.tags[1]
					}
					if k.naive && r.Header.Get("Range") != "" {
						_, _ = w.Write(headOf(w, r, b))
						return true
					}
					if tag != "" {
						w.Header().Set("Etag", tag)
					}
					serveBytes(w, r, b)
					return true
				}
				n := newMemNet()
				rec, h := recorded(o.ServeHTTP)
				n.serve(t, "files.example.com:80", h)
				ref := Ref{Kind: KindURL, URL: "http://files.example.com/model.bin"}
				got, took, err := readTimed(t, testClient(t, n, nil), ref, size)
				if !bytes.HasPrefix(before, got) || err == nil && len(got) != size || err != nil && !errors.Is(err, ErrChanged) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if one := rec.count() == 1; one != k.one {
					t.Errorf("%d requests", rec.count())
				}
				if name == "unchanged" && (err != nil || took > o.alone()/2) {
					t.Errorf("%s, %v; one stream takes %s", took, err, o.alone())
				}
				if name == "in the middle" && err == nil {
					t.Error("the file changed while parts were asked for, and nobody noticed")
				}
			})
		})
	}
}

// However an origin misbehaves, what a read in several streams delivers is the content
// from the offset asked, up to where it gave up; without an error it is all of it.
func TestStreamsProperty(t *testing.T) {
	b := content(20 << 20)
	ref := blobRef(b)
	rapid.Check(t, func(rt *rapid.T) {
		off := rapid.IntRange(0, 4<<20).Draw(rt, "off")
		size := rapid.IntRange(off+(9<<20), len(b)).Draw(rt, "size")
		script := rapid.SliceOfN(rapid.IntRange(0, int(faults)-1), 1, 40).Draw(rt, "faults")
		at := rapid.SliceOfN(rapid.IntRange(0, 3<<20), len(script), len(script)).Draw(rt, "at")
		paces := rapid.SliceOfN(rapid.SampledFrom([]int{200_000, 2_000_000, slowConn, slowConn, slowConn}), 1, 9).Draw(rt, "paces")
		inAll := rapid.SampledFrom([]int{0, 0, 3_000_000, 12_000_000}).Draw(rt, "in all")
		fair := rapid.IntRange(1, 8).Draw(rt, "one fault in")
		synctest.Test(t, func(t *testing.T) {
			o := &slowOrigin{content: b[:size], inAll: inAll}
			o.answer = func(w http.ResponseWriter, r *http.Request, n int) bool {
				w.(*slowWriter).perSecond = paces[n%len(paces)]
				if n%fair != 0 || n/fair >= len(script) || r.Method == http.MethodHead {
					return false
				}
				first, end := asked(r, size)
				// A server that hangs once all is sent would not see its connection end.
				fault(script[n/fair]).serve(w, r, b[:size], min(at[n/fair], end-first-1))
				return true
			}
			net := newMemNet()
			_, h := recorded(o.ServeHTTP)
			net.serve(t, testRegistry+":80", h)
			net.serve(t, "cdn.example.net:80", h)
			c := testClient(t, net, nil)
			got, err := readAll(t, c, ref, nil, int64(size), int64(off), -1)
			if !bytes.HasPrefix(b[off:size], got) {
				rt.Fatalf("%d bytes that are not the content's from %d on (%v)", len(got), off, err)
			}
			if err == nil && len(got) != size-off {
				rt.Fatalf("%d of %d bytes and no error", len(got), size-off)
			}
			if err != nil && (errors.Is(err, io.EOF) || strings.Contains(err.Error(), "closed") && !errors.Is(err, io.ErrUnexpectedEOF)) {
				rt.Fatalf("an error that callers cannot tell: %v", err)
			}
			checkIdle(t, c)
		})
	})
}
