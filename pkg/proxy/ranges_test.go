package proxy

import (
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

func TestParseRange(t *testing.T) {
	for _, c := range []struct {
		header string
		size   int64
		want   string // canonical; "" is the whole; "416"
	}{
		{"bytes=0-", 10, "bytes=0-9"},
		{"bytes=0-0", 10, "bytes=0-0"},
		{"bytes=3-5", 10, "bytes=3-5"},
		{"bytes=3-500", 10, "bytes=3-9"},
		{"bytes=9-", 10, "bytes=9-9"},
		{"bytes=-1", 10, "bytes=9-9"},
		{"bytes=-500", 10, "bytes=0-9"},
		{"BYTES=2-4", 10, "bytes=2-4"},
		{"bytes= 0-1 , , 4-5", 10, "bytes=0-1,4-5"},
		{"bytes=0-1,99-", 10, "bytes=0-1"},
		{"bytes=0-1,-2", 10, "bytes=0-1,8-9"},
		{"bytes=3-99999999999999999999999", 10, "bytes=3-9"},
		{"bytes=10-", 10, "416"},
		{"bytes=10-20,30-", 10, "416"},
		{"bytes=99999999999999999999999-", 10, "416"},
		{"bytes=-0", 10, "416"},
		{"", 10, ""},
		{"bytes=", 10, ""},
		{"bytes=5-3", 10, ""},
		{"bytes=-", 10, ""},
		{"bytes=a-b", 10, ""},
		{"bytes=+1-2", 10, ""},
		{"bytes=1-2;3", 10, ""},
		{"bytes=--5", 10, ""},
		{"pieces=0-1", 10, ""},
		{"bytes 0-1", 10, ""},
		{"bytes=0-9,0-9", 10, ""},
		{"bytes=" + strings.Repeat("0-0,", 1100), 10_000, ""},
		{"bytes=0-", 0, ""},
		{"bytes=5-", 0, ""},
	} {
		spans, err := parseRange(c.header, c.size)
		got := formatRange(spans)
		if errors.Is(err, errUnsatisfiable) {
			got = "416"
		}
		if got != c.want {
			t.Errorf("%.40q of %d: %q, want %q", c.header, c.size, got, c.want)
		}
	}
}

// The spans always lie in the blob, and their canonical form means the same.
func checkSpans(t interface{ Fatalf(string, ...any) }, header string, size int64) {
	spans, err := parseRange(header, size)
	if err != nil {
		if len(spans) > 0 || !errors.Is(err, errUnsatisfiable) && !errors.Is(err, errOddRange) {
			t.Fatalf("%q: %v %v", header, spans, err)
		}
		return
	}
	var total int64
	for _, s := range spans {
		if s.off < 0 || s.n <= 0 || s.off+s.n > size {
			t.Fatalf("%q of %d: %v", header, size, s)
		}
		total += s.n
	}
	if total > size || len(spans) > maxSpans {
		t.Fatalf("%q of %d: %d spans of %d bytes", header, size, len(spans), total)
	}
	again, err := parseRange(formatRange(spans), size)
	if err != nil || formatRange(again) != formatRange(spans) {
		t.Fatalf("%q of %d: %v and then %v, %v", header, size, spans, again, err)
	}
}

func TestSpansLieInTheBlob(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checkSpans(t, "bytes="+rapid.StringMatching(`([0-9]{0,3}-[0-9]{0,3},? ?){1,6}`).Draw(t, "set"), rapid.Int64Range(0, 1000).Draw(t, "size"))
	})
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=-5,1-2", "bytes=9223372036854775807-", "bytes=0-0,,", "x=1-2"} {
		f.Add(s, int64(100))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		checkSpans(t, header, max(0, size%(1<<44)))
	})
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{
		"/v2/", "/v2/app/img/manifests/v1", "/v2/ghcr.io/a/b/blobs/sha256:" + strings.Repeat("a", 64), "/v2/a/manifests/manifests/b",
		"/v2/../../etc/manifests/x", "/v2/localhost:5000/x/tags/list", "/v2/a/blobs/uploads/", "/v2/[::1]:80/a/manifests/b", "//v2//",
	} {
		f.Add(s, "ns=docker.io")
		f.Add(s, "")
	}
	faces := []face{{fallback: "docker.io"}, {registry: "docker.io"}, {registry: "ghcr.io", server: &url.URL{Scheme: "https", Host: "ghcr.io"}}}
	f.Fuzz(func(t *testing.T, path, query string) {
		for _, face := range faces {
			target, bad := face.parse(http.MethodGet, &url.URL{Path: path, RawQuery: query})
			if bad != nil {
				if bad.status < 400 || bad.code == "" || bad.message == "" {
					t.Fatalf("%q: %+v", path, bad)
				}
				continue
			}
			if again, err := origin.ParseRegistry(target.registry); err != nil || again != target.registry {
				t.Fatalf("%q: registry %q", path, target.registry)
			}
			if target.repository == "" {
				continue
			}
			if _, err := origin.ParseRepository(target.repository); err != nil {
				t.Fatalf("%q: %v", path, err)
			}
			if target.op != opTags && target.op != opForward {
				if _, err := origin.ParseReference(target.reference); err != nil {
					t.Fatalf("%q: %v", path, err)
				}
			}
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"`+typeOCIIndex+`","manifests":[{"digest":"sha256:`+strings.Repeat("0", 64)+`","size":5}]}`), typeOCIIndex)
	f.Add([]byte(`{"config":{"digest":3},"layers":[null,{}],"manifests":7}`), "")
	f.Add([]byte(`[]`), "text/plain")
	f.Fuzz(func(t *testing.T, body []byte, typ string) {
		got, _, kids := parseManifest(body, mediaType(typ))
		if mediaType(typ) != "" && got != mediaType(typ) {
			t.Fatalf("the origin's type %q became %q", typ, got)
		}
		for _, k := range kids {
			if k.size < 0 || len(k.digest) == 0 {
				t.Fatalf("%+v", k)
			}
			if k.vouched && !knownType(got) {
				t.Fatalf("vouched for in a %q", got)
			}
		}
	})
}

func FuzzParseEndpoint(f *testing.F) {
	for _, s := range []string{"ghcr.io:443", "ghcr.io", "[::1]:443", "::1", "a:b:c", "host:0", "user@host:443", "a/b:1", ":443", "127.1:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseEndpoint(s, "443")
		if err != nil {
			return
		}
		if e.host == "" || !strings.HasPrefix(strings.Trim(e.addr, "["), e.host) || strings.ContainsAny(e.addr, " /@\r\n\x00") {
			t.Fatalf("%q: %+v", s, e)
		}
		if host, _, err := net.SplitHostPort(e.addr); err != nil || host != e.host {
			t.Fatalf("%q: %+v: %v", s, e, err)
		}
		if e.registry != "" {
			if _, err := origin.ParseRegistry(e.registry); err != nil {
				t.Fatalf("%q: %v", s, err)
			}
		}
	})
}

func TestLRUDropsTheLeastUsed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 5).Draw(t, "most")
		c := newLRU[int, int](most)
		var order []int // most recently used last
		use := func(k int) {
			for i, o := range order {
				if o == k {
					order = append(order[:i:i], order[i+1:]...)
					break
				}
			}
			order = append(order, k)
		}
		for i := range rapid.IntRange(0, 60).Draw(t, "steps") {
			k := rapid.IntRange(0, 8).Draw(t, "key")
			if rapid.Bool().Draw(t, "put") {
				c.put(k, i, nil)
				use(k)
				order = order[max(0, len(order)-most):]
			} else if _, ok := c.get(k); ok {
				use(k)
			}
			held := map[int]bool{}
			for _, o := range order {
				held[o] = true
			}
			if c.order.Len() != len(order) {
				t.Fatalf("%d entries, want %d", c.order.Len(), len(order))
			}
			for k := range 9 {
				if _, ok := c.entries[k]; ok != held[k] {
					t.Fatalf("key %d held: %v", k, ok)
				}
			}
		}
	})
}

func TestLocalize(t *testing.T) {
	prefix := target{form: formPrefix, registry: "ghcr.io", prefix: "ghcr.io"}
	ns := target{form: formNS, registry: "ghcr.io:5000"}
	for _, c := range []struct {
		t        target
		in, want string
	}{
		{prefix, "/v2/a/tags/list?n=1&last=b", "/v2/ghcr.io/a/tags/list?n=1&last=b"},
		{ns, "/v2/a/tags/list?n=1", "/v2/a/tags/list?n=1&ns=ghcr.io%3A5000"},
		{ns, "/v2/a/blobs/uploads/1", "/v2/a/blobs/uploads/1?ns=ghcr.io%3A5000"},
		{prefix, "https://cdn.example.com/v2/a", "https://cdn.example.com/v2/a"},
		{prefix, "//cdn.example.com/v2/a", "//cdn.example.com/v2/a"},
		{target{form: formFixed}, "/v2/a", "/v2/a"},
	} {
		if got := c.t.localize(c.in); got != c.want {
			t.Errorf("%s: %s, want %s", c.in, got, c.want)
		}
	}
	h := http.Header{"Link": {`</v2/a/tags/list?last=b>; rel="next"`}, "Location": {"/v2/x"}}
	prefix.localizeHeader(h)
	if h.Get("Link") != `</v2/ghcr.io/a/tags/list?last=b>; rel="next"` || h.Get("Location") != "/v2/ghcr.io/x" {
		t.Errorf("%v", h)
	}
}

func TestWithoutNS(t *testing.T) {
	for in, want := range map[string]string{
		"ns=a": "", "n=1&ns=a&last=x%2Fy": "n=1&last=x%2Fy", "xns=1": "xns=1", "%6es=a&b": "b", "": "",
	} {
		if got := withoutNS(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestHostSet(t *testing.T) {
	set, err := parseHosts([]string{"ghcr.io", "registry-1.docker.io", "Reg.example.com:5000", "*.corp.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"ghcr.io": true, "docker.io": true, "reg.example.com:5000": true, "reg.example.com": false, "a.corp.example.com": true,
		"a.b.corp.example.com": true, "corp.example.com": false, "evilcorp.example.com": false, "a.corp.example.com:5000": false,
	} {
		if set.has(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
	for _, bad := range []string{"*", "*.com", "a b", "*.a.example:5000", "https://x", ""} {
		if _, err := parseHosts([]string{bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestScrub(t *testing.T) {
	err := errors.New(`Get "https://cdn.example.com/x?X-Amz-Signature=canary&b=c": refused; see http://y/?canary`)
	if got := scrub(err); strings.Contains(got, "canary") || !strings.Contains(got, "refused") {
		t.Error(got)
	}
}
