package origin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// readAll reads [off, off+n) of blob in small steps and returns what came, with
// the first error of opening or reading but io.EOF.
func readAll(t testing.TB, c *Client, ref Ref, header http.Header, size, off, n int64) ([]byte, error) {
	t.Helper()
	r, err := c.Read(t.Context(), ref, header, size, off, n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	return io.ReadAll(r)
}

// registryOf serves the registry's blobs by h in a new network.
func registryOf(t testing.TB, h func(w http.ResponseWriter, r *http.Request, n int)) (*memNet, *record) {
	n := newMemNet()
	rec, handler := recorded(h)
	n.serve(t, testRegistry+":80", handler)
	return n, rec
}

// cut sends what was written so far and breaks the connection.
func cut(w http.ResponseWriter) {
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func TestReadRanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := content(1000)
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) { serveBytes(w, r, b) })
		c := testClient(t, n, nil)
		for _, k := range []struct {
			off, n int64
			want   []byte
			header string
		}{
			{0, -1, b, ""}, {0, 1000, b, ""}, {0, 5000, b, ""}, {0, 1, b[:1], "bytes=0-0"}, {999, -1, b[999:], "bytes=999-999"},
			{10, 5, b[10:15], "bytes=10-14"}, {990, 100, b[990:], "bytes=990-999"}, {500, -1, b[500:], "bytes=500-999"},
		} {
			before := rec.count()
			got, err := readAll(t, c, blobRef(b), nil, 1000, k.off, k.n)
			if err != nil || !bytes.Equal(got, k.want) {
				t.Errorf("[%d,+%d): %d bytes, %v", k.off, k.n, len(got), err)
			}
			if reqs := rec.all()[before:]; len(reqs) != 1 || reqs[0].Header.Get("Range") != k.header {
				t.Errorf("[%d,+%d): asked %q", k.off, k.n, rec.ranges()[before:])
			}
		}
		before := rec.count()
		for _, k := range [][3]int64{{0, 0, -1}, {1000, 1000, -1}, {1000, 5, 0}} {
			if got, err := readAll(t, c, blobRef(b), nil, k[0], k[1], k[2]); err != nil || len(got) != 0 {
				t.Errorf("nothing of %v: %d bytes, %v", k, len(got), err)
			}
		}
		for _, k := range [][3]int64{{-1, 0, -1}, {10, -1, 1}, {10, 11, 1}} {
			if _, err := c.Read(t.Context(), blobRef(b), nil, k[0], k[1], k[2]); err == nil {
				t.Errorf("%v was read", k)
			}
		}
		if rec.count() != before {
			t.Error("the origin was asked for nothing")
		}
	})
}

// A body that ends early is taken up at the byte reached, many times over.
func TestReadShortBodies(t *testing.T) {
	for name, size := range map[string]int{"small": 10_000, "large": 1 << 20} {
		for _, declared := range []bool{true, false} {
			t.Run(fmt.Sprint(name, declared), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := content(size)
					n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
						first, end := asked(r, size)
						part := b[first:min(end, first+size/10)]
						if !declared {
							// Chunked, and ended as if it were whole.
							if r.Header.Get("Range") != "" {
								w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, end-1, size))
								w.WriteHeader(http.StatusPartialContent)
							}
							_, _ = w.Write(part[:len(part)/2])
							w.(http.Flusher).Flush()
							_, _ = w.Write(part[len(part)/2:])
							return
						}
						headOf(w, r, b)
						_, _ = w.Write(part)
						if first+len(part) < end {
							cut(w)
						}
					})
					got, err := readAll(t, testClient(t, n, nil), blobRef(b), nil, int64(size), 0, -1)
					if err != nil || !bytes.Equal(got, b) {
						t.Fatalf("%d of %d bytes, %v", len(got), size, err)
					}
					want := []string{""}
					if !declared && size > blob.MinPieceLength {
						want = []string{"", "bytes=0-0"} // the size is confirmed first
					}
					for i := 1; i < 10; i++ {
						want = append(want, fmt.Sprintf("bytes=%d-%d", i*(size/10), size-1))
					}
					if got := rec.ranges(); !reflect.DeepEqual(got[:len(want)], want) {
						t.Errorf("asked %q", got)
					}
				})
			})
		}
	}
}

