package origin

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// limiter is a registry that answers 429 to some requests for a while.
type limiter struct {
	rec    *record
	b      []byte
	until  time.Time
	after  string // Retry-After
	refuse func(*http.Request) bool

	mu    sync.Mutex
	early int // requests that were refused
}

func newLimiter(t *testing.T, lasts time.Duration, after string, refuse func(*http.Request) bool) (*memNet, *limiter) {
	l := &limiter{b: content(100), until: time.Now().Add(lasts), after: after, refuse: refuse}
	n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if refuse(r) && time.Now().Before(l.until) {
			l.mu.Lock()
			l.early++
			l.mu.Unlock()
			if after != "" {
				w.Header().Set("Retry-After", after)
			}
			w.Header().Set("Ratelimit-Limit", "100;w=21600")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = w.Write([]byte("toomanyrequests"))
			return
		}
		serveBytes(w, r, l.b)
	})
	l.rec = rec
	return n, l
}

// Reads wait out the pause of their own credential, and come one after the other.
func TestReadsWaitOutTheirPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l := newLimiter(t, 20*time.Second, "20", func(*http.Request) bool { return true })
		c := testClient(t, n, nil)
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				pass(time.Duration(i) * time.Millisecond)
				if got, err := readAll(t, c, blobRef(l.b), nil, 100, 0, -1); err != nil || !bytes.Equal(got, l.b) {
					t.Errorf("a reader: %v", err)
				}
			})
		}
		wg.Wait()
		if l.early != 1 || l.rec.count() != 11 {
			t.Errorf("%d requests came in the pause, %d in all", l.early, l.rec.count())
		}
	})
}

// Nobody else waits: not another credential, not another kind of request, not
// another host.
func TestPauseIsForOneCredentialAndKind(t *testing.T) {
	const who = "Bearer limited"
	for name, refuse := range map[string]func(*http.Request) bool{
		"manifest GET": func(r *http.Request) bool {
			return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/")
		},
		"manifest HEAD": func(r *http.Request) bool {
			return r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/manifests/")
		},
		"blob": func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, l := newLimiter(t, time.Hour, "3600", func(r *http.Request) bool {
					return r.Header.Get("Authorization") == who && refuse(r)
				})
				c := testClient(t, n, nil)
				blob := blobRef(l.b)
				blob.Repository = "other/repository"
				kinds := map[string]func(auth string) error{
					"manifest GET": func(auth string) error {
						resp, err := c.Get(t.Context(), tagRef("v1"), withAuth(auth))
						return refusedBy(t, resp, err)
					},
					"manifest HEAD": func(auth string) error {
						resp, err := c.Head(t.Context(), tagRef("v1"), withAuth(auth))
						return refusedBy(t, resp, err)
					},
					"blob": func(auth string) error {
						_, err := readAll(t, c, blob, withAuth(auth), 100, 0, -1)
						return err
					},
				}
				if err := kinds[name](who); err == nil {
					t.Fatal("it was not refused")
				}
				start := time.Now()
				for kind, ask := range kinds {
					if err := ask("Bearer another"); err != nil {
						t.Errorf("another credential, %s: %v", kind, err)
					}
					if err := ask(who); (err != nil) != (kind == name) {
						t.Errorf("%s: %v", kind, err)
					}
				}
				if took := time.Since(start); took > 0 {
					t.Errorf("somebody waited %s", took)
				}
			})
		})
	}
}

func refusedBy(t *testing.T, resp *http.Response, err error) error {
	if code := status(t, resp, err); code != http.StatusOK {
		return errors.New(http.StatusText(code))
	}
	return nil
}

// A client's question is the origin's to answer, in a pause too: one is sent at a
// time, and the others get what it gets.
func TestQuestionsInAPauseAreSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l := newLimiter(t, 20*time.Second, "30", func(r *http.Request) bool {
			pass(100 * time.Millisecond)
			return true
		})
		c := testClient(t, n, nil)
		ask := func() int {
			resp, err := c.Get(t.Context(), tagRef("v1"), nil)
			if err == nil && resp.StatusCode == http.StatusTooManyRequests && (resp.Header.Get("Retry-After") != "30" ||
				resp.Header.Get("Ratelimit-Limit") == "" || slurp(t, resp.Body) != "toomanyrequests") {
				t.Errorf("a refusal is not the origin's: %v", resp.Header)
			}
			return status(t, resp, err)
		}
		together := func(want int) {
			t.Helper()
			start := time.Now()
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if code := ask(); code != want {
						t.Errorf("status %d, want %d", code, want)
					}
				})
			}
			wg.Wait()
			if took := time.Since(start); took > time.Second {
				t.Errorf("it took %s", took)
			}
		}
		if code := ask(); code != http.StatusTooManyRequests {
			t.Fatalf("status %d", code)
		}
		pass(5 * time.Second)
		together(http.StatusTooManyRequests)
		if l.early != 2 {
			t.Errorf("%d requests for 51 questions in a pause", l.early)
		}
		// The origin answers sooner than it said: so do we.
		pass(15 * time.Second)
		together(http.StatusOK)
	})
}

