package fetch

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// slow is a body that sends a byte each time after a wait, until ctx ends.
type slow struct {
	ctx  context.Context
	wait time.Duration
}

func (s *slow) Read(b []byte) (int, error) {
	select {
	case <-time.After(s.wait):
		return copy(b, "x"), nil
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	}
}
func (s *slow) Close() error { return nil }

func TestWatchdogTellsSlowFromStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dog := newWatchdog(t.Context(), time.Second)
		src := &slow{ctx: dog.ctx, wait: 900 * time.Millisecond}
		body := &guarded{ReadCloser: src, dog: dog}
		defer body.Close()
		var b [1]byte
		for range 5 {
			if _, err := body.Read(b[:]); err != nil {
				t.Fatalf("a slow body was given up: %v", err)
			}
			// A reader that is busy with its disk is no stalled source.
			<-time.After(time.Minute)
		}
		src.wait = time.Hour
		if _, err := body.Read(b[:]); !errors.Is(err, origin.ErrStalled) {
			t.Errorf("a stalled body gave %v", err)
		}
	})
}

func TestDaemonThatStalls(t *testing.T) {
	hang := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			w.Header().Set("Content-Length", "10")
			_, _ = w.Write([]byte("01234"))
			w.(http.Flusher).Flush()
		}
		<-hang
	}))
	defer srv.Close()
	defer close(hang)
	m, err := NewMirror(MirrorConfig{URL: srv.URL, Stall: 30 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	d := blob.FromBytes([]byte("0123456789"))
	ref := origin.Ref{Kind: origin.KindBlob, Registry: "r.example", Repository: "app", Reference: string(d)}
	reply, err := m.Open(t.Context(), Want{Ref: ref, Digest: d, Size: 10}, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	if b, err := io.ReadAll(reply.Body); !errors.Is(err, origin.ErrStalled) || len(b) != 5 {
		t.Errorf("%d bytes and %v, want 5 and ErrStalled", len(b), err)
	}
	ref.Kind = origin.KindManifest
	if _, err := m.Open(t.Context(), Want{Ref: ref, Digest: d, Size: 10}, 0, ""); !errors.Is(err, origin.ErrStalled) {
		t.Errorf("no headers: %v, want ErrStalled", err)
	}
}

func TestValidatorIsOnlyWhatIfRangeMayName(t *testing.T) {
	const old, date = "Mon, 02 Jan 2006 15:04:05 GMT", "Mon, 02 Jan 2006 16:04:05 GMT"
	for _, c := range []struct{ etag, modified, date, want string }{
		{`"a"`, old, date, `"a"`}, {`W/"a"`, old, date, old}, {``, old, date, old}, {``, date, date, ``}, {``, old, ``, ``}, {`W/"a"`, ``, date, ``}, {``, `nonsense`, date, ``},
	} {
		h := http.Header{"Etag": {c.etag}, "Last-Modified": {c.modified}, "Date": {c.date}}
		if got := validator(h); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	const date, later = "Mon, 02 Jan 2006 15:04:05 GMT", "Mon, 02 Jan 2006 15:05:05 GMT"
	for value, want := range map[string]time.Duration{"": 0, "3": 3 * time.Second, "-3": 0, "x": 0, later: time.Minute, date: 0, "99999999999999999999": 0} {
		if got := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("bytes */10")
	f.Add("bytes 5-9/*")
	f.Fuzz(func(t *testing.T, s string) {
		start, ok := contentRangeStart(s)
		if ok && start < 0 || contentRangeSize(s) < -1 {
			t.Fatalf("%q: %d, %d", s, start, contentRangeSize(s))
		}
	})
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://auth.example/token",service="s",scope="repository:a:pull"`, "https")
	f.Add(`bearer service="realm=x",realm=http://10.0.0.1/t`, "http")
	f.Add(`Bearer realm="https://u:p@x/"`, "https")
	f.Fuzz(func(t *testing.T, field, scheme string) {
		if scheme != "http" {
			scheme = "https"
		}
		r := &relay{registry: "registry.example:5000"}
		resp := &http.Response{Header: http.Header{"Www-Authenticate": {field}}}
		r.chooseChallenge(resp, scheme)
		got := resp.Header.Get("Www-Authenticate")
		m := realmParam.FindStringSubmatch(got)
		if !strings.HasPrefix(strings.ToLower(got), "bearer") || m == nil {
			return
		}
		// The library must be led to the registry's own host and nowhere else.
		u, err := url.Parse(m[1] + m[2])
		if err != nil || u.Host != "registry.example:0" || u.Scheme != scheme {
			t.Fatalf("%q became %q", field, got)
		}
	})
}

func TestRealmMayNotBeMetadata(t *testing.T) {
	for address, ok := range map[string]bool{
		"10.0.0.1:443": true, "127.0.0.1:80": true, "[2001:db8::1]:443": true,
		"169.254.169.254:80": false, "[fe80::1%eth0]:80": false, "[::ffff:169.254.169.254]:80": false, "100.100.100.200:80": false, "0.0.0.0:80": false, "nonsense": false,
	} {
		if err := RefuseMetadata(t.Context(), "tcp", address, nil); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}