func TestReadWithoutProgressEnds(t *testing.T) {
	for name, h := range map[string]func(w http.ResponseWriter, r *http.Request, b []byte){
		"reset before the header": func(w http.ResponseWriter, r *http.Request, b []byte) { panic(http.ErrAbortHandler) },
		"reset after the header": func(w http.ResponseWriter, r *http.Request, b []byte) {
			headOf(w, r, b)
			cut(w)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := content(1000)
				n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, n int) {
					if n == 1 {
						_, _ = w.Write(headOf(w, r, b)[:300])
						cut(w)
					}
					h(w, r, b)
				})
				start := time.Now()
				got, err := readAll(t, testClient(t, n, nil), blobRef(b), nil, 1000, 0, -1)
				if err == nil || !bytes.Equal(got, b[:300]) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				if rec.count() != 1+maxTries || time.Since(start) > 10*time.Second {
					t.Errorf("%d requests in %s", rec.count(), time.Since(start))
				}
			})
		})
	}
}

// An origin that ignores Range never gets its bytes to the wrong offset.
func TestReadRangeIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := content(100_000)
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			if n == 1 {
				_, _ = w.Write(b[:60_000])
				cut(w)
			}
			_, _ = w.Write(b)
		})
		c := testClient(t, n, nil)
		if got, err := readAll(t, c, blobRef(b), nil, 100_000, 0, -1); err != nil || !bytes.Equal(got, b) {
			t.Errorf("resumed: %d bytes, %v", len(got), err)
		}
		if got, err := readAll(t, c, blobRef(b), nil, 100_000, 70_000, 100); err != nil || !bytes.Equal(got, b[70_000:70_100]) {
			t.Errorf("a range: %d bytes, %v", len(got), err)
		}
		if rec.count() != 3 {
			t.Errorf("%d requests", rec.count())
		}
		bounded := testClient(t, n, func(c *Config) { c.MaxSkip = 50_000 })
		if _, err := readAll(t, bounded, blobRef(b), nil, 100_000, 50_001, 10); !errors.Is(err, ErrNoRange) {
			t.Errorf("past MaxSkip: %v", err)
		}
		if got, err := readAll(t, bounded, blobRef(b), nil, 100_000, 50_000, 10); err != nil || !bytes.Equal(got, b[50_000:50_010]) {
			t.Errorf("at MaxSkip: %v", err)
		}
	})
}

// Answers that contradict the question or the size deliver no byte of theirs.
func TestReadContradictions(t *testing.T) {
	b := content(1000)
	partial := func(contentRange string, body []byte) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", contentRange)
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(body)
		}
	}
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter)
		want   error
	}{
		"range starts earlier":  {partial("bytes 90-199/1000", b[90:200]), ErrProtocol},
		"range starts later":    {partial("bytes 110-199/1000", b[110:200]), ErrProtocol},
		"range ends later":      {partial("bytes 100-299/1000", b[100:300]), ErrProtocol},
		"no Content-Range":      {partial("", b[100:200]), ErrProtocol},
		"broken Content-Range":  {partial("bytes 100-199", b[100:200]), ErrProtocol},
		"another size":          {partial("bytes 100-199/1001", b[100:200]), ErrSize},
		"length is not range's": {partial("bytes 100-199/1000", b[100:201]), ErrProtocol},
		"several ranges": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "multipart/byteranges; boundary=x")
			partial("bytes 100-199/1000", b[100:200])(w)
		}, ErrProtocol},
		"200 of another size":    {func(w http.ResponseWriter) { w.Header().Set("Content-Length", "999"); _, _ = w.Write(b[:999]) }, ErrSize},
		"416 with another size":  {func(w http.ResponseWriter) { w.Header().Set("Content-Range", "bytes */90"); w.WriteHeader(416) }, ErrSize},
		"redirect without where": {func(w http.ResponseWriter) { w.WriteHeader(302) }, &StatusError{Code: 302}},
		"204":                    {func(w http.ResponseWriter) { w.WriteHeader(204) }, &StatusError{Code: 204}},
		"416 of its own":         {func(w http.ResponseWriter) { w.WriteHeader(416) }, &StatusError{Code: 416}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, rec := registryOf(t, func(w http.ResponseWriter, _ *http.Request, _ int) { c.answer(w) })
				got, err := readAll(t, testClient(t, n, nil), blobRef(b), nil, 1000, 100, 100)
				var se *StatusError
				if want, ok := c.want.(*StatusError); ok {
					if !errors.As(err, &se) || se.Code != want.Code {
						t.Errorf("got %v, want status %d", err, want.Code)
					}
				} else if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				asked := rec.all()
				if len(got) > 0 || len(asked) > 2 || len(asked) == 2 && asked[1].Header.Get("Range") != "" {
					t.Errorf("%d bytes after %d requests", len(got), len(asked))
				}
			})
		})
	}
}

