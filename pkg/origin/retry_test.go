package origin

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestRetriesOfTrouble(t *testing.T) {
	b := content(1000)
	for _, code := range []int{500, 502, 503, 504, 521, 408} {
		for fails := 1; fails <= maxTries; fails++ {
			t.Run(fmt.Sprintf("%d x%d", code, fails), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, n int) {
						if n <= fails {
							w.Header().Set("Content-Type", "application/json")
							w.WriteHeader(code)
							_, _ = w.Write([]byte(`{"errors":[{"code":"UNAVAILABLE","message":"later"}]}`))
							return
						}
						serveBytes(w, r, b)
					})
					start := time.Now()
					got, err := readAll(t, testClient(t, n, nil), blobRef(b), nil, 1000, 0, -1)
					if fails < maxTries {
						if err != nil || !bytes.Equal(got, b) {
							t.Errorf("%d bytes, %v", len(got), err)
						}
					} else {
						var se *StatusError
						if !errors.As(err, &se) || se.Code != code || !bytes.Contains(se.Body, []byte("UNAVAILABLE")) ||
							se.Header.Get("Content-Type") != "application/json" {
							t.Errorf("got %v", err)
						}
						if rec.count() != maxTries {
							t.Errorf("%d requests", rec.count())
						}
					}
					if took := time.Since(start); took < 100*time.Millisecond || took > 3*time.Second {
						t.Errorf("took %s", took)
					}
				})
			})
		}
	}
}

// Statuses that say no are not asked for twice.
func TestNoRetryOfRefusals(t *testing.T) {
	for _, code := range []int{400, 401, 403, 404, 405, 410, 412, 451, 501} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, rec := registryOf(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
					w.Header().Set("Www-Authenticate", `Basic realm="x"`)
					w.Header().Set("Ratelimit-Remaining", "99;w=21600")
					w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
					w.Header().Set("Set-Cookie", "a=b")
					w.WriteHeader(code)
					_, _ = w.Write(content(maxErrorBody + 10))
				})
				_, err := readAll(t, testClient(t, n, nil), blobRef(nil), withAuth("Basic eA=="), 10, 0, -1)
				var se *StatusError
				if !errors.As(err, &se) || se.Code != code || len(se.Body) != maxErrorBody || rec.count() != 1 {
					t.Fatalf("%v after %d requests", err, rec.count())
				}
				h := se.Header
				if h.Get("Www-Authenticate") == "" || h.Get("Ratelimit-Remaining") == "" || h.Get("Docker-Distribution-Api-Version") == "" || h.Get("Set-Cookie") != "" {
					t.Errorf("header %v", h)
				}
			})
		})
	}
}

func TestRetryAfter(t *testing.T) {
	for name, c := range map[string]struct {
		code     int
		header   func() string
		min, max time.Duration // of the wait; max 0: refused at once
		after    time.Duration
	}{
		"429 in seconds":  {429, func() string { return "7" }, 7 * time.Second, 12 * time.Second, 0},
		"429 by date":     {429, func() string { return time.Now().Add(9 * time.Second).UTC().Format(http.TimeFormat) }, 8 * time.Second, 13 * time.Second, 0},
		"429 without":     {429, func() string { return "" }, time.Second, 3 * time.Second, 0},
		"429 for an hour": {429, func() string { return "3600" }, 0, 0, time.Hour},
		"503 in seconds":  {503, func() string { return "7" }, 7 * time.Second, 9 * time.Second, 0},
		"503 for an hour": {503, func() string { return "3600" }, 0, 0, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := content(100)
				n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, n int) {
					if n == 1 {
						if v := c.header(); v != "" {
							w.Header().Set("Retry-After", v)
						}
						w.WriteHeader(c.code)
						return
					}
					serveBytes(w, r, b)
				})
				start := time.Now()
				got, err := readAll(t, testClient(t, n, nil), blobRef(b), nil, 100, 0, -1)
				took := time.Since(start)
				if c.max == 0 {
					var se *StatusError
					if !errors.As(err, &se) || se.RetryAfter != c.after || se.Code != c.code || took > 0 || rec.count() != 1 {
						t.Errorf("%v after %s", err, took)
					}
					return
				}
				if err != nil || !bytes.Equal(got, b) || took < c.min || took > c.max {
					t.Errorf("%d bytes, %v, after %s", len(got), err, took)
				}
			})
		})
	}
}

