package origin

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// authFile is an auth.json whose entries hold user names; others are added as they are.
func authFile(users map[string]string, more string) string {
	entries := map[string]any{}
	for key, user := range users {
		entry := map[string]string{}
		if user != "" {
			entry["auth"] = base64.StdEncoding.EncodeToString([]byte(user + ":secret"))
		}
		entries[key] = entry
	}
	b, _ := json.Marshal(entries)
	return `{"auths":` + string(b) + more + `}`
}

// The longest match counts, as containers-auth.json(5) has it, then the registry's.
func TestLongestMatch(t *testing.T) {
	file := authFile(map[string]string{
		"r.example": "host", "r.example/team": "team", "r.example/team/app": "app", "r.example/team/app/deep/down": "deep",
		"r.example/empty": "", "r.example/team/app:latest": "tag",
		"only.example/team":       "only",
		"https://old.example/v1/": "old", "v2.example/v2/": "v2",
		"p.example:443/team": "port", "p.example:443": "ported", "plain.example:80": "plain", "tls.example:80": "plain", "x.example:5000/team": "x",
		"https://index.docker.io/v1/": "hub", "docker.io/library": "library", "index.docker.io/me": "me", "registry-1.docker.io/you/app": "you",
		"endpoint.example": "endpoint", "endpoint.example/team": "endpoint-team",
	}, "")
	k := newKeyring(mustWrite(t, "auth.json", file))
	for _, c := range []struct{ registry, endpoint, repo, want string }{
		{"r.example", "", "team/app", "app"},
		{"r.example", "", "team/app/deep", "app"},
		{"r.example", "", "team/app/deep/down", "deep"},
		{"r.example", "", "team/apple", "team"},
		{"r.example", "", "teamwork/app", "host"},
		{"r.example", "", "empty/app", "host"},
		{"r.example", "", "x", "host"},
		{"only.example", "", "team/app", "only"},
		{"only.example", "", "other", ""},
		{"old.example", "", "team/x", "old"},
		{"v2.example", "", "team/x", "v2"},
		{"p.example", "", "team/x", "port"},
		{"p.example", "", "x", "ported"},
		{"plain.example", "http://plain.example", "x", "plain"},
		{"tls.example", "", "x", ""},
		{"x.example:5000", "", "team/x", "x"},
		{"x.example", "", "team/x", ""},
		{"docker.io", "", "library/alpine", "library"},
		{"docker.io", "", "me/x", "me"},
		{"docker.io", "", "you/app", "you"},
		{"docker.io", "", "you/other", "hub"},
		{"r.example", "https://endpoint.example", "x", "host"},
		{"away.example", "https://endpoint.example", "x", "endpoint"},
		{"away.example", "https://endpoint.example", "team/x", "endpoint-team"},
	} {
		at := defaultEndpoint(c.registry)
		if c.endpoint != "" {
			at, _ = url.Parse(c.endpoint)
		}
		names := keyNames(c.registry, at)
		cred, err := k.find(t.Context(), names, k.entry(names, c.repo))
		if err != nil || cred.Username != c.want {
			t.Errorf("%s/%s at %q: %q, %v; want %q", c.registry, c.repo, c.endpoint, cred.Username, err, c.want)
		}
	}
}

// A helper knows registries, not repositories: it is asked for those alone, and what
// stands in the file for a repository counts beside it.
func TestHelpersAreAskedForHostsAlone(t *testing.T) {
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	script := "#!/bin/sh\nread server\necho \"$server\" >> " + asked + "\necho '{\"Username\":\"helped\",\"Secret\":\"secret\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-probe"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	for _, helpers := range []string{`,"credsStore":"probe"`, `,"credHelpers":{"r.example":"probe"}`} {
		k := newKeyring(mustWrite(t, "c.json", authFile(map[string]string{"r.example": "", "r.example/team": "team"}, helpers)))
		names := keyNames("r.example", defaultEndpoint("r.example"))
		for repo, want := range map[string]string{"team/app": "team", "x/a": "helped", "x/b": "helped", "y": "helped"} {
			if cred, err := k.find(t.Context(), names, k.entry(names, repo)); err != nil || cred.Username != want {
				t.Errorf("%s: %q, %v; want %q", repo, cred.Username, err, want)
			}
		}
	}
	if b, _ := os.ReadFile(asked); string(b) != "r.example\nr.example\n" {
		t.Errorf("the helper was asked for %q; want the registry once for each file", b)
	}
}

