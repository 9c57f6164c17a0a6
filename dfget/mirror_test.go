package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// testDaemon stands for the daemon: it relays the requests of the registry API
// to a registry, and serves files by digest.
type testDaemon struct {
	t     *testing.T
	srv   *httptest.Server
	relay http.Handler

	mu    sync.Mutex
	hook  http.HandlerFunc // in the place of all but the ping
	seen  []*http.Request
	files map[string][]byte // by digest
}

func newTestDaemon(t *testing.T, reg *testRegistry) *testDaemon {
	t.Helper()
	d := &testDaemon{t: t, files: map[string][]byte{}}
	if reg != nil {
		u, err := url.Parse(reg.srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		d.relay = httputil.NewSingleHostReverseProxy(u)
	}
	d.srv = httptest.NewServer(d)
	t.Cleanup(d.srv.Close)
	return d
}

func (d *testDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/" {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		return
	}
	d.mu.Lock()
	d.seen = append(d.seen, r.Clone(context.Background()))
	hook := d.hook
	d.mu.Unlock()
	switch {
	case hook != nil:
		hook(w, r)
	case r.URL.Path == "/damselfly/v1/blob":
		http.ServeContent(w, r, "", zeroTime(), bytes.NewReader(d.files[r.URL.Query().Get("digest")]))
	case d.relay != nil:
		d.relay.ServeHTTP(w, r)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (d *testDaemon) misbehave(hook http.HandlerFunc) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hook = hook
	d.seen = nil
}

func (d *testDaemon) requests() []*http.Request {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.seen
}

// through runs a command line with the daemon.
func (d *testDaemon) through(args ...string) result {
	d.t.Helper()
	return runWith(d.t.Context(), testEnv("DAMSELFLY_MIRROR", d.srv.URL), args...)
}

func TestGetThroughTheDaemon(t *testing.T) {
	reg := newTestRegistry(t)
	daemon := newTestDaemon(t, reg)
	body := noise(500_000, 20)
	blob := reg.pushBlob("app/img", "application/octet-stream", body)
	path := filepath.Join(t.TempDir(), "f")
	r := daemon.through("get", reg.host+"/app/img@"+blob.Digest.String(), "-O", path, "--output", "json", "--plain-http")
	r.want(t, exitOK)
	if got := readJSON[getReport](t, r); got.Source != "daemon" || got.Digest != blob.Digest.String() {
		t.Errorf("%+v", got)
	}
	if !bytes.Equal(mustRead(t, path), body) {
		t.Fatal("the file has other bytes")
	}
	for _, req := range daemon.requests() {
		if req.URL.Query().Get("ns") != reg.host {
			t.Errorf("%s does not name the registry by ns", req.URL)
		}
	}

	// A manifest by digest and by tag.
	img := reg.pushImage("app/img", "v1", "linux/amd64", 1000)
	for _, name := range []string{"@" + img.manifest.Digest.String(), ":v1"} {
		r := daemon.through("get", reg.host+"/app/img"+name, "-O", "-", "--plain-http")
		r.want(t, exitOK, `"layers"`)
		if digestOf([]byte(r.out)) != img.manifest.Digest.String() {
			t.Errorf("%s: other bytes", name)
		}
	}
	daemon.through("get", reg.host+"/app/img:absent", "-O", path, "--plain-http").want(t, exitNotFound, "app/img:absent")
	daemon.through("get", reg.host+"/app/img@"+digestOf([]byte("absent")), "-O", path, "--plain-http").want(t, exitNotFound)
}

func TestGetURLThroughTheDaemon(t *testing.T) {
	origin := newFileServer(t, noise(500_000, 21))
	daemon := newTestDaemon(t, nil)
	digest := digestOf(origin.body)
	daemon.files[digest] = origin.body
	path := filepath.Join(t.TempDir(), "f")
	source := origin.URL + "/f?sig=a%20b"
	r := daemon.through("get", source, "-O", path, "--digest", digest, "-H", "Private-Token: t0p", "--output", "json")
	r.want(t, exitOK)
	if got := readJSON[getReport](t, r); got.Source != "daemon" {
		t.Errorf("source %s", got.Source)
	}
	reqs := daemon.requests()
	if len(reqs) != 1 || reqs[0].URL.Query().Get("url") != source || reqs[0].Header.Get("Damselfly-Origin-Private-Token") != "t0p" ||
		reqs[0].Header.Get("Private-Token") != "" {
		t.Fatalf("the daemon was asked %v", reqs)
	}
	if origin.sent.Load() != 0 {
		t.Error("the origin was read beside the daemon")
	}
	// Without a digest nobody could tell what others got from there.
	daemon.misbehave(nil)
	daemon.through("get", origin.URL, "-O", path).want(t, exitOK, "from the origin")
	if n := len(daemon.requests()); n != 0 {
		t.Errorf("the daemon was asked %d times for a URL without digest", n)
	}
	daemon.through("get", origin.URL, "-O", path, "--mirror-only").want(t, exitOther, "--mirror-only")
}

func TestFallbackToTheOrigin(t *testing.T) {
	reg := newTestRegistry(t)
	body := noise(2_000_000, 22)
	blob := reg.pushBlob("app", "application/octet-stream", body)
	name := reg.host + "/app@" + blob.Digest.String()
	flip := bytes.Clone(body)
	flip[1_999_999] ^= 1
	for what, c := range map[string]struct {
		hook    http.HandlerFunc
		source  string
		fetched int64
		only    int // exit code with --mirror-only
	}{
		"503":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "origin", 2_000_000, exitOriginDown},
		"refuses": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, "origin", 2_000_000, exitAuth},
		"resets": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Close()
			}
		}, "origin", 2_000_000, exitOriginDown},
		"breaks": {breaking(body, 800_000), "daemon+origin", 2_000_000, exitOriginDown},
		"wrong bytes": {func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", zeroTime(), bytes.NewReader(flip))
		}, "daemon+origin", 4_000_000, exitIntegrity},
		"too long": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(append(bytes.Clone(body), 'x'))
		}, "daemon+origin", 4_000_001, exitIntegrity},
		"redirects": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		}, "origin", 2_000_000, exitOther},
	} {
		t.Run(what, func(t *testing.T) {
			daemon := newTestDaemon(t, nil)
			daemon.misbehave(c.hook)
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			r := daemon.through("get", name, "-O", path, "--plain-http", "--output", "json")
			r.want(t, exitOK, "warning")
			got := readJSON[getReport](t, r)
			if got.Source != c.source || got.Fetched != c.fetched || !bytes.Equal(mustRead(t, path), body) {
				t.Errorf("from %s, %d bytes fetched; want %s, %d", got.Source, got.Fetched, c.source, c.fetched)
			}
			daemon.misbehave(c.hook)
			daemon.through("get", name, "-O", path+"2", "--plain-http", "--mirror-only").want(t, c.only)
			if _, err := os.Lstat(path + "2"); err == nil {
				t.Error("a failure left a file")
			}
		})
	}
}