// A probe whose client goes away leaves its place to the next.
func TestProbeIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hang atomic.Bool
		n, l := newLimiter(t, 20*time.Second, "60", func(r *http.Request) bool {
			if hang.Swap(false) {
				<-r.Context().Done()
			}
			pass(100 * time.Millisecond)
			return true
		})
		c := testClient(t, n, nil)
		resp, err := c.Head(t.Context(), tagRef("v1"), nil)
		status(t, resp, err)
		hang.Store(true)
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				pass(time.Duration(i) * time.Second)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				resp, err := c.Head(ctx, tagRef("v1"), nil)
				if i == 0 {
					if err == nil {
						t.Error("the first was answered")
					}
				} else if code := status(t, resp, err); code != http.StatusTooManyRequests {
					t.Errorf("client %d: %d", i, code)
				}
			})
		}
		wg.Wait()
		if l.rec.count() != 3 {
			t.Errorf("%d requests; want the first, the one given up, and one for the rest", l.rec.count())
		}
	})
}

// A CDN that refuses one blob is not the registry: only that read waits.
func TestPauseOfACDN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, other := content(100), content(101)
		var refused atomic.Int32
		n, _ := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
			if strings.Contains(r.URL.Path, blobRef(b).Reference) {
				http.Redirect(w, r, "http://cdn.example/x", http.StatusTemporaryRedirect)
				return
			}
			serveBytes(w, r, other)
		})
		n.serve(t, "cdn.example:80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if refused.Add(1) == 1 {
				w.Header().Set("Retry-After", "20")
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			serveBytes(w, r, b)
		}))
		c := testClient(t, n, nil)
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if got, err := readAll(t, c, blobRef(b), nil, 100, 0, -1); err != nil || !bytes.Equal(got, b) || time.Since(start) < 20*time.Second {
				t.Errorf("the refused blob: %v after %s", err, time.Since(start))
			}
		})
		pass(time.Second)
		if got, err := readAll(t, c, blobRef(other), nil, 101, 0, -1); err != nil || !bytes.Equal(got, other) || time.Since(start) > time.Second {
			t.Errorf("another blob: %v after %s", err, time.Since(start))
		}
		wg.Wait()
	})
}

func TestUnhintedPausesGrow(t *testing.T) {
	g, key, other := newGate(1, time.Now()), pauseKey{kind: KindBlob}, pauseKey{kind: KindManifest}
	now := time.Now()
	refused := &refusal{code: 429, header: http.Header{}}
	for _, seconds := range []int{1, 2, 4, 8, 16, 32, 32} {
		want := time.Duration(seconds) * time.Second
		g.saw(key, now, now, refused)
		// What was under way meanwhile makes it no longer, and no answer to it shorter.
		g.saw(key, now.Add(-time.Second), now, refused)
		g.saw(key, now.Add(-time.Second), now, nil)
		if left, _, _ := g.pause(key, now); left != want {
			t.Errorf("pause of %s, want %s", left, want)
		}
		now = now.Add(time.Hour)
	}
	g.saw(other, now, now, refused)
	if left, _, _ := g.pause(other, now); left != time.Second {
		t.Errorf("the first of another kind: %s", left)
	}
	g.saw(key, now, now, nil)
	g.saw(key, now, now, refused)
	if left, _, _ := g.pause(key, now); left != time.Second {
		t.Errorf("after a success: %s", left)
	}
}

func TestPausesAreBounded(t *testing.T) {
	g, now := newGate(1, time.Now()), time.Now()
	for i := range 3 * maxPauses {
		key := pauseKey{kind: KindBlob}
		key.cred[0], key.cred[1] = byte(i), byte(i>>8)
		g.saw(key, now, now, &refusal{code: 429, header: http.Header{"Retry-After": {"60"}}})
		if left, _, _ := g.pause(key, now); left != time.Minute || len(g.pauses) > maxPauses {
			t.Fatalf("pause %d of %s, %d kept", i, left, len(g.pauses))
		}
	}
}

// A short pause is waited out by who only asks, too, who met it first among them: the
// host hears nobody until it is over, and then not all at once in vain.
func TestShortPauseIsWaitedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const asked = 5 * time.Second
		began := time.Now()
		var mu sync.Mutex
		early := 0
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, n int) {
			mu.Lock()
			defer mu.Unlock()
			if time.Since(began) < asked {
				early++
				w.Header().Set("Retry-After", "5")
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			w.WriteHeader(http.StatusOK)
		})
		c := testClient(t, n, nil)
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				pass(time.Duration(i) * 100 * time.Millisecond)
				resp, err := c.Head(t.Context(), tagRef("v1"), nil)
				if code := status(t, resp, err); code != http.StatusOK {
					t.Errorf("client %d: %d", i, code)
				}
			})
		}
		wg.Wait()
		if early != 1 || rec.count() != 11 {
			t.Errorf("%d requests came during the pause, %d in all; want the one that began it and 10", early, rec.count())
		}
		if took := time.Since(began); took > asked+3*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// The host's Retry-After is told to everybody in full; but after a minute
// somebody tries.
func TestLongPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		})
		c := testClient(t, n, nil)
		for range 3 {
			var se *StatusError
			if _, err := c.Read(t.Context(), blobRef(nil), nil, 1, 0, -1); !errors.As(err, &se) || se.RetryAfter != time.Hour {
				t.Errorf("got %v", err)
			}
		}
		if rec.count() != 1 {
			t.Errorf("%d requests", rec.count())
		}
		pass(maxPause)
		if _, err := c.Read(t.Context(), blobRef(nil), nil, 1, 0, -1); err == nil || rec.count() != 2 {
			t.Errorf("after a minute: %v, %d requests", err, rec.count())
		}
	})
}
