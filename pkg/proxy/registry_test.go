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
	hub := w.serve(w.proxy.Registry("docker.io"))
	for _, c := range []struct{ url, want string }{
		{w.main.URL + "/v2/app/img/manifests/v1?ns=registry.example.com", "HEAD registry.example.com /v2/app/img/"},
		{w.main.URL + "/v2/app/img/manifests/v1?ns=Registry.example.com:5000", "HEAD registry.example.com:5000 /v2/app/img/"},
		{w.main.URL + "/v2/ghcr.io/app/img/manifests/v1", "HEAD ghcr.io /v2/app/img/"},
		{w.main.URL + "/v2/localhost/app/img/manifests/v1", "HEAD localhost /v2/app/img/"},
		{w.main.URL + "/v2/reg:5000/app/img/manifests/v1", "HEAD reg:5000 /v2/app/img/"},
		{w.main.URL + "/v2/app/img/manifests/v1", "HEAD quay.io /v2/app/img/"},
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
	w := newWorld(t, func(c *proxy.Config) { c.DenyTTL = -1 })
	w.origin.readers["app/private"] = []string{"Bearer bob"}
	status := 0
	w.origin.hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if status != 0 {
			rw.Header().Set("Retry-After", "7")
			rw.WriteHeader(status)
		}
		return status != 0
	}
	for _, c := range []struct {
		origin int
		path   string
		status int
		code   string
	}{
		{0, "/v2/UPPER/manifests/v1", 400, "NAME_INVALID"},
		{0, "/v2/a//b/manifests/v1", 400, "NAME_INVALID"},
		{0, "/v2/a/%2e%2e/b/manifests/v1", 400, "NAME_INVALID"},
		{0, "/v2/a%2fb/manifests/v1", 400, "NAME_INVALID"},
		{0, "/v2/a%00b/manifests/v1", 400, "NAME_INVALID"},
		{0, "/v2/" + strings.Repeat("a/", 150) + "b/manifests/v1", 400, "NAME_INVALID"},
		{0, "/v2/app/img/manifests/v1?ns=user@host", 400, "NAME_INVALID"},
		{0, "/v2/app/img/manifests/v1?ns=", 400, "NAME_INVALID"},
		{0, "/v2/app/img/manifests/v1?ns=a.example&ns=b.example", 400, "NAME_INVALID"},
		{0, "/v2/app/img/manifests/v1?ns=host%0d%0aX:%201", 400, "NAME_INVALID"},
		{0, "/v2/app/img/manifests/v1?ns=http://h/", 400, "NAME_INVALID"},
		{0, "/v2/app/img/manifests/v1?%zz", 400, "NAME_INVALID"},
		{0, "/v2/..:1/app/img/manifests/v1", 400, "NAME_INVALID"},
		{0, "/v2/app/img/manifests/-bad", 404, "MANIFEST_UNKNOWN"},
		{0, "/v2/app/img/manifests/sha256:" + long[1:], 400, "DIGEST_INVALID"},
		{0, "/v2/app/img/manifests/sha256:" + strings.ToUpper(long), 400, "DIGEST_INVALID"},
		{0, "/v2/app/img/blobs/latest", 400, "DIGEST_INVALID"},
		{0, "/v2/app/img/blobs/sha256:..%5c..", 400, "DIGEST_INVALID"},
		{0, "/v2/app/img/referrers/v1", 400, "DIGEST_INVALID"},
		{0, "/v2/app/img/manifests/none", 404, "MANIFEST_UNKNOWN"},
		{0, "/v2/app/img/manifests/sha256:" + long, 404, "MANIFEST_UNKNOWN"},
		{0, "/v2/app/img/blobs/sha256:" + long, 404, "BLOB_UNKNOWN"},
		{404, "/v2/app/none/tags/list", 404, "NAME_UNKNOWN"},
		{0, "/v2/app/private/manifests/v1", 401, "UNAUTHORIZED"},
		{403, "/v2/app/img/manifests/v1", 403, "DENIED"},
		{403, "/v2/app/img/blobs/sha256:" + long, 403, "DENIED"},
		{412, "/v2/app/img/manifests/v1", 412, "UNKNOWN"},
		{429, "/v2/app/img/manifests/v1", 429, "TOOMANYREQUESTS"},
		{429, "/v2/app/img/blobs/sha256:" + long, 429, "TOOMANYREQUESTS"},
		{500, "/v2/app/img/manifests/v1", 500, "UNKNOWN"},
		{503, "/v2/app/img/blobs/sha256:" + long, 503, "UNAVAILABLE"},
		{302, "/v2/app/img/blobs/sha256:" + long, 502, "UNKNOWN"},
		{0, "/", 404, "UNSUPPORTED"},
		{0, "/v1/search", 404, "UNSUPPORTED"},
	} {
		status = c.origin
		g := w.get(c.path)
		if g.status != c.status || g.code() != c.code || !strings.HasPrefix(g.header.Get("Content-Type"), "application/json") {
			t.Errorf("%s with %d from the origin: %d %s, want %d %s", c.path, c.origin, g.status, g.code(), c.status, c.code)
		}
		if c.origin == 429 && g.header.Get("Retry-After") != "7" {
			t.Errorf("%s: Retry-After is lost", c.path)
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
		p, err := proxy.New(proxy.Config{}, proxytest.NewTasks(t.TempDir(), upstream{g}), upstream{g}, zap.NewNop(), nil)
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
			if g.status != 200 || g.body != string(im.index) || g.header.Get("Docker-Content-Digest") != im.indexDigest() || g.header.Get("Content-Type") != typeIndex {
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
			w.origin.keep("other", im.layer)
			if g := w.get("/v2/other/blobs/" + im.layerDigest()); g.status != 200 || g.body != string(im.layer) {
				t.Errorf("blob alone: %d", g.status)
			}
		})
	}
}