// Each repository is asked for with its own credential, whose tokens do not mix, and
// a refused one makes way for no other.
func TestNamespacedCredentialsAreSent(t *testing.T) {
	for _, challenge := range []string{`Basic realm="x"`, fmt.Sprintf(`Bearer realm="http://%s/token",service="reg"`, authHost)} {
		synctest.Test(t, func(t *testing.T) {
			n := newMemNet()
			n.serve(t, authHost+":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				user, _, _ := r.BasicAuth()
				_, _ = fmt.Fprintf(w, `{"token":%q}`, user)
			}))
			var sent []string
			n.serve(t, testRegistry+":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				user, _, basic := r.BasicAuth()
				if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
					user = token
				} else if !basic {
					w.Header().Set("Www-Authenticate", challenge)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				repo, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
				sent = append(sent, repo+" as "+user)
				if user == "stale" {
					w.Header().Set("Www-Authenticate", challenge)
					w.WriteHeader(http.StatusUnauthorized)
				}
			}))
			file := mustWrite(t, "auth.json", authFile(map[string]string{
				testRegistry: "host", testRegistry + "/a": "a", testRegistry + "/a/b": "ab", testRegistry + "/s": "stale",
			}, ""))
			c := testClient(t, n, func(c *Config) { c.DockerConfig = file })
			ask := func(repo string, want int) {
				t.Helper()
				resp, err := c.Head(t.Context(), Ref{Kind: KindManifest, Registry: testRegistry, Repository: repo, Reference: "v1"}, nil)
				if code := status(t, resp, err); code != want {
					t.Errorf("%s: %d", repo, code)
				}
			}
			for range 2 {
				for _, repo := range []string{"a/b/c", "a/x", "x"} {
					ask(repo, http.StatusOK)
				}
			}
			want := []string{"a/b/c as ab", "a/x as a", "x as host"}
			if !slices.Equal(sent, append(want, want...)) {
				t.Errorf("%s: sent %q", challenge[:6], sent)
			}
			sent = nil
			ask("s/x", http.StatusUnauthorized)
			for _, s := range sent {
				if s != "s/x as stale" {
					t.Errorf("after a refusal: %q", sent)
				}
			}
			if err := os.WriteFile(file, []byte(authFile(map[string]string{testRegistry + "/s": "renewed-by-login"}, "")), 0o600); err != nil {
				t.Fatal(err)
			}
			pass(time.Second)
			ask("s/x", http.StatusOK)
		})
	}
}

// Whatever a file holds, an entry is one of its keys and is of the repository or
// something above it.
func FuzzKeyFile(f *testing.F) {
	f.Add([]byte(authFile(map[string]string{"r.example/a": "x", "https://r.example/v1/": "y"}, "")), "a/b")
	f.Add([]byte(`{"auths":{"R.example:443/a/b/":null,"r.example//":[]},"credsStore":1}`), "a/b/c")
	f.Fuzz(func(t *testing.T, text []byte, repo string) {
		if _, err := ParseRepository(repo); err != nil {
			return
		}
		k, err := parseKeys(text)
		if err != nil {
			return
		}
		key := k.namespaced([]string{"r.example"}, repo)
		if key == "" {
			return
		}
		host, above := splitKey(key)
		if host != "r.example" || repo != above && !strings.HasPrefix(repo, above+"/") {
			t.Fatalf("%s is taken for %s", key, repo)
		}
		var file struct{ Auths map[string]any }
		if json.Unmarshal(text, &file) != nil {
			t.Fatal("it does not parse")
		}
		if _, ok := file.Auths[key]; !ok {
			t.Fatalf("%q is no key of the file", key)
		}
	})
}