// breaking sends n bytes of body once and fails from then on.
func breaking(body []byte, n int) http.HandlerFunc {
	var calls atomic.Int64
	return func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) > 1 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:n])
	}
}

func TestDaemonThatIsNotThere(t *testing.T) {
	srv := newFileServer(t, []byte("x"))
	path := filepath.Join(t.TempDir(), "f")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "http://" + l.Addr().String()
	l.Close()
	// Nobody named the daemon, so its absence is not worth a word.
	runWith(t.Context(), testEnv(), "get", srv.URL, "-O", path).want(t, exitOK)
	r := runWith(t.Context(), testEnv(), "get", srv.URL, "-O", path, "--mirror", gone)
	r.want(t, exitOK, "warning: no daemon at "+gone)
	r = runWith(t.Context(), testEnv("DAMSELFLY_MIRROR", gone), "get", srv.URL, "-O", path, "--mirror-only", "--digest", digestOf(srv.body))
	r.want(t, exitOriginDown, "no daemon at", "dfget daemon")
	// Another program at the daemon's address.
	r = runWith(t.Context(), testEnv(), "get", srv.URL, "-O", path, "--mirror", srv.URL)
	r.want(t, exitOK, "is no daemon")
}

func TestDaemonThatHangsCostsHalfASecond(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	srv := newFileServer(t, []byte("x"))
	r := runWith(t.Context(), testEnv(), "get", srv.URL, "-O", filepath.Join(t.TempDir(), "f"), "--mirror", "http://"+l.Addr().String(), "--output", "json")
	r.want(t, exitOK)
	if got := readJSON[getReport](t, r); got.Seconds < 0.4 || got.Seconds > 2 {
		t.Errorf("took %.2f s", got.Seconds)
	}
}

// privateRegistry asks for a bearer token of its realm, or for Basic.
type privateRegistry struct {
	*testRegistry
	realm  *httptest.Server
	basic  bool
	tokens atomic.Int64
	direct atomic.Int64 // requests that did not come by the daemon
}

