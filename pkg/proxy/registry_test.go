package proxy_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"net/http/httptest"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
	"github.com/damselfly-p2p/damselfly/pkg/proxy/proxytest"
)

func TestPullAsContainerdDoes(t *testing.T) {
	w := newWorld(t, nil)
	im := w.origin.push("app/img", "v1", noise(100_000))
	const ns = "?ns=registry.example.com"
	head := w.head("/v2/app/img/manifests/v1" + ns)
	if head.status != 200 || head.header.Get("Docker-Content-Digest") != im.indexDigest() ||
		head.header.Get("Content-Length") != fmt.Sprint(len(im.index)) || head.header.Get("Content-Type") != typeIndex {
		t.Fatalf("HEAD of the tag: %d %v", head.status, head.header)
	}
	for _, part := range []struct {
		path, typ string
		want      []byte
	}{
		{"manifests/" + im.indexDigest(), typeIndex, im.index},
		{"manifests/" + im.manifestDigest(), typeManifest, im.manifest},
		{"blobs/" + im.configDigest(), "application/octet-stream", im.config},
		{"blobs/" + im.layerDigest(), "application/octet-stream", im.layer},
	} {
		g := w.get("/v2/app/img/"+part.path+ns, "Accept: "+typeIndex+", */*")
		digest := blob.FromBytes(part.want).String()
		if g.status != 200 || g.body != string(part.want) || g.header.Get("Content-Type") != part.typ ||
			g.header.Get("Docker-Content-Digest") != digest || g.header.Get("Etag") != `"`+digest+`"` ||
			g.header.Get("Content-Length") != fmt.Sprint(len(part.want)) || g.header.Get("Content-Encoding") != "" {
			t.Fatalf("%s: %d %v, %d bytes", part.path, g.status, g.header, len(g.body))
		}
	}
	// One HEAD in all: everything else is vouched for by what was served, and each
	// content is read once, by the task.
	if n := w.origin.count("HEAD"); n != 1 {
		t.Errorf("%d HEADs at the origin: %q", n, w.origin.seen())
	}
	if n := w.origin.count("GET"); n != 4 {
		t.Errorf("%d GETs at the origin: %q", n, w.origin.seen())
	}
	for _, r := range w.tasks.Requests() {
		if r.Size <= 0 {
			t.Errorf("%s was opened without its size", r.Ref)
		}
	}
}

func TestRegistryIsChosen(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { c.DefaultRegistry = "quay.io" })
	w.origin.push("app/img", "v1", noise(10))
	w.origin.push("library/x", "v1", noise(10))
	w.origin.push("a.b/img", "v1", noise(10))
	hub := w.serve(w.proxy.Registry("docker.io"))
	for _, c := range []struct{ url, want string }{
		{w.main.URL + "/v2/app/img/manifests/v1?ns=registry.example.com", "HEAD registry.example.com /v2/app/img/"},
		{w.main.URL + "/v2/app/img/manifests/v1?ns=Registry.example.com:5000", "HEAD registry.example.com:5000 /v2/app/img/"},
		{w.main.URL + "/v2/ghcr.io/app/img/manifests/v1", "HEAD ghcr.io /v2/app/img/"},
		{w.main.URL + "/v2/localhost/app/img/manifests/v1", "HEAD localhost /v2/app/img/"},
		{w.main.URL + "/v2/reg:5000/app/img/manifests/v1", "HEAD reg:5000 /v2/app/img/"},
		{w.main.URL + "/v2/app/img/manifests/v1", "HEAD quay.io /v2/app/img/"},
		// Mirrors whose URL has a path, and clients that say ns all the same.
		{w.main.URL + "/v2/ghcr.io/app/img/manifests/v1?ns=ghcr.io", "HEAD ghcr.io /v2/app/img/"},
		{w.main.URL + "/v2/reg:5000/app/img/manifests/v1?ns=REG:5000", "HEAD reg:5000 /v2/app/img/"},
		{w.main.URL + "/v2/registry-1.docker.io/library/x/manifests/v1?ns=docker.io", "HEAD docker.io /v2/library/x/"},
		{w.main.URL + "/v2/mirror.example.com/app/img/manifests/v1?ns=docker.io", "HEAD mirror.example.com /v2/app/img/"},
		{w.main.URL + "/v2/a.b/img/manifests/v1?ns=quay.io", "HEAD quay.io /v2/a.b/img/"},
		// Short names of Docker Hub.
		{w.main.URL + "/v2/docker.io/x/manifests/v1", "HEAD docker.io /v2/library/x/"},
		{w.main.URL + "/v2/x/manifests/v1?ns=docker.io", "HEAD docker.io /v2/library/x/"},
		{hub.URL + "/v2/x/manifests/v1", "HEAD docker.io /v2/library/x/"},
		{hub.URL + "/v2/library/x/manifests/v1", "HEAD docker.io /v2/library/x/"},
		{hub.URL + "/v2/library/x/manifests/v1?ns=docker.io", "HEAD docker.io /v2/library/x/"},
		{w.main.URL + "/v2/library/x/manifests/v1?ns=registry-1.docker.io", "HEAD docker.io /v2/library/x/"},
	} {
		before := w.origin.count("")
		g := do(t, http.MethodHead, c.url, "Accept: x/"+fmt.Sprint(before))
		asked := w.origin.seen()[before:]
		if g.status != 200 || len(asked) != 1 || !strings.HasPrefix(asked[0], c.want) {
			t.Errorf("%s: %d, asked %q", c.url, g.status, asked)
		}
	}
}

