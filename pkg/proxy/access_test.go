package proxy_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/proxy"
	"github.com/damselfly-p2p/damselfly/pkg/proxy/proxytest"
)

const (
	bob = "Authorization: Bearer bob"
	eve = "Authorization: Bearer eve"
)

// privateWorld has a private image that bob has pulled, so that all of it is
// held, and a repository of eve's own.
func privateWorld(t *testing.T) (*world, image) {
	t.Helper()
	w := newWorld(t, nil)
	im := w.origin.push("app/img", "v1", noise(50_000))
	w.origin.push("eve/own", "v1", noise(70))
	w.origin.readers["app/img"] = []string{"Bearer bob"}
	w.origin.readers["eve/own"] = []string{"Bearer eve"}
	for _, path := range []string{"manifests/v1", "manifests/" + im.manifestDigest(), "blobs/" + im.configDigest(), "blobs/" + im.layerDigest()} {
		if g := w.get("/v2/app/img/"+path, bob); g.status != 200 {
			t.Fatalf("bob %s: %d %s", path, g.status, g.body)
		}
	}
	return w, im
}

func TestOnlyThoseMayReadWhomTheOriginLetsRead(t *testing.T) {
	w, im := privateWorld(t)
	if n := w.origin.count("HEAD"); n != 1 {
		t.Errorf("bob's pull cost %d HEADs", n)
	}
	paths := []string{
		"/v2/app/img/manifests/v1",
		"/v2/app/img/manifests/" + im.indexDigest(), "/v2/app/img/manifests/" + im.manifestDigest(),
		"/v2/app/img/blobs/" + im.configDigest(), "/v2/app/img/blobs/" + im.layerDigest(),
	}
	for _, who := range []string{eve, "X-Nobody: 1", "Authorization: Basic Ym9iOmJvYg=="} {
		for _, method := range []string{"GET", "HEAD"} {
			for _, path := range paths {
				g := do(t, method, w.main.URL+path, who, "Range: bytes=0-")
				if g.status != 401 || g.header.Get("Www-Authenticate") != challenge {
					t.Errorf("%s %s as %q: %d %v", method, path, who, g.status, g.header)
				}
				if method == "GET" && g.code() != "UNAUTHORIZED" {
					t.Errorf("%s: body %s", path, g.body)
				}
			}
		}
	}
	// The digest is known, and eve may read another repository, registry, or kind.
	for _, path := range []string{
		"/v2/eve/own/blobs/" + im.layerDigest(), "/v2/eve/own/manifests/" + im.manifestDigest(),
		"/v2/eve/own/blobs/" + im.layerDigest() + "?ns=elsewhere.example.com",
		"/v2/elsewhere.example.com/eve/own/blobs/" + im.layerDigest(),
	} {
		if g := w.get(path, eve); g.status != 404 {
			t.Errorf("cross-repository guess %s: %d", path, g.status)
		}
	}
	// What bob may read in one place and as one kind is nothing elsewhere.
	for _, path := range []string{"/v2/eve/own/blobs/" + im.layerDigest(), "/v2/app/img/manifests/" + im.layerDigest()} {
		if g := w.get(path, bob); g.status != 401 && g.status != 404 {
			t.Errorf("bob at %s: %d", path, g.status)
		}
	}
	// The same bytes in another registry are another right.
	if g := w.get("/v2/app/img/blobs/"+im.layerDigest()+"?ns=other.example.com", bob); g.status != 200 || w.origin.count("HEAD other.example.com") != 1 {
		t.Errorf("other registry: %d, %q", g.status, w.origin.seen())
	}
	if g := w.get("/v2/app/img/blobs/"+im.layerDigest(), bob); g.status != 200 {
		t.Errorf("bob afterwards: %d", g.status)
	}
}

// A refusal is the origin's each time, and touches nobody else.
func TestRefusalIsNotKept(t *testing.T) {
	w, im := privateWorld(t)
	path := "/v2/app/img/blobs/" + im.layerDigest()
	for range 3 {
		before := w.origin.count("GET")
		if g := w.get(path, eve); g.status != 401 || w.origin.count("GET") == before {
			t.Fatal(g.status, "the origin was not asked")
		}
	}
	if g := w.get(path, bob); g.status != 200 {
		t.Errorf("bob after eve: %d", g.status)
	}
	w.origin.readers["app/img"] = []string{"Bearer eve"}
	if g := w.get(path, eve); g.status != 200 {
		t.Errorf("eve, once she may: %d", g.status)
	}
}

// A client's own HEAD that is refused takes nothing from what a GET has opened.
func TestHeadDestroysNoGrant(t *testing.T) {
	w, im := privateWorld(t)
	w.origin.hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			rw.WriteHeader(http.StatusForbidden)
		}
		return r.Method == http.MethodHead
	}
	path := "/v2/app/img/blobs/" + im.layerDigest()
	if g := w.head(path, bob); g.status != 403 {
		t.Errorf("HEAD: %d", g.status)
	}
	before := w.origin.count("GET")
	if g := w.get(path, bob); g.status != 200 || w.origin.count("GET") != before {
		t.Errorf("GET: %d, %d requests", g.status, w.origin.count("GET")-before)
	}
}