func newPrivateRegistry(t *testing.T) *privateRegistry {
	t.Helper()
	p := &privateRegistry{testRegistry: newTestRegistry(t)}
	p.realm = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if !ok || user != "bob" || password != "s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		p.tokens.Add(1)
		_ = json.NewEncoder(w).Encode(map[string]any{"token": "for " + r.FormValue("scope"), "expires_in": 300})
	}))
	t.Cleanup(p.realm.Close)
	return p
}

func (p *privateRegistry) lock() {
	p.misbehave(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Header.Get("X-Forwarded-For") == "" {
			p.direct.Add(1)
		}
		user, password, _ := r.BasicAuth()
		ok := p.basic && user == "bob" && password == "s3cret" ||
			!p.basic && r.Header.Get("Authorization") == "Bearer for repository:team/app:pull"
		if ok {
			next.ServeHTTP(w, r)
			return
		}
		// A realm at another name than the registry's, at an address that is not
		// public, is what many companies have.
		realm := strings.Replace(p.realm.URL, "127.0.0.1", "localhost", 1)
		challenge := `Bearer realm="` + realm + `/token",service="test",scope="repository:team/app:pull"`
		if p.basic {
			challenge = `Basic realm="test"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
	})
}

// dockerConfigDir has a config.json with bob's password for the registry.
func dockerConfigDir(t *testing.T, host, auth string) string {
	t.Helper()
	dir := t.TempDir()
	cfg := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, auth)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

const (
	bobAuth = "Ym9iOnMzY3JldA==" // bob:s3cret
	eveAuth = "ZXZlOmd1ZXNz"     // eve:guess
)

func TestPrivateRegistry(t *testing.T) {
	for _, basic := range []bool{false, true} {
		for _, mirrored := range []bool{false, true} {
			t.Run(fmt.Sprintf("basic=%v,daemon=%v", basic, mirrored), func(t *testing.T) {
				reg := newPrivateRegistry(t)
				reg.basic = basic
				img := reg.pushImage("team/app", "v1", "linux/amd64", 1000, 2000, 3000)
				reg.lock()
				daemon := newTestDaemon(t, reg.testRegistry)
				dir := t.TempDir()
				pull := func(config string) result {
					mirror := []string{"--direct"}
					if mirrored {
						mirror = []string{"--mirror", daemon.srv.URL}
					}
					args := append([]string{"pull", reg.host + "/team/app:v1", "--platform", "linux/amd64", "-O", filepath.Join(dir, "app"), "--plain-http"}, mirror...)
					return runWith(t.Context(), testEnv("DOCKER_CONFIG", config), args...)
				}
				pull("").want(t, exitAuth, "docker login "+reg.host)
				pull(dockerConfigDir(t, reg.host, eveAuth)).want(t, exitAuth, "docker login "+reg.host)
				broken := t.TempDir()
				if err := os.WriteFile(filepath.Join(broken, "config.json"), []byte(`{"auths":`), 0o600); err != nil {
					t.Fatal(err)
				}
				pull(broken).want(t, exitAuth, filepath.Join(broken, "config.json"), "DOCKER_CONFIG", "docker login")
				if left := names(t, dir); len(left) > 0 {
					t.Fatalf("a refused pull left %v", left)
				}
				r := pull(dockerConfigDir(t, reg.host, bobAuth))
				r.want(t, exitOK, img.manifest.Digest.String())
				if strings.Contains(r.errOut, "s3cret") || strings.Contains(r.errOut, bobAuth) {
					t.Error("the credential is shown")
				}
				if !basic && reg.tokens.Load() != 1 {
					t.Errorf("%d tokens were fetched for one repository", reg.tokens.Load())
				}
				if mirrored && reg.direct.Load() != 0 {
					t.Errorf("%d requests went around the daemon", reg.direct.Load())
				}
			})
		}
	}
}

// Whoever answers at the daemon's address must not be able to have the user's
// password for a TLS registry sent in the clear.
func TestCredentialsAreNotSentToAPlainRealm(t *testing.T) {
	var asked atomic.Int64
	realm := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer realm.Close()
	daemon := newTestDaemon(t, nil)
	daemon.misbehave(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm.URL+`",service="x",scope="repository:app:pull"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	r := runWith(t.Context(), testEnv("DOCKER_CONFIG", dockerConfigDir(t, "registry.invalid", bobAuth)),
		"get", "registry.invalid/app@"+digestOf(nil), "-O", filepath.Join(t.TempDir(), "f"), "--mirror", daemon.srv.URL)
	r.want(t, exitAuth)
	if asked.Load() != 0 {
		t.Error("the realm was asked")
	}
	for _, req := range daemon.requests() {
		if req.Header.Get("Authorization") != "" {
			t.Error("the credential was sent without a challenge for it")
		}
	}
}