func TestPing(t *testing.T) {
	w := newWorld(t, nil)
	w.origin.hook = func(rw http.ResponseWriter, r *http.Request) bool {
		rw.Header().Set("Www-Authenticate", challenge)
		rw.WriteHeader(401)
		return true
	}
	for _, path := range []string{"/v2/", "/v2"} {
		if g := w.get(path); g.status != 200 || g.header.Get("Docker-Distribution-Api-Version") != "registry/2.0" || w.origin.count("") != 0 {
			t.Errorf("%s: %d %v", path, g.status, g.header)
		}
	}
	// dockerd and podman take the challenge for the whole pull from the ping.
	hub := w.serve(w.proxy.Registry("docker.io"))
	if g := do(t, "GET", hub.URL+"/v2/"); g.status != 401 || g.header.Get("Www-Authenticate") != challenge {
		t.Errorf("Docker Hub face: %d %v", g.status, g.header)
	}
	if g := w.get("/v2/?ns=ghcr.io"); g.status != 401 {
		t.Errorf("with ns: %d", g.status)
	}
	if g := do(t, "POST", w.main.URL+"/v2/"); g.status != 405 || g.code() != "UNSUPPORTED" {
		t.Errorf("POST: %d %s", g.status, g.code())
	}
}

func TestErrorCodes(t *testing.T) {
	long := strings.Repeat("a", 64)
	w := newWorld(t, nil)
	w.origin.readers["app/private"] = []string{"Bearer bob"}
	for _, c := range []struct {
		path   string
		status int
		code   string
	}{
		{"/v2/UPPER/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/a//b/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/a/%2e%2e/b/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/a%2fb/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/a%00b/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/" + strings.Repeat("a/", 150) + "b/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/app/img/manifests/v1?ns=user@host", 400, "NAME_INVALID"},
		{"/v2/app/img/manifests/v1?ns=", 400, "NAME_INVALID"},
		{"/v2/app/img/manifests/v1?ns=a.example&ns=b.example", 400, "NAME_INVALID"},
		{"/v2/app/img/manifests/v1?ns=host%0d%0aX:%201", 400, "NAME_INVALID"},
		{"/v2/app/img/manifests/v1?ns=http://h/", 400, "NAME_INVALID"},
		{"/v2/app/img/manifests/v1?%zz", 400, "NAME_INVALID"},
		{"/v2/..:1/app/img/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/app/img/manifests/-bad", 404, "MANIFEST_UNKNOWN"},
		{"/v2/app/img/manifests/sha256:" + long[1:], 400, "DIGEST_INVALID"},
		{"/v2/app/img/manifests/sha256:" + strings.ToUpper(long), 400, "DIGEST_INVALID"},
		{"/v2/app/img/blobs/latest", 400, "DIGEST_INVALID"},
		{"/v2/app/img/blobs/sha256:..%5c..", 400, "DIGEST_INVALID"},
		{"/v2/app/img/referrers/v1", 400, "DIGEST_INVALID"},
		{"/", 404, "UNSUPPORTED"},
		{"/v1/search", 404, "UNSUPPORTED"},
	} {
		g := w.get(c.path)
		if g.status != c.status || g.code() != c.code || !strings.HasPrefix(g.header.Get("Content-Type"), "application/json") {
			t.Errorf("%s: %d %s, want %d %s", c.path, g.status, g.code(), c.status, c.code)
		}
	}
}

