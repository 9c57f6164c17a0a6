package origin

import (
	"context"
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

// Every kind of content is asked for at its end point of the spec, and whatever
// the registry answers is the caller's, to the letter.
func TestPassThrough(t *testing.T) {
	d := blob.FromBytes([]byte("x")).String()
	for want, ref := range map[string]Ref{
		"/v2/team/app/blobs/" + d:                         {Kind: KindBlob, Reference: d},
		"/v2/team/app/manifests/v1":                       {Kind: KindManifest, Reference: "v1"},
		"/v2/team/app/manifests/" + d:                     {Kind: KindManifest, Reference: d},
		"/v2/team/app/tags/list?n=5&last=b":               {Kind: KindTags, Query: "n=5&last=b"},
		"/v2/team/app/referrers/" + d + "?artifactType=a": {Kind: KindReferrers, Reference: d, Query: "artifactType=a"},
	} {
		ref.Registry, ref.Repository = testRegistry, testRepo
		synctest.Test(t, func(t *testing.T) {
			for _, code := range []int{200, 206, 304, 400, 401, 403, 404, 412, 416, 451} {
				n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
					w.Header().Set("Docker-Content-Digest", d)
					w.Header().Set("Www-Authenticate", bearerChallenge)
					w.Header().Set("Link", "</v2/x>; rel=next")
					w.Header().Set("Content-Length", "4")
					w.WriteHeader(code)
					if r.Method == http.MethodGet {
						_, _ = io.WriteString(w, "body")
					}
				})
				c := testClient(t, n, nil)
				header := withAuth("Bearer t")
				header["Accept"] = []string{"a/b", "c/d"}
				header.Set("If-None-Match", `"x"`)
				header.Set("Range", "bytes=0-3")
				header.Set("User-Agent", "containerd/2.4.2")
				resp, err := c.Get(t.Context(), ref, header)
				if err != nil || resp.StatusCode != code || resp.Header.Get("Www-Authenticate") != bearerChallenge || resp.Header.Get("Link") == "" {
					t.Fatalf("GET %d: %v, %v", code, resp, err)
				}
				if got := slurp(t, resp.Body); code != 304 && got != "body" {
					t.Errorf("GET %d: body %q", code, got)
				}
				r := rec.all()[0]
				if got := r.URL.RequestURI(); got != want {
					t.Errorf("asked %s, want %s", got, want)
				}
				for k, vs := range header {
					if fmt.Sprint(r.Header[k]) != fmt.Sprint(vs) {
						t.Errorf("%s arrived as %v", k, r.Header[k])
					}
				}
				resp, err = c.Head(t.Context(), ref, header)
				if err != nil || resp.StatusCode != code || resp.Header.Get("Docker-Content-Digest") != d {
					t.Errorf("HEAD %d: %v, %v", code, resp, err)
				}
				if code == 200 && resp.ContentLength != 4 {
					t.Errorf("HEAD: length %d", resp.ContentLength)
				}
				if resp.Request.Header.Get("Authorization") != "" {
					t.Error("the answer shows the request's Authorization")
				}
			}
		})
	}
}

func TestBadRefs(t *testing.T) {
	d := blob.FromBytes(nil).String()
	n, rec := registryOf(t, func(http.ResponseWriter, *http.Request, int) {})
	c := testClient(t, n, nil)
	for name, ref := range map[string]Ref{
		"zero":                     {},
		"unknown kind":             {Kind: 99, Registry: testRegistry, Repository: "a", Reference: d},
		"registry with user":       {Kind: KindBlob, Registry: "u@" + testRegistry, Repository: "a", Reference: d},
		"repository that climbs":   {Kind: KindBlob, Registry: testRegistry, Repository: "a/../../b", Reference: d},
		"blob by tag":              {Kind: KindBlob, Registry: testRegistry, Repository: "a", Reference: "latest"},
		"referrers of a tag":       {Kind: KindReferrers, Registry: testRegistry, Repository: "a", Reference: "latest"},
		"manifest that climbs":     {Kind: KindManifest, Registry: testRegistry, Repository: "a", Reference: "../../x"},
		"manifest without":         {Kind: KindManifest, Registry: testRegistry, Repository: "a"},
		"blob with a query":        {Kind: KindBlob, Registry: testRegistry, Repository: "a", Reference: d, Query: "x=1"},
		"URL with password":        {Kind: KindURL, URL: "http://u:p@" + testRegistry + "/x"},
		"URL of a file":            {Kind: KindURL, URL: "file:///etc/passwd"},
		"another digest algorithm": {Kind: KindBlob, Registry: testRegistry, Repository: "a", Reference: "md5:d41d8cd98f00b204e9800998ecf8427e"},
	} {
		if _, err := c.Head(t.Context(), ref, nil); err == nil {
			t.Errorf("%s: Head", name)
		}
		if _, err := c.Read(t.Context(), ref, nil, 10, 0, -1); err == nil {
			t.Errorf("%s: Read", name)
		}
	}
	if rec.count() > 0 {
		t.Errorf("%d requests were sent", rec.count())
	}
}

