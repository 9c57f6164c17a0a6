package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
)

func TestForwardedRequests(t *testing.T) {
	w := newWorld(t, nil)
	w.origin.hook = func(rw http.ResponseWriter, r *http.Request) bool {
		body, _ := io.ReadAll(r.Body)
		rw.Header().Set("Location", "/v2/app/img/blobs/uploads/1?_state=x")
		rw.Header().Set("Link", `</v2/app/img/tags/list?n=2&last=b>; rel="next"`)
		rw.Header().Set("Connection", "X-Hop")
		rw.Header().Set("X-Hop", "1")
		rw.WriteHeader(202)
		fmt.Fprintf(rw, "%s %s %s %s", r.Method, r.Host, r.URL.RequestURI(), body)
		return true
	}
	long := strings.Repeat("a", 64)
	hub := w.serve(w.proxy.Registry("docker.io"))
	for _, c := range []struct{ method, url, want, location string }{
		{"POST", w.main.URL + "/v2/app/img/blobs/uploads/?ns=reg.example.com", "POST reg.example.com /v2/app/img/blobs/uploads/ b", "/v2/app/img/blobs/uploads/1?_state=x&ns=reg.example.com"},
		{"PATCH", w.main.URL + "/v2/ghcr.io/app/img/blobs/uploads/1?_state=x", "PATCH ghcr.io /v2/app/img/blobs/uploads/1?_state=x b", "/v2/ghcr.io/app/img/blobs/uploads/1?_state=x"},
		{"PUT", hub.URL + "/v2/app/img/manifests/v1", "PUT docker.io /v2/app/img/manifests/v1 b", "/v2/app/img/blobs/uploads/1?_state=x"},
		{"DELETE", hub.URL + "/v2/app/img/blobs/sha256:" + long, "DELETE docker.io /v2/app/img/blobs/sha256:" + long + " b", ""},
		{"GET", w.main.URL + "/v2/_catalog?n=5&ns=reg.example.com", "GET reg.example.com /v2/_catalog?n=5 ", ""},
		{"GET", w.main.URL + "/v2/app/img/tags/list?ns=reg.example.com&n=2", "GET reg.example.com /v2/app/img/tags/list?n=2 ", ""},
		{"GET", w.main.URL + "/v2/ghcr.io/app/img/referrers/sha256:" + long + "?artifactType=a%2Fb", "GET ghcr.io /v2/app/img/referrers/sha256:" + long + "?artifactType=a%2Fb ", ""},
		{"GET", hub.URL + "/v2/app/img/blobs/blake3:abcdef", "GET docker.io /v2/app/img/blobs/blake3:abcdef ", ""},
		{"GET", hub.URL + "/v2/auth?scope=a%2Fb", "GET docker.io /v2/auth?scope=a%2Fb ", ""},
	} {
		var body io.Reader
		if c.method != "GET" {
			body = strings.NewReader("b")
		}
		req, err := http.NewRequest(c.method, c.url, body)
		if err != nil {
			t.Fatal(err)
		}
		tr := &http.Transport{DisableKeepAlives: true}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(got) != c.want || resp.StatusCode != 202 || resp.Header.Get("X-Hop") != "" {
			t.Errorf("%s %s: %d %q, want %q", c.method, c.url, resp.StatusCode, got, c.want)
		}
		if c.location != "" && resp.Header.Get("Location") != c.location {
			t.Errorf("%s: Location %s", c.url, resp.Header.Get("Location"))
		}
		if strings.Contains(c.url, "ns=") && !strings.Contains(resp.Header.Get("Link"), "ns=reg.example.com>;") {
			t.Errorf("%s: Link %s", c.url, resp.Header.Get("Link"))
		}
	}
	for _, h := range w.origin.headers {
		if h.Get("Damselfly-Via") == "" {
			t.Error("a request went out without its mark")
		}
	}
}

func TestWritesAreSeenAtOnce(t *testing.T) {
	w := newWorld(t, nil)
	w.origin.push("app/img", "v1", noise(10))
	first := w.head("/v2/app/img/manifests/v1").header.Get("Docker-Content-Digest")
	w.origin.push("app/img", "v1", noise(11))
	if g := do(t, "PUT", w.main.URL+"/v2/app/img/manifests/v1"); g.status != 200 {
		t.Fatal(g.status)
	}
	if again := w.head("/v2/app/img/manifests/v1").header.Get("Docker-Content-Digest"); again == first {
		t.Error("a pusher does not see its own push")
	}
}

func TestLoopIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	w.origin.push("app/img", "v1", noise(10))
	if g := w.get("/v2/app/img/manifests/v1"); g.status != 200 {
		t.Fatal(g.status)
	}
	via := w.origin.headers[0].Get("Damselfly-Via")
	for _, v := range []string{via, "other, " + via, via + ",x", "a,b,c,d"} {
		if g := w.get("/v2/app/img/manifests/v1", "Damselfly-Via: "+v); g.status != 508 {
			t.Errorf("%q: %d", v, g.status)
		}
	}
	if g := w.get("/v2/app/img/manifests/v1", "Damselfly-Via: another node", "Accept: a/b"); g.status != 200 {
		t.Errorf("through another node: %d", g.status)
	}
	if last := w.origin.headers[len(w.origin.headers)-1].Get("Damselfly-Via"); last != "another node, "+via {
		t.Errorf("passed on as %q", last)
	}
}

