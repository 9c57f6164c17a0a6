package origin

import (
	"net/url"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

func TestParseRegistry(t *testing.T) {
	good := map[string]string{
		"registry.example.com":      "registry.example.com",
		"Registry.Example.COM:5000": "registry.example.com:5000",
		"docker.io":                 "docker.io",
		"index.docker.io":           "docker.io",
		"registry-1.docker.io":      "docker.io",
		"localhost:5000":            "localhost:5000",
		"10.0.0.7:80":               "10.0.0.7:80",
		"169.254.169.254":           "169.254.169.254", // the guard's business
		"[2001:db8::1]:5000":        "[2001:db8::1]:5000",
		"[2001:db8::1]":             "[2001:db8::1]",
		"registry.example.com:443":  "registry.example.com",
		"Localhost:443":             "localhost",
		"[2001:db8::1]:443":         "[2001:db8::1]",
		"docker.io:443":             "docker.io",
		"Index.Docker.io:443":       "docker.io",
		"registry-1.docker.io:443":  "docker.io",
		"registry.example.com:80":   "registry.example.com:80", // a default port of http alone
		"registry:443":              "registry:443",            // "registry/x" is a repository
	}
	for in, want := range good {
		if got, err := ParseRegistry(in); err != nil || got != want {
			t.Errorf("ParseRegistry(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	bad := []string{
		"", " ", "http://registry.example.com", "registry.example.com/", "registry.example.com/team",
		"user@registry.example.com", "user:pass@registry.example.com", "a@b:5000",
		"registry.example.com\r\nHost: evil", "registry.example.com\n", "a b", "a\x00b", "a%2eb", "a#b", "a?b", `a\b`,
		"registry.example.com:", "registry.example.com:0", "registry.example.com:65536", "registry.example.com:99999999999999999999",
		"registry.example.com:+80", "registry.example.com:80:80", ":5000", "-a.example", "a..b", ".a", "a.",
		"[::ffff:169.254.169.254]", "[fe80::1%25eth0]", "[fe80::1%eth0]:80", "[::1", "::1", "[]", "[zz]", "[1.2.3.4]", "[1:2]",
		"bücher.example", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "1.2.3.4.5", "300.1.1.1",
		strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 200) + "example",
	}
	for _, in := range bad {
		if got, err := ParseRegistry(in); err == nil {
			t.Errorf("ParseRegistry(%q) = %q; want an error", in, got)
		}
	}
}

func TestParseRepositoryAndReference(t *testing.T) {
	for _, in := range []string{"library/alpine", "a", "a/b/c/d", "a__b/c-d.e", "localhost/x", "example.com/x", strings.Repeat("a", 255)} {
		if got, err := ParseRepository(in); err != nil || got != in {
			t.Errorf("ParseRepository(%q) = %q, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", "/", "a/", "/a", "a//b", "..", "a/../b", "a/./b", "A/b", "a/B", "a%2fb", "a b", "a\x00", "a\n", "a:b", "a@b", "a?b", "a#b",
		"a_-_b___c", "_a", strings.Repeat("a", 256), "[::1]/a", "x:80/a",
	} {
		if got, err := ParseRepository(in); err == nil {
			t.Errorf("ParseRepository(%q) = %q; want an error", in, got)
		}
	}
	d := blob.FromBytes(nil).String()
	for _, in := range []string{"latest", "v1.2.3", "_x", "A", d, strings.Repeat("a", 128), "sha256-" + d[7:] + ".sig"} {
		if got, err := ParseReference(in); err != nil || got != in {
			t.Errorf("ParseReference(%q) = %q, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", ".", "..", "-a", ".a", "a/b", "a b", "a\r\n", "a%", "a?b", strings.Repeat("a", 129),
		"sha256:", "sha256:" + strings.ToUpper(d[7:]), d[:len(d)-1], d + "0", "md5:d41d8cd98f00b204e9800998ecf8427e", d + "\n",
	} {
		if got, err := ParseReference(in); err == nil {
			t.Errorf("ParseReference(%q) = %q; want an error", in, got)
		}
	}
}

func TestParseImage(t *testing.T) {
	d := blob.FromBytes(nil).String()
	for in, want := range map[string]Ref{
		"alpine":                        {Kind: KindManifest, Registry: "docker.io", Repository: "library/alpine", Reference: "latest"},
		"alpine:3":                      {Kind: KindManifest, Registry: "docker.io", Repository: "library/alpine", Reference: "3"},
		"team/app":                      {Kind: KindManifest, Registry: "docker.io", Repository: "team/app", Reference: "latest"},
		"index.docker.io/team/app:1":    {Kind: KindManifest, Registry: "docker.io", Repository: "team/app", Reference: "1"},
		"ghcr.io/o/r:v1@" + d:           {Kind: KindManifest, Registry: "ghcr.io", Repository: "o/r", Reference: d},
		"localhost:5000/x":              {Kind: KindManifest, Registry: "localhost:5000", Repository: "x", Reference: "latest"},
		"Registry.Example.com/a/b@" + d: {Kind: KindManifest, Registry: "registry.example.com", Repository: "a/b", Reference: d},
	} {
		if got, err := ParseImage(in); err != nil || got != want {
			t.Errorf("ParseImage(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "Alpine", "alpine:", "a b", "http://x/y", "user@host/x", "x:99999/y/z:t:u", "x.example:0/y", "Team/app", "alpine@sha256:abc", d[7:]} {
		if got, err := ParseImage(in); err == nil {
			t.Errorf("ParseImage(%q) = %+v; want an error", in, got)
		}
	}
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://files.example.com/a%20b?x=1#frag": "https://files.example.com/a%20b?x=1",
		"http://10.0.0.1:8080/":                    "http://10.0.0.1:8080/",
		"https://my_files/x":                       "https://my_files/x",
		"https://files.example.com./x":             "https://files.example.com./x",
		"https://[2001:db8::1]:1/x":                "https://[2001:db8::1]:1/x",
	} {
		if got, err := ParseURL(in); err != nil || got != want {
			t.Errorf("ParseURL(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "x", "/x", "file:///etc/passwd", "ftp://h/x", "https://", "https:///x", "https://u@h/x", "https://u:p@h/x",
		"https://h:0/", "https://h:70000/", "https://127.1/", "https://[::1%25lo]/", "https://a..b/", "https://h\r\n/", "https://bücher.example/",
		"javascript:alert(1)", "https:h/x",
	} {
		if got, err := ParseURL(in); err == nil {
			t.Errorf("ParseURL(%q) = %q; want an error", in, got)
		}
	}
	_, err := ParseURL("https://user:CANARY@h/x?sig=CANARY")
	if err == nil || strings.Contains(err.Error(), "CANARY") {
		t.Errorf("error must be one and not repeat secrets: %v", err)
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"https://u:CANARY@h.example/p?X-Amz-Signature=CANARY#CANARY": "https://h.example/p?…",
		"https://h.example/p": "https://h.example/p",
		"http://[CANARY":      "(a URL that does not parse)",
	} {
		if got := Redact(in); got != want {
			t.Errorf("Redact(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestRefString(t *testing.T) {
	d := blob.FromBytes(nil).String()
	for want, ref := range map[string]Ref{
		"r.example/a:1":       {Kind: KindManifest, Registry: "r.example", Repository: "a", Reference: "1"},
		"r.example/a@" + d:    {Kind: KindBlob, Registry: "r.example", Repository: "a", Reference: d},
		"r.example/a":         {Kind: KindTags, Registry: "r.example", Repository: "a"},
		"https://h.example/x": {Kind: KindURL, URL: "https://h.example/x"},
	} {
		if got := ref.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func FuzzParseRegistry(f *testing.F) {
	for _, s := range []string{"docker.io", "a:5000", "[::1]:80", "a.b:443", "index.docker.io:443", "u@h", "169.254.169.254", "a\r\nb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseRegistry(s)
		if err != nil {
			return
		}
		if again, err := ParseRegistry(got); err != nil || again != got {
			t.Fatalf("%q became %q, which became %q, %v", s, got, again, err)
		}
		// What passes is the whole host of the URL that is made of it.
		u, err := url.Parse("https://" + got + "/v2/")
		if err != nil || u.Host != got || u.User != nil || u.Path != "/v2/" || u.RawQuery != "" {
			t.Fatalf("%q makes URL %v, %v", got, u, err)
		}
	})
}

func FuzzRefPath(f *testing.F) {
	f.Add("library/alpine", "latest", "")
	f.Add("a/../b", "..", "x=%2e%2e")
	f.Add("a%2f", blob.FromBytes(nil).String(), "n=1")
	f.Fuzz(func(t *testing.T, repo, reference, query string) {
		for _, k := range []Kind{KindBlob, KindManifest, KindTags, KindReferrers} {
			u, err := Ref{Kind: k, Registry: "r.example", Repository: repo, Reference: reference, Query: query}.path()
			if err != nil {
				continue
			}
			if strings.Contains(u.Path, "..") && strings.Contains("/"+u.Path+"/", "/../") || strings.ContainsAny(u.Path, "%\\\x00\r\n ?#") {
				t.Fatalf("%v: path %q", k, u.Path)
			}
			if !strings.HasPrefix(u.Path, "/v2/"+repo+"/") || u.EscapedPath() != u.Path {
				t.Fatalf("%v: path %q", k, u.Path)
			}
		}
	})
}

func FuzzParseImage(f *testing.F) {
	for _, s := range []string{"alpine:3", "ghcr.io/o/r@sha256:x", "a:1/b:2", "[::1]:5000/x", "a:443/b", "a.b:443/c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseImage(s)
		if err != nil {
			return
		}
		if again, err := ParseImage(ref.String()); err != nil || again != ref {
			t.Fatalf("%q is %+v, whose name is %+v, %v", s, ref, again, err)
		}
	})
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"https://h/x?y#z", "http://u:p@h/", "https://[::1]/", "http://h:0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseURL(s)
		if err != nil {
			return
		}
		u, err := url.Parse(got)
		if err != nil || u.User != nil || u.Fragment != "" || u.Hostname() == "" {
			t.Fatalf("%q passed as %q: %v", s, got, err)
		}
		if again, err := ParseURL(got); err != nil || again != got {
			t.Fatalf("%q became %q, which became %q, %v", s, got, again, err)
		}
	})
}