func TestOnlyListed(t *testing.T) {
	n := newMemNet()
	for _, a := range []string{testRegistry + ":80", "other.example:80"} {
		n.serve(t, a, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	}
	c := testClient(t, n, func(c *Config) { c.OnlyListed = true })
	for url, ok := range map[string]bool{"http://" + testRegistry + "/f": true, "http://other.example/f": false, "https://" + testRegistry + "/f": false} {
		if _, err := c.Head(t.Context(), Ref{Kind: KindURL, URL: url}, nil); (err == nil) != ok || err != nil && !errors.Is(err, ErrUnlistedHost) {
			t.Errorf("%s: %v", url, err)
		}
	}
	ref := tagRef("v1")
	ref.Registry = "other.example"
	if _, err := c.Head(t.Context(), ref, nil); !errors.Is(err, ErrUnlistedHost) || !strings.Contains(err.Error(), "origin.hosts") {
		t.Errorf("other registry: %v", err)
	}
}

// Registries that nobody listed are at https and their name; Docker Hub is not
// at its name.
func TestEndpoints(t *testing.T) {
	n := newMemNet()
	c := testClient(t, n, nil)
	for registry, addr := range map[string]string{
		"docker.io": "registry-1.docker.io:443", "index.docker.io": "registry-1.docker.io:443", "ghcr.io": "ghcr.io:443",
		"r.example:5000": "r.example:5000", "[2001:db8::1]": "[2001:db8::1]:443",
	} {
		ref := tagRef("v1")
		ref.Registry = registry
		_, _ = c.Solver().Head(t.Context(), ref, nil)
		if got := n.dials[len(n.dials)-1]; got != addr {
			t.Errorf("%s: dialled %s, want %s", registry, got, addr)
		}
	}
}

// A pass-through body that stalls fails rather than hang.
func TestGetStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, n int) {
			if n == 1 {
				_, _ = io.WriteString(w, "{")
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
		})
		c := testClient(t, n, nil)
		resp, err := c.Get(t.Context(), tagRef("v1"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); !errors.Is(err, ErrStalled) {
			t.Errorf("body: %v", err)
		}
		_ = resp.Body.Close()
		start := time.Now()
		if _, err := c.Get(t.Context(), tagRef("v1"), nil); !errors.Is(err, ErrStalled) || time.Since(start) != 5*time.Minute || rec.count() != 2 {
			t.Errorf("header: %v after %s", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Head(ctx, tagRef("v1"), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("caller's deadline: %v", err)
		}
	})
}

// Clients may name hosts without end; what is kept of them has one.
func TestHostsAreBounded(t *testing.T) {
	c := testClient(t, newMemNet(), nil)
	for i := range 3 * maxHosts {
		ref := tagRef("v1")
		ref.Registry = fmt.Sprintf("h%d.example", i)
		if _, err := c.host(ref); err != nil {
			t.Fatal(err)
		}
		if len(c.hosts) > maxHosts {
			t.Fatalf("%d hosts", len(c.hosts))
		}
	}
	busy, _ := c.host(Ref{Registry: "busy.example"})
	if _, err := busy.gate.enter(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	for i := range 2 * maxHosts {
		_, _ = c.host(Ref{Registry: fmt.Sprintf("g%d.example", i)})
	}
	if again, _ := c.host(Ref{Registry: "busy.example"}); again != busy {
		t.Error("a host with a request under way was forgotten")
	}
}