// Retries are a small share of the requests, however many fail.
func TestRetryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) { w.WriteHeader(http.StatusBadGateway) })
		c := testClient(t, n, nil)
		const calls = 200
		var wg sync.WaitGroup
		for range calls {
			wg.Go(func() {
				resp, err := c.Head(t.Context(), tagRef("v1"), nil)
				if code := status(t, resp, err); code != http.StatusBadGateway {
					t.Errorf("status %d", code)
				}
			})
		}
		wg.Wait()
		if extra := rec.count() - calls; extra < 5 || extra > calls/5+int(maxRetries) {
			t.Errorf("%d retries for %d calls", extra, calls)
		}
	})
}

// No more requests are under way than MaxRequests, and every caller gets there.
func TestMaxRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := content(100)
		var mu sync.Mutex
		now, most := 0, 0
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			pass(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
			serveBytes(w, r, b)
		})
		c := testClient(t, n, func(c *Config) { c.MaxRequests = 3 })
		var wg sync.WaitGroup
		for range 12 {
			wg.Go(func() {
				if got, err := readAll(t, c, blobRef(b), nil, 100, 0, -1); err != nil || !bytes.Equal(got, b) {
					t.Errorf("a reader: %v", err)
				}
			})
		}
		wg.Wait()
		if most != 3 || rec.count() != 12 {
			t.Errorf("%d at a time, %d requests", most, rec.count())
		}
	})
}

// Of what a read did not find, too.
func TestMissingIsRememberedByRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, rec := registryOf(t, func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(http.StatusNotFound) })
		c := testClient(t, n, nil)
		for range 5 {
			var se *StatusError
			if _, err := c.Read(t.Context(), blobRef(nil), nil, 100, 0, -1); !errors.As(err, &se) || se.Code != 404 {
				t.Errorf("Read: %v", err)
			}
		}
		if rec.count() != 1 {
			t.Errorf("%d requests", rec.count())
		}
	})
}

func TestMissingIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := content(100)
		there := false
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
			if r.Method == http.MethodPut {
				there = true
				w.WriteHeader(http.StatusCreated)
				return
			}
			if !there {
				w.WriteHeader(http.StatusNotFound)
				_, _ = w.Write([]byte("BLOB_UNKNOWN"))
				return
			}
			serveBytes(w, r, b)
		})
		c := testClient(t, n, nil)
		read := func(ref Ref, h http.Header) int {
			body, err := c.Read(t.Context(), ref, h, 100, 0, -1)
			if err == nil {
				_ = body.Close()
				return http.StatusOK
			}
			var se *StatusError
			if !errors.As(err, &se) || string(se.Body) != "BLOB_UNKNOWN" {
				t.Fatalf("the 404 lost its body: %v", err)
			}
			return se.Code
		}
		for range 5 {
			if code := read(blobRef(b), nil); code != 404 {
				t.Errorf("status %d", code)
			}
		}
		if rec.count() != 1 {
			t.Errorf("%d requests for what is not there", rec.count())
		}
		read(blobRef(b), withAuth("Bearer other"))
		if rec.count() != 2 {
			t.Errorf("another credential must be asked for: %d requests", rec.count())
		}
		// What a client asks for itself is never answered from memory.
		for i, ask := range []func() (*http.Response, error){
			func() (*http.Response, error) { return c.Head(t.Context(), blobRef(b), nil) },
			func() (*http.Response, error) { return c.Get(t.Context(), blobRef(b), nil) },
			func() (*http.Response, error) { return c.Pass(t.Context(), http.MethodGet, blobRef(b), nil) },
		} {
			if resp, err := ask(); status(t, resp, err) != 404 || rec.count() != 3+i {
				t.Errorf("question %d was answered from memory", i)
			}
		}
		forward(t, c, http.MethodPut, "/v2/"+testRepo+"/blobs/uploads/1", nil)
		if code := read(blobRef(b), nil); code != 200 {
			t.Errorf("after a push: %d", code)
		}
		there = false
		other := Ref{Kind: KindBlob, Registry: testRegistry, Repository: "other", Reference: blobRef(b).Reference}
		if code := read(other, nil); code != 404 {
			t.Errorf("another repository: %d", code)
		}
		there = true
		pass(missingLife)
		if code := read(other, nil); code != 200 {
			t.Errorf("after %s: %d", missingLife, code)
		}
	})
}
