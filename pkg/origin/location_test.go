package origin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// bucket is a store behind a registry that redirects to presigned URLs. A URL is
// good for GET, until it expires or has sent quota bytes.
type bucket struct {
	mu     sync.Mutex
	b      []byte
	life   time.Duration
	quota  int // bytes a URL sends, and then 403; 0 no bound
	signed map[string]*signature
	seen   []string // Authorization headers that came here
	reg    *record
	here   *record
}

type signature struct {
	method string
	until  time.Time
	sent   int
}

func newBucket(t *testing.T, n *memNet, b []byte) *bucket {
	k := &bucket{b: b, life: 20 * time.Minute, signed: map[string]*signature{}, reg: &record{}, here: &record{}}
	n.serve(t, testRegistry+":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := k.reg.add(r)
		k.mu.Lock()
		sig := fmt.Sprint("sig-", id)
		k.signed[sig] = &signature{method: r.Method, until: time.Now().Add(k.life)}
		k.mu.Unlock()
		http.Redirect(w, r, fmt.Sprintf("http://bucket.example.net/obj?X-Amz-Expires=%d&X-Amz-Signature=%s", int(k.life.Seconds()), sig), http.StatusTemporaryRedirect)
	}))
	n.serve(t, "bucket.example.net:80", k)
	return k
}

func (k *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.here.add(r)
	k.mu.Lock()
	s := k.signed[r.URL.Query().Get("X-Amz-Signature")]
	if a := r.Header.Get("Authorization"); a != "" {
		k.seen = append(k.seen, a)
	}
	if s == nil || s.method != r.Method || time.Now().After(s.until) || k.quota > 0 && s.sent >= k.quota {
		k.mu.Unlock()
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "<Error><Code>AccessDenied</Code></Error>")
		return
	}
	quota := k.quota
	part := headOf(w, r, k.b)
	if quota > 0 && len(part) > quota-s.sent {
		part = part[:quota-s.sent]
		s.sent = quota
	} else {
		s.sent += len(part)
		quota = 0
	}
	k.mu.Unlock()
	_, _ = w.Write(part)
	if quota > 0 {
		cut(w)
	}
}

// A presigned URL that expires in the middle of a blob is replaced by another,
// and the blob goes on at the byte reached.
func TestLocationExpiresMidBlob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, b := newMemNet(), content(1<<20)
		k := newBucket(t, n, b)
		k.quota = 300_000
		got, err := readAll(t, testClient(t, n, nil), blobRef(b), withAuth("Bearer t"), 1<<20, 0, -1)
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if k.reg.count() != 4 {
			t.Errorf("the registry was asked %d times for four locations", k.reg.count())
		}
		if len(k.seen) > 0 {
			t.Errorf("the bucket saw %q", k.seen)
		}
	})
}

// Ranged reads of one blob cost the registry one request, for each credential
// and as long as the location may be used.
func TestLocationIsRemembered(t *testing.T) {
	for life, lasts := range map[time.Duration]time.Duration{20 * time.Minute: maxLocation, time.Minute: time.Minute} {
		t.Run(life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, b := newMemNet(), content(10_000)
				k := newBucket(t, n, b)
				k.life = life
				c := testClient(t, n, nil)
				read := func(ref Ref, h http.Header) {
					t.Helper()
					if got, err := readAll(t, c, ref, h, 10_000, 500, 1000); err != nil || !bytes.Equal(got, b[500:1500]) {
						t.Errorf("%d bytes, %v", len(got), err)
					}
				}
				if resp, err := c.Head(t.Context(), blobRef(b), nil); status(t, resp, err) != 200 {
					t.Error("HEAD failed")
				}
				for range 5 {
					read(blobRef(b), nil)
				}
				if k.reg.count() != 2 || k.here.count() != 6 {
					t.Errorf("five reads: %d requests at the registry, %d at the bucket", k.reg.count()-1, k.here.count()-1)
				}
				varying := http.Header{"Accept-Encoding": {"gzip"}, "User-Agent": {"x"}}
				read(blobRef(b), varying)
				if k.reg.count() != 2 {
					t.Error("a header that is no credential made a difference")
				}
				read(blobRef(b), withAuth("Bearer a"))
				read(blobRef(b), withAuth("Bearer b"))
				if k.reg.count() != 4 {
					t.Error("a location was used for another credential")
				}
				pass(lasts)
				read(blobRef(b), nil)
				if k.reg.count() != 5 {
					t.Errorf("after %s the registry was not asked again", lasts)
				}
			})
		})
	}
}

// A bucket that refuses every location is not asked for ever, and its answer is
// what the caller sees.
func TestLocationAlwaysRefused(t *testing.T) {
	for _, code := range []int{400, 403, 404} {
		synctest.Test(t, func(t *testing.T) {
			n, b := newMemNet(), content(100)
			k := newBucket(t, n, b)
			bad := &record{}
			n.serve(t, "bucket.example.net:80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				bad.add(r)
				w.WriteHeader(code)
			}))
			_, err := readAll(t, testClient(t, n, nil), blobRef(b), nil, 100, 0, -1)
			var se *StatusError
			if !errors.As(err, &se) || se.Code != code {
				t.Errorf("got %v", err)
			}
			if k.reg.count() != maxTries || bad.count() != maxTries {
				t.Errorf("%d and %d requests", k.reg.count(), bad.count())
			}
			if err != nil && strings.Contains(err.Error(), "Signature") {
				t.Errorf("presigned query in the error: %v", err)
			}
		})
	}
}

// Revoked rights count from the next resolution on: a 401 of the registry ends a
// read whose location has expired.
func TestLocationExpiresAndRightsAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, b := newMemNet(), content(1000)
		k := newBucket(t, n, b)
		k.quota = 300
		c := testClient(t, n, nil)
		r, err := c.Read(t.Context(), blobRef(b), withAuth("Bearer t"), 1000, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		n.serve(t, testRegistry+":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Www-Authenticate", bearerChallenge)
			w.WriteHeader(http.StatusUnauthorized)
		}))
		c.Close() // connections to the old handler
		got, err := io.ReadAll(r)
		var se *StatusError
		if !errors.As(err, &se) || se.Code != 401 || se.Header.Get("Www-Authenticate") == "" || !bytes.Equal(got, b[:300]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

func TestExpiringIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newExpiring[int, int](10)
		for i := range 1000 {
			m.put(i, i, time.Minute)
			if len(m.entries) > 10 {
				t.Fatalf("%d entries", len(m.entries))
			}
			if v, ok := m.get(i); !ok || v != i {
				t.Fatalf("entry %d is gone", i)
			}
		}
		m.put(1, 1, time.Hour)
		pass(time.Minute)
		if _, ok := m.get(999); ok {
			t.Error("an entry that ended is there")
		}
		for i := range 9 {
			m.put(i+2000, i, time.Minute)
		}
		if _, ok := m.get(1); !ok {
			t.Error("an entry that lives gave way while others had ended")
		}
		m.put(5, 5, 0)
		if _, ok := m.get(5); ok {
			t.Error("an entry without life is there")
		}
	})
}
