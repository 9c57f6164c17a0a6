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

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// statCase is how an origin answers HEAD and GET, and what Stat makes of it.
type statCase struct {
	ref  Ref
	head func(w http.ResponseWriter)
	get  func(w http.ResponseWriter, r *http.Request)
	want Info
	err  int // status of the StatusError; -1: ErrProtocol
}

func statCases() map[string]statCase {
	b := []byte(`{"schemaVersion":2}`)
	d := blob.FromBytes(b)
	tag, byDigest := tagRef("v1"), Ref{Kind: KindManifest, Registry: testRegistry, Repository: testRepo, Reference: d.String()}
	file := Ref{Kind: KindURL, URL: "http://" + testRegistry + "/file"}
	full := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "a/b")
		w.Header().Set("Etag", `"e"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	}
	digest := func(w http.ResponseWriter) { w.Header().Set("Docker-Content-Digest", d.String()) }
	want := Info{Size: int64(len(b)), MediaType: "a/b", Digest: d, Validator: `"e"`}
	plain := want
	plain.Digest = ""
	return map[string]statCase{
		"all in HEAD":             {tag, func(w http.ResponseWriter) { full(w); digest(w) }, nil, want, 0},
		"blob":                    {blobRef(b), full, nil, want, 0},
		"file":                    {file, full, nil, plain, 0},
		"no digest of a tag":      {tag, full, func(w http.ResponseWriter, r *http.Request) { full(w); _, _ = w.Write(b) }, want, 0},
		"broken digest of a tag":  {tag, func(w http.ResponseWriter) { full(w); w.Header().Set("Docker-Content-Digest", "sha256:zz") }, func(w http.ResponseWriter, r *http.Request) { full(w); _, _ = w.Write(b) }, want, 0},
		"no HEAD, manifest":       {byDigest, func(w http.ResponseWriter) { w.WriteHeader(405) }, func(w http.ResponseWriter, r *http.Request) { full(w); _, _ = w.Write(b) }, want, 0},
		"no HEAD, other manifest": {byDigest, func(w http.ResponseWriter) { w.WriteHeader(405) }, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "{}") }, Info{}, -1},
		"no HEAD, blob": {blobRef(b), func(w http.ResponseWriter) { w.WriteHeader(405) }, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "a/b")
			w.Header().Set("Etag", `"e"`)
			serveBytes(w, r, b)
		}, want, 0},
		"no HEAD, no Range": {blobRef(b), func(w http.ResponseWriter) { w.WriteHeader(501) }, func(w http.ResponseWriter, r *http.Request) { full(w); _, _ = w.Write(b) }, want, 0},
		"presigned for GET": {file, func(w http.ResponseWriter) { w.WriteHeader(403) }, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "a/b")
			w.Header().Set("Etag", `"e"`)
			serveBytes(w, r, b)
		}, plain, 0},
		"no HEAD, empty file": {file, func(w http.ResponseWriter) { w.WriteHeader(405) }, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes */0")
			w.WriteHeader(416)
		}, Info{}, 0},
		"no HEAD, file of no end": {file, func(w http.ResponseWriter) { w.WriteHeader(405) }, func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(b); w.(http.Flusher).Flush() }, Info{Size: -1, MediaType: "text/plain; charset=utf-8"}, 0},
		"not there":               {tag, func(w http.ResponseWriter) { w.WriteHeader(404) }, nil, Info{}, 404},
		"forbidden":               {tag, func(w http.ResponseWriter) { w.WriteHeader(403) }, nil, Info{}, 403},
		"GET forbidden too":       {file, func(w http.ResponseWriter) { w.WriteHeader(403) }, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403) }, Info{}, 403},
		"too large a manifest":    {tag, full, func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(make([]byte, probeManifest+1)) }, Info{}, -1},
	}
}

func TestStat(t *testing.T) {
	for name, c := range statCases() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
					switch {
					case r.Method == http.MethodHead:
						c.head(w)
					case c.get == nil:
						t.Errorf("an unneeded %s", r.Method)
					default:
						c.get(w, r)
					}
				})
				header := http.Header{"If-None-Match": {"*"}, "Range": {"bytes=3-"}}
				got, err := testClient(t, n, nil).Stat(t.Context(), c.ref, header)
				var se *StatusError
				switch {
				case c.err > 0 && (!errors.As(err, &se) || se.Code != c.err):
					t.Errorf("got %v, want status %d", err, c.err)
				case c.err < 0 && !errors.Is(err, ErrProtocol):
					t.Errorf("got %v, want ErrProtocol", err)
				case c.err == 0 && (err != nil || got != c.want):
					t.Errorf("got %+v, %v; want %+v", got, err, c.want)
				}
				for _, r := range rec.all() {
					if r.Header.Get("If-None-Match") != "" || r.Header.Get("Range") == "bytes=3-" {
						t.Error("what asks for a part or for nothing was passed on")
					}
					if c.ref.Kind == KindManifest && !strings.Contains(r.Header.Get("Accept"), "image.index.v1") {
						t.Errorf("Accept %q", r.Header.Get("Accept"))
					}
				}
			})
		})
	}
}

// A file that is not the one that was begun is not put together with it.
func TestChanged(t *testing.T) {
	old, young := content(1000), bytes.Repeat([]byte{1}, 1000)
	file := Ref{Kind: KindURL, URL: "http://" + testRegistry + "/file"}
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Format(http.TimeFormat)
	other := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC).Format(http.TimeFormat)
	for name, c := range map[string]struct {
		key        string
		old, young string
		changed    bool
		ifRange    string
	}{
		"other ETag":        {"Etag", `"1"`, `"2"`, true, `"1"`},
		"same ETag":         {"Etag", `"1"`, `"1"`, false, `"1"`},
		"weak ETag":         {"Etag", `W/"1"`, `W/"2"`, true, ""},
		"weak ETag again":   {"Etag", `W/"1"`, `W/"1"`, false, ""},
		"other date":        {"Last-Modified", day, other, true, day},
		"same date":         {"Last-Modified", day, day, false, day},
		"validator is gone": {"Etag", `"1"`, "", true, `"1"`},
		"never a validator": {"Etag", "", "", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, n int) {
					b, v := old, c.old
					if n > 1 {
						v = c.young
						if c.changed {
							b = young
						}
					}
					if v != "" {
						w.Header().Set(c.key, v)
					}
					if n == 1 {
						_, _ = w.Write(headOf(w, r, b)[:500])
						cut(w)
					}
					serveBytes(w, r, b)
				})
				cl := testClient(t, n, nil)
				got, err := readAll(t, cl, file, nil, 1000, 0, -1)
				if c.changed != errors.Is(err, ErrChanged) || !c.changed && (err != nil || !bytes.Equal(got, old)) || !bytes.HasPrefix(old, got) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if got := rec.all()[1].Header.Get("If-Range"); got != c.ifRange {
					t.Errorf("If-Range %q, want %q", got, c.ifRange)
				}
				// The same across reads, with the validator of an earlier one.
				if c.old != "" {
					got, err = readAll(t, cl, file, http.Header{"If-Range": {c.old}}, 1000, 300, 100)
					if c.changed != errors.Is(err, ErrChanged) || !c.changed && !bytes.Equal(got, old[300:400]) || c.changed && len(got) > 0 {
						t.Errorf("a later read: %d bytes, %v", len(got), err)
					}
				}
			})
		})
	}
}

// The size alone can tell.
func TestChangedSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) { serveBytes(w, r, content(900)) })
		c := testClient(t, n, nil)
		file := Ref{Kind: KindURL, URL: "http://" + testRegistry + "/file"}
		for _, off := range []int64{0, 100, 950} {
			if _, err := readAll(t, c, file, http.Header{"If-Range": {`"1"`}}, 1000, off, -1); !errors.Is(err, ErrChanged) {
				t.Errorf("with a validator, from %d: %v", off, err)
			}
			if _, err := readAll(t, c, file, nil, 1000, off, -1); !errors.Is(err, ErrSize) {
				t.Errorf("without, from %d: %v", off, err)
			}
		}
	})
}