// What the origin refuses it refuses in its own words, whatever was asked for.
func TestOriginsAnswerIsUnread(t *testing.T) {
	w := newWorld(t, nil)
	status := 0
	w.origin.hook = func(rw http.ResponseWriter, r *http.Request) bool {
		rw.Header().Set("Retry-After", "7")
		rw.Header().Set("X-Own", "word")
		rw.Header().Set("Content-Type", "text/odd")
		rw.WriteHeader(status)
		if status != http.StatusNotModified {
			fmt.Fprint(rw, "in its own words")
		}
		return true
	}
	digest := "sha256:" + strings.Repeat("a", 64)
	for _, status = range []int{203, 300, 302, 304, 400, 401, 402, 403, 404, 409, 410, 412, 418, 429, 451, 500, 501, 503, 507} {
		for _, path := range []string{"manifests/v1", "manifests/" + digest, "blobs/" + digest, "tags/list", "referrers/" + digest} {
			g := w.get("/v2/app/img/" + path)
			body := "in its own words"
			if status == http.StatusNotModified {
				body = ""
			}
			if g.status != status || g.body != body || g.header.Get("Retry-After") != "7" || g.header.Get("X-Own") != "word" ||
				body != "" && g.header.Get("Content-Type") != "text/odd" {
				t.Errorf("%s with %d: %d %q %v", path, status, g.status, g.body, g.header)
			}
		}
	}
}

func TestOriginsRefusalIsVerbatim(t *testing.T) {
	for _, basic := range []string{challenge, `Basic realm="test"`} {
		w := newWorld(t, nil)
		w.origin.hook = func(rw http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") != "" || r.Method == http.MethodHead {
				return false
			}
			rw.Header().Add("Www-Authenticate", basic)
			rw.Header().Add("Www-Authenticate", `Basic realm="second"`)
			rw.Header().Set("Content-Type", "application/json")
			rw.Header().Set("Connection", "close, X-Hop")
			rw.Header().Set("X-Hop", "1")
			rw.WriteHeader(401)
			fmt.Fprint(rw, refusalBody)
			return true
		}
		// By tag without HEAD, the GET's own answer is what the client sees.
		w.origin.hook = func(h func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
			return func(rw http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodHead {
					rw.WriteHeader(405)
					return true
				}
				return h(rw, r)
			}
		}(w.origin.hook)
		g := w.get("/v2/app/img/manifests/v1")
		if g.status != 401 || g.body != refusalBody || len(g.header["Www-Authenticate"]) != 2 ||
			g.header["Www-Authenticate"][0] != basic || g.header.Get("X-Hop") != "" {
			t.Errorf("%d %v %s", g.status, g.header, g.body)
		}
	}
}

func TestTagsAreJoinedAndBelievedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRegistry()
		g.push("app/img", "v1", noise(10))
		old := g.manifests["app/img@v1"]
		arrived := make(chan struct{})
		g.hook = func(http.ResponseWriter, *http.Request) bool { <-arrived; return false }
		p, err := proxy.New(proxy.Config{Names: []string{"example.com"}}, proxytest.NewTasks(t.TempDir(), upstream{g}), upstream{g}, zap.NewNop(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		face := p.Registry("")
		head := func(headers ...string) string {
			r := httptest.NewRequest(http.MethodHead, "/v2/app/img/manifests/v1", nil)
			for _, h := range headers {
				k, v, _ := strings.Cut(h, ": ")
				r.Header.Set(k, v)
			}
			rec := httptest.NewRecorder()
			face.ServeHTTP(rec, r)
			return rec.Header().Get("Docker-Content-Digest")
		}
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if head() != blob.FromBytes(old.body).String() {
					t.Error("wrong digest")
				}
			})
		}
		synctest.Wait()
		close(arrived)
		all.Wait()
		if n := g.count("HEAD"); n != 1 {
			t.Fatalf("20 clients at once cost %d HEADs", n)
		}
		g.push("app/img", "v1", noise(11)) // the tag moves
		now := blob.FromBytes(g.manifests["app/img@v1"].body).String()
		time.Sleep(9 * time.Second)
		if head() != blob.FromBytes(old.body).String() || g.count("HEAD") != 1 {
			t.Error("asked again before its time")
		}
		if head("Authorization: Bearer bob") != now || g.count("HEAD") != 2 {
			t.Error("another credential was answered from memory")
		}
		if head("Accept: "+typeManifest) != now || g.count("HEAD") != 3 {
			t.Error("another Accept was answered from memory")
		}
		time.Sleep(2 * time.Second)
		if head() != now || g.count("HEAD") != 4 {
			t.Error("the moved tag was not noticed")
		}
	})
}