func TestManifestsThatAreRefused(t *testing.T) {
	w := newWorld(t, nil)
	big := append([]byte(`{"schemaVersion":2,"x":"`), noise(0)...)
	big = append(big, strings.Repeat("a", 4<<20)...)
	big = append(big, `"}`...)
	w.origin.put("app/img", "big", big, typeManifest)
	g := w.get("/v2/app/img/manifests/big")
	if g.status != 413 || g.code() != "SIZE_INVALID" {
		t.Errorf("by tag: %d %s", g.status, g.code())
	}
	if g := w.get("/v2/app/img/manifests/" + blob.FromBytes(big).String()); g.status != 413 {
		t.Errorf("by digest: %d", g.status)
	}
	w.origin.noDigest = true
	if g := w.get("/v2/app/img/manifests/big", "Accept: other/type"); g.status != 413 {
		t.Errorf("passed through: %d", g.status)
	}
	if n := len(w.tasks.Requests()); n != 0 {
		t.Errorf("%d blobs were opened", n)
	}
	// An origin that names one digest and sends another content.
	w = newWorld(t, nil)
	w.origin.hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			rw.Header().Set("Docker-Content-Digest", blob.FromBytes([]byte("right")).String())
			fmt.Fprint(rw, "wrong")
		}
		return true
	}
	if g := w.get("/v2/app/img/manifests/v1"); g.status != 502 || g.code() != "DIGEST_INVALID" {
		t.Errorf("wrong bytes: %d %s %s", g.status, g.code(), g.body)
	}
}

func TestManifestConditionalAndUnknownType(t *testing.T) {
	w := newWorld(t, nil)
	im := w.origin.push("app/img", "v1", noise(10))
	odd := []byte("not JSON at all")
	w.origin.put("app/img", "odd", odd, "application/vnd.odd+thing")
	etag := `"` + im.indexDigest() + `"`
	for _, method := range []string{"GET", "HEAD"} {
		if g := do(t, method, w.main.URL+"/v2/app/img/manifests/v1", "If-None-Match: "+etag); g.status != 304 || g.body != "" {
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