// An origin that makes nonsense of ranges, or refuses them, is asked for the whole.
func TestReadWithoutRanges(t *testing.T) {
	b := content(10_000)
	for name, answer := range map[string]func(http.ResponseWriter){
		"wrong range": func(w http.ResponseWriter) {
			w.Header().Set("Content-Range", "bytes 7-8/10000")
			w.WriteHeader(http.StatusPartialContent)
		},
		"no Content-Range": func(w http.ResponseWriter) { w.WriteHeader(http.StatusPartialContent) },
		"400":              func(w http.ResponseWriter) { w.WriteHeader(400) },
		"403":              func(w http.ResponseWriter) { w.WriteHeader(403) },
		"416":              func(w http.ResponseWriter) { w.WriteHeader(416) },
		"500":              func(w http.ResponseWriter) { w.WriteHeader(500) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, _ := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
					if r.Header.Get("Range") != "" {
						answer(w)
						return
					}
					_, _ = w.Write(b)
				})
				got, err := readAll(t, testClient(t, n, nil), blobRef(b), nil, 10_000, 4000, 2000)
				if err != nil || !bytes.Equal(got, b[4000:6000]) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		})
	}
}

// What is longer than declared is cut at the size and reported.
func TestReadTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := content(1000)
		long := false
		n, _ := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
			part := b
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", "bytes 100-999/1000")
				w.WriteHeader(http.StatusPartialContent)
				part = b[100:]
			}
			_, _ = w.Write(part[:10])
			w.(http.Flusher).Flush() // no Content-Length
			_, _ = w.Write(part[10:])
			if long {
				_, _ = w.Write([]byte("more"))
			}
		})
		c := testClient(t, n, nil)
		for _, off := range []int64{0, 100} {
			long = false
			if got, err := readAll(t, c, blobRef(b), nil, 1000, off, -1); err != nil || !bytes.Equal(got, b[off:]) {
				t.Errorf("chunked and right: %d bytes, %v", len(got), err)
			}
			long = true
			if got, err := readAll(t, c, blobRef(b), nil, 1000, off, -1); !errors.Is(err, ErrSize) || !bytes.Equal(got, b[off:]) {
				t.Errorf("chunked and too long: %d bytes, %v", len(got), err)
			}
		}
	})
}

// A 206 of less than was asked for is a good answer; the rest is asked for next.
func TestReadPartOfRange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := content(1000)
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
			first, end := asked(r, 1000)
			end = min(end, first+300)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", first, end-1))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(b[first:end])
		})
		got, err := readAll(t, testClient(t, n, nil), blobRef(b), nil, 1000, 50, 900)
		if err != nil || !bytes.Equal(got, b[50:950]) || rec.count() != 3 {
			t.Errorf("%d bytes, %v, %q", len(got), err, rec.ranges())
		}
	})
}

// Places at the host are given back whatever happens to a reader.
func TestReadGivesPlacesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := content(100)
		n, _ := registryOf(t, func(w http.ResponseWriter, r *http.Request, n int) {
			switch n % 6 {
			case 4:
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(http.StatusTooManyRequests)
			case 0:
				w.WriteHeader(http.StatusForbidden)
			case 1:
				panic(http.ErrAbortHandler)
			case 2:
				w.Header().Set("Content-Length", "3")
				_, _ = w.Write([]byte("abc"))
			default:
				serveBytes(w, r, b)
			}
		})
		c := testClient(t, n, func(c *Config) { c.MaxRequests = 1 })
		for range 50 {
			r, err := c.Read(t.Context(), blobRef(b), nil, 100, 10, -1)
			if err == nil {
				_, _ = r.Read(make([]byte, 5))
				_ = r.Close()
			}
			pass(time.Minute)
			if resp, err := c.Get(t.Context(), tagRef("v1"), nil); err == nil {
				_ = resp.Body.Close()
			}
			if resp, err := c.Head(t.Context(), tagRef("v1"), nil); err == nil && resp.Body != http.NoBody {
				t.Error("HEAD has a body to be closed")
			}
		}
	})
}