func TestPublicIsPublicForAll(t *testing.T) {
	w := newWorld(t, nil)
	im := w.origin.push("app/img", "v1", noise(100))
	if g := w.get("/v2/app/img/manifests/v1"); g.status != 200 {
		t.Fatal(g.status)
	}
	before := w.origin.count("HEAD")
	if g := w.get("/v2/app/img/manifests/"+im.manifestDigest(), bob); g.status != 200 || w.origin.count("HEAD") != before {
		t.Errorf("%d, %d HEADs", g.status, w.origin.count("HEAD")-before)
	}
}

// fakeClock runs a face in a bubble of its own time.
func fakeClock(t *testing.T, g *registry, fn func(get func(path, authorization string) int)) {
	synctest.Test(t, func(t *testing.T) {
		p, err := proxy.New(proxy.Config{Names: []string{"example.com"}}, proxytest.NewTasks(t.TempDir(), upstream{g}), upstream{g}, zap.NewNop(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		face := p.Registry("")
		fn(func(path, authorization string) int {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			if authorization != "" {
				r.Header.Set("Authorization", authorization)
			}
			rec := httptest.NewRecorder()
			face.ServeHTTP(rec, r)
			return rec.Code
		})
	})
}

func TestGrantsEnd(t *testing.T) {
	g := newRegistry()
	im := g.push("app/img", "v1", noise(100))
	path := "/v2/app/img/blobs/" + im.layerDigest()
	g.readers["app/img"] = []string{"Bearer bob"}
	fakeClock(t, g, func(get func(path, authorization string) int) {
		if get(path, "Bearer bob") != 200 || get(path, "Bearer eve") != 401 {
			t.Fatal("first answers")
		}
		g.readers["app/img"] = []string{"Bearer eve"} // bob's right is taken, eve gets it
		if s := get(path, "Bearer eve"); s != 200 {
			t.Errorf("eve, who may now: %d", s)
		}
		time.Sleep(6 * time.Second)
		time.Sleep(4*time.Minute + 50*time.Second)
		if s := get(path, "Bearer bob"); s != 200 {
			t.Errorf("bob's grant ended early: %d", s)
		}
		time.Sleep(10 * time.Second)
		if s := get(path, "Bearer bob"); s != 401 {
			t.Errorf("bob after 5 min: %d", s)
		}
	})
}

// What manifests name is open no longer than the first of them, whatever is asked for
// meanwhile: a credential that the origin has taken back reads for one GrantTTL.
func TestChildrenEndWithTheirManifest(t *testing.T) {
	g := newRegistry()
	im := g.push("app/img", "v1", noise(100))
	g.readers["app/img"] = []string{"Bearer bob"}
	fakeClock(t, g, func(get func(path, authorization string) int) {
		index, manifest := "/v2/app/img/manifests/"+im.indexDigest(), "/v2/app/img/manifests/"+im.manifestDigest()
		config, layer := "/v2/app/img/blobs/"+im.configDigest(), "/v2/app/img/blobs/"+im.layerDigest()
		if s := get("/v2/app/img/manifests/v1", "Bearer bob"); s != 200 {
			t.Fatal(s)
		}
		for _, path := range []string{index, manifest, config, layer} {
			if s := get(path, "Bearer bob"); s != 200 {
				t.Fatal(path, s)
			}
		}
		g.readers["app/img"] = []string{"nobody"}
		for range 4 { // up to 4:56
			time.Sleep(74 * time.Second)
			for _, path := range []string{index, manifest, config, layer} {
				if s := get(path, "Bearer bob"); s != 200 {
					t.Errorf("%s before its time: %d", path, s)
				}
			}
		}
		time.Sleep(5 * time.Second)
		for _, path := range []string{layer, config, manifest, index, "/v2/app/img/manifests/v1"} {
			if s := get(path, "Bearer bob"); s != 401 {
				t.Errorf("%s after the time of the permission: %d", path, s)
			}
		}
	})
}

func TestGrantEndsWithItsToken(t *testing.T) {
	g := newRegistry()
	im := g.push("app/img", "v1", noise(100))
	fakeClock(t, g, func(get func(path, authorization string) int) {
		claims := fmt.Sprintf(`{"exp":%d}`, time.Now().Add(time.Minute).Unix())
		token := "Bearer e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
		g.readers["app/img"] = []string{token}
		child := "/v2/app/img/manifests/" + im.manifestDigest()
		for _, path := range []string{"/v2/app/img/manifests/v1", child} {
			if s := get(path, token); s != 200 {
				t.Fatal(path, s)
			}
		}
		g.readers["app/img"] = nil
		if s := get(child, token); s != 200 {
			t.Errorf("while the token lives: %d", s)
		}
		time.Sleep(61 * time.Second)
		if s := get(child, token); s != 401 {
			t.Errorf("after the token's end: %d", s)
		}
	})
}

func TestManifestVouchesForNoDigestOfOthers(t *testing.T) {
	_, victim := privateWorld(t)
	secret := map[string]any{"digest": victim.layerDigest(), "size": len(victim.layer)}
	with := func(extra map[string]any) map[string]any {
		d := map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar"}
		for _, m := range []map[string]any{secret, extra} {
			for k, v := range m {
				d[k] = v
			}
		}
		return d
	}
	config := descriptor("application/vnd.oci.image.config.v1+json", []byte("{}"))
	for name, c := range map[string]struct {
		typ string
		doc map[string]any
	}{
		"foreign layer": {typeManifest, map[string]any{"config": config, "layers": []any{with(map[string]any{"urls": []string{"https://x"}})}}},
		"nondistributable layer": {typeManifest, map[string]any{"config": config,
			"layers": []any{with(map[string]any{"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar"})}}},
		"subject":          {typeManifest, map[string]any{"config": config, "layers": []any{}, "subject": secret}},
		"other case":       {typeManifest, map[string]any{"config": config, "layers": []any{}, "Layers": []any{with(nil)}}},
		"index and image":  {typeIndex, map[string]any{"manifests": []any{}, "config": config, "layers": []any{with(nil)}}},
		"image and index":  {typeManifest, map[string]any{"manifests": []any{}, "config": config, "layers": []any{with(nil)}}},
		"no type anywhere": {"", map[string]any{"config": config, "layers": []any{with(nil)}}},
		"type and shape":   {typeIndex, map[string]any{"config": config, "layers": []any{with(nil)}}},
		"two types":        {typeManifest, map[string]any{"mediaType": typeIndex, "config": config, "layers": []any{with(nil)}}},
		"a type of others": {"application/vnd.x+json", map[string]any{"config": config, "layers": []any{with(nil)}}},
		"artifact blobs":   {"application/vnd.oci.artifact.manifest.v1+json", map[string]any{"blobs": []any{with(nil)}}},
	} {
		t.Run(name, func(t *testing.T) {
			w, victim := privateWorld(t)
			w.origin.put("eve/own", "trap", mustJSON(c.doc), c.typ)
			if g := w.get("/v2/eve/own/manifests/trap", eve); g.status != 200 {
				t.Fatal(g.status)
			}
			if g := w.get("/v2/eve/own/blobs/"+victim.layerDigest(), eve); g.status != 404 {
				t.Errorf("a planted digest was served: %d", g.status)
			}
		})
	}
}

func TestSizesThatManifestsDisagreeOnAreNotBelieved(t *testing.T) {
	w := newWorld(t, nil)
	layer := noise(1000)
	w.origin.push("app/img", "v1", layer)
	lie := descriptor("application/vnd.oci.image.layer.v1.tar", layer)
	lie["size"] = 7
	w.origin.put("app/img", "lie", mustJSON(map[string]any{"config": descriptor("x/y", []byte("{}")), "layers": []any{lie}}), typeManifest)
	im := w.origin.push("app/img", "v1", layer)
	for _, ref := range []string{im.manifestDigest(), "lie"} {
		if g := w.get("/v2/app/img/manifests/" + ref); g.status != 200 {
			t.Fatal(g.status)
		}
	}
	if g := w.get("/v2/app/img/blobs/" + im.layerDigest()); g.status != 200 || g.body != string(layer) {
		t.Errorf("%d %s", g.status, g.body)
	}
}

func TestLogsAndMetricsHoldNoSecrets(t *testing.T) {
	w, im := privateWorld(t)
	w.get("/v2/app/img/blobs/"+im.layerDigest()+"?token=canary-query", "Authorization: Bearer canary-token")
	w.get("/damselfly/v1/blob?digest="+im.layerDigest()+"&url=https%3A%2F%2Fhost.example.com%2Ff%3Fsig%3Dcanary-sig", "Damselfly-Origin-Secret: canary-header")
	w.main.Close() // handlers count when they are done
	if w.logs.Len() == 0 {
		t.Fatal("nothing was logged")
	}
	for _, e := range w.logs.All() {
		line := fmt.Sprint(e.Message, e.ContextMap())
		if strings.Contains(line, "canary") || strings.Contains(line, "Bearer") {
			t.Errorf("logged: %s", line)
		}
	}
	for key, want := range map[string]float64{
		"damselfly_pulls_total/hit": 4, "damselfly_pulls_total/miss": 0, "damselfly_pulls_total/denied": 1, "damselfly_pulls_total/not_found": 1,
		"damselfly_authz_checks_total/granted": 4, "damselfly_authz_checks_total/origin_refused": 2,
		"damselfly_pull_duration_seconds/manifest": 2, "damselfly_pull_duration_seconds/blob": 2,
	} {
		if got := w.metric(key); got != want {
			t.Errorf("%s = %v, want %v", key, got, want)
		}
	}
}