// raw sends bytes and returns the status line, or what went wrong.
func raw(t *testing.T, w *world, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", w.main.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() { _, _ = io.WriteString(conn, request) }()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

func TestAbusiveRequests(t *testing.T) {
	w := newWorld(t, nil)
	w.origin.push("app/img", "v1", noise(10))
	const get = "GET /v2/app/img/manifests/v1 HTTP/1.1\r\nHost: localhost\r\n"
	for name, c := range map[string]struct{ request, want string }{
		"body on GET":       {get + "Content-Length: 3\r\n\r\nabc", "400"},
		"chunked GET":       {get + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		"length and chunks": {get + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		"huge header":       {get + "X: " + strings.Repeat("a", 64<<10) + "\r\n\r\n", "431"},
		"TRACE":             {"TRACE /v2/app/img/x/y HTTP/1.1\r\nHost: localhost\r\n\r\n", "405"},
		"CONNECT":           {"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n", "404"},
		"HTTP/1.0":          {"GET /v2/ HTTP/1.0\r\n\r\n", "200"},
	} {
		if line := raw(t, w, c.request); !strings.Contains(line, " "+c.want+" ") {
			t.Errorf("%s: %s, want %s", name, line, c.want)
		}
	}
}

// broken panics wherever it is asked.
type broken struct{ proxy.Upstream }

func (broken) Head(context.Context, origin.Ref, http.Header) (*http.Response, error) {
	panic("head")
}

func (broken) Forward(http.ResponseWriter, *http.Request, string) error { panic("forward") }

func TestPanicCostsOneRequest(t *testing.T) {
	w := newWorld(t, nil)
	p, err := proxy.New(proxy.Config{Names: []string{"example.com"}}, w.tasks, broken{}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s := w.serve(p.Registry(""))
	for path, status := range map[string]int{
		"/v2/app/img/manifests/v1": 500, "/v2/app/img/blobs/" + blob.FromBytes(nil).String(): 500, "/v2/x/y/z": 500, "/v2/": 200,
	} {
		g := do(t, "GET", s.URL+path)
		if g.status != status || strings.Contains(g.body, "goroutine") {
			t.Errorf("%s: %d %s", path, g.status, g.body)
		}
	}
}

func TestFacesSpeakToTheRealOriginClient(t *testing.T) {
	g := newRegistry()
	im := g.push("app/img", "v1", noise(200_000))
	g.readers["app/img"] = []string{"Bearer bob"}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: g}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	client, err := origin.New(origin.Config{
		Hosts: []origin.Host{{Name: "registry.example.com", Endpoint: "http://" + l.Addr().String()}}, Proxy: "none",
	}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	w := newWorld(t, nil)
	p, err := proxy.New(proxy.Config{Names: []string{"example.com"}}, w.tasks, client, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s := w.serve(p.Registry(""))
	w.tasks.Add(im.layer, int64(len(im.layer)))
	w.tasks.Add(im.index, int64(len(im.index)))
	w.tasks.Add(im.manifest, int64(len(im.manifest)))
	const ns = "?ns=registry.example.com"
	if got := do(t, "GET", s.URL+"/v2/app/img/manifests/v1"+ns); got.status != 401 || got.header.Get("Www-Authenticate") != challenge {
		t.Errorf("anonymous: %d %v", got.status, got.header)
	}
	for path, want := range map[string][]byte{
		"manifests/v1": im.index, "manifests/" + im.manifestDigest(): im.manifest, "blobs/" + im.layerDigest(): im.layer,
	} {
		if got := do(t, "GET", s.URL+"/v2/app/img/"+path+ns, bob); got.status != 200 || got.body != string(want) {
			t.Errorf("%s: %d %s", path, got.status, got.code())
		}
	}
	if got := do(t, "GET", s.URL+"/v2/app/img/tags/list"+ns, bob); got.status != 404 {
		t.Errorf("tags: %d", got.status)
	}
	if got := do(t, "GET", s.URL+"/v2/?ns=registry.example.com", bob); got.status != 404 {
		t.Errorf("ping: %d", got.status)
	}
	if got := do(t, "GET", s.URL+"/v2/app/img/manifests/v1?ns=169.254.169.254"); got.status != 403 || got.code() != "DENIED" {
		t.Errorf("metadata address: %d %s", got.status, got.body)
	}
}

func TestConfigValidate(t *testing.T) {
	for _, bad := range []proxy.Config{
		{DefaultRegistry: "https://docker.io"}, {Intercept: []string{"*"}}, {GrantTTL: -1}, {OriginTimeout: -1},
		{WriteTimeout: -1}, {GrantEntries: -1},
	} {
		if err := bad.Validate(); err == nil || !strings.HasPrefix(err.Error(), "proxy.") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if err := proxy.DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	if err := (proxy.Config{}).Validate(); err != nil {
		t.Error(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a face for no registry")
		}
	}()
	w := newWorld(t, nil)
	w.proxy.Registry("no registry")
}