func TestOriginsWithoutDigestOrHead(t *testing.T) {
	for name, change := range map[string]func(*registry){
		"no digest": func(g *registry) { g.noDigest = true },
		"no HEAD": func(g *registry) {
			g.hook = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodHead {
					w.WriteHeader(405)
				}
				return r.Method == http.MethodHead
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			im := w.origin.push("app/img", "v1", noise(5000))
			change(w.origin)
			g := w.get("/v2/app/img/manifests/v1")
			if g.status != 200 || g.body != string(im.index) || g.header.Get("Content-Type") != typeIndex {
				t.Fatalf("%d %v", g.status, g.header)
			}
			head := w.head("/v2/app/img/manifests/v1")
			if name == "no HEAD" && head.status != 405 {
				t.Errorf("HEAD: %d", head.status)
			}
			if name == "no digest" && (head.status != 200 || head.header.Get("Docker-Content-Digest") != "") {
				t.Errorf("HEAD: %d %v", head.status, head.header)
			}
			for path, want := range map[string][]byte{
				"manifests/" + im.manifestDigest(): im.manifest, "blobs/" + im.layerDigest(): im.layer,
			} {
				if g := w.get("/v2/app/img/" + path); g.status != 200 || g.body != string(want) {
					t.Errorf("%s: %d", path, g.status)
				}
			}
			// Of a repository where no manifest was served first.
			w.origin.keep("other/img", im.layer)
			if g := w.get("/v2/other/img/blobs/" + im.layerDigest()); g.status != 200 || g.body != string(im.layer) {
				t.Errorf("blob alone: %d", g.status)
			}
		})
	}
}

// Manifests that are too large to be kept, or are not what their digest says, are passed on
// as they come; nothing is kept of them.
func TestManifestsThatAreNotKept(t *testing.T) {
	w := newWorld(t, nil)
	big := append([]byte(`{"schemaVersion":2,"x":"`), strings.Repeat("a", 4<<20)...)
	big = append(big, `"}`...)
	w.origin.put("app/img", "big", big, typeManifest)
	for _, name := range []string{"big", blob.FromBytes(big).String()} {
		if g := w.get("/v2/app/img/manifests/" + name); g.status != 200 || g.body != string(big) {
			t.Errorf("%s: %d, %d bytes", name, g.status, len(g.body))
		}
	}
	w.origin.noDigest = true
	if g := w.get("/v2/app/img/manifests/big", "Accept: other/type"); g.status != 200 || g.body != string(big) {
		t.Errorf("no digest told: %d", g.status)
	}
	// An origin that names one digest and sends another content, as with schema 1.
	w = newWorld(t, nil)
	right := blob.FromBytes([]byte("right")).String()
	w.origin.hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			rw.Header().Set("Docker-Content-Digest", right)
			fmt.Fprint(rw, "wrong")
		}
		return true
	}
	for range 2 {
		for _, name := range []string{"v1", right} {
			before := w.origin.count("GET")
			if g := w.get("/v2/app/img/manifests/" + name); g.status != 200 || g.body != "wrong" || w.origin.count("GET") == before && name != "v1" {
				t.Errorf("%s: %d %s, %d requests", name, g.status, g.body, w.origin.count("GET")-before)
			}
		}
	}
}

func TestManifestConditionalAndUnknownType(t *testing.T) {
	w := newWorld(t, nil)
	im := w.origin.push("app/img", "v1", noise(10))
	odd := []byte("not JSON at all")
	w.origin.put("app/img", "odd", odd, "application/vnd.odd+thing")
	etag := `"` + im.indexDigest() + `"`
	if g := w.get("/v2/app/img/manifests/v1"); g.status != 200 {
		t.Fatal(g.status)
	}
	for _, method := range []string{"GET", "HEAD"} {
		if g := do(t, method, w.main.URL+"/v2/app/img/manifests/"+im.indexDigest(), "If-None-Match: "+etag); method == "GET" && g.status != 304 || g.body != "" {
			t.Errorf("%s If-None-Match: %d %q", method, g.status, g.body)
		}
	}
	if g := w.get("/v2/app/img/manifests/odd"); g.status != 200 || g.body != string(odd) || g.header.Get("Content-Type") != "application/vnd.odd+thing" {
		t.Errorf("odd: %d %v", g.status, g.header)
	}
	if g := w.get("/v2/app/img/manifests/v1", "Range: bytes=5-9"); g.status != 200 || g.body != string(im.index) {
		t.Errorf("ranged manifest: %d", g.status)
	}
}

func TestSolverServesAnonymousPrefixRequests(t *testing.T) {
	solving := newRegistry()
	im := solving.push("app/img", "v1", noise(10))
	w := newWorld(t, func(c *proxy.Config) { c.Solver = upstream{solving} })
	w.origin.push("app/img", "v1", noise(10))
	w.origin.readers["app/img"] = []string{"Bearer token"}
	if g := w.head("/v2/ghcr.io/app/img/manifests/v1"); g.status != 200 || g.header.Get("Docker-Content-Digest") != im.indexDigest() {
		t.Errorf("prefix: %d", g.status)
	}
	// With a credential, or with ns, the challenge is the client's to answer.
	if g := w.head("/v2/ghcr.io/app/img/manifests/v1", "Authorization: Bearer bad"); g.status != 401 {
		t.Errorf("prefix with a credential: %d", g.status)
	}
	if g := w.head("/v2/app/img/manifests/v1?ns=quay.io"); g.status != 401 || g.header.Get("Www-Authenticate") != challenge {
		t.Errorf("ns: %d", g.status)
	}
}
