package proxy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
	"github.com/damselfly-p2p/damselfly/pkg/proxy/proxytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	challenge    = `Bearer realm="https://auth.example.com/token",service="reg",scope="repository:app/img:pull"`
	refusalBody  = `{"errors":[{"code":"UNAUTHORIZED","message":"who are you","detail":{"of":"the origin"}}]}`
)

// content is what a registry keeps under a name.
type content struct {
	body []byte
	typ  string
}

// registry is an origin that can be told how to behave. Its fields are set
// before it is asked.
type registry struct {
	// readers are the Authorization headers that may read a repository; one that is
	// not listed is public.
	readers map[string][]string
	// hook, if set, may answer a request in the registry's stead.
	hook func(w http.ResponseWriter, r *http.Request) bool
	// gone refuses connections.
	gone bool
	// noDigest leaves Docker-Content-Digest out.
	noDigest bool

	mu        sync.Mutex
	manifests map[string]content // by repository + "@" + tag or digest
	blobs     map[string]content
	asked     []string // "HEAD docker.io /v2/app/img/manifests/v1"
	headers   []http.Header
}

func newRegistry() *registry {
	return &registry{readers: map[string][]string{}, manifests: map[string]content{}, blobs: map[string]content{}}
}

// push keeps an image of one layer below an index, under a tag.
func (g *registry) push(repo, tag string, layer []byte) image {
	config := []byte(`{"of":"` + repo + `"}`)
	m := mustJSON(map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest, "config": descriptor("application/vnd.oci.image.config.v1+json", config),
		"layers": []any{descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer)},
	})
	index := mustJSON(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []any{descriptor(typeManifest, m)}})
	im := image{index: index, manifest: m, config: config, layer: layer}
	g.put(repo, tag, index, typeIndex)
	g.put(repo, im.manifestDigest(), m, typeManifest)
	g.keep(repo, config)
	g.keep(repo, layer)
	return im
}

func (g *registry) put(repo, tag string, body []byte, typ string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.manifests[repo+"@"+tag] = content{body, typ}
	g.manifests[repo+"@"+blob.FromBytes(body).String()] = content{body, typ}
}

func (g *registry) keep(repo string, body []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.blobs[repo+"@"+blob.FromBytes(body).String()] = content{body, "application/octet-stream"}
}

type image struct{ index, manifest, config, layer []byte }

func (i image) indexDigest() string    { return blob.FromBytes(i.index).String() }
func (i image) manifestDigest() string { return blob.FromBytes(i.manifest).String() }
func (i image) configDigest() string   { return blob.FromBytes(i.config).String() }
func (i image) layerDigest() string    { return blob.FromBytes(i.layer).String() }

func descriptor(typ string, body []byte) map[string]any {
	return map[string]any{"mediaType": typ, "digest": blob.FromBytes(body), "size": len(body)}
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// ServeHTTP implements http.Handler. The Host header names the registry.
func (g *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	g.asked = append(g.asked, r.Method+" "+r.Host+" "+r.URL.RequestURI())
	g.headers = append(g.headers, r.Header.Clone())
	hook := g.hook
	g.mu.Unlock()
	if hook != nil && hook(w, r) {
		return
	}
	w.Header().Set("RateLimit-Remaining", "99;w=21600")
	rest := strings.TrimPrefix(r.URL.Path, "/v2/")
	for noun, shelf := range map[string]map[string]content{"/manifests/": g.manifests, "/blobs/": g.blobs} {
		repo, ref, ok := strings.Cut(rest, noun)
		if !ok {
			continue
		}
		if readers, private := g.readers[repo]; private && !contains(readers, r.Header.Get("Authorization")) {
			w.Header().Set("Www-Authenticate", challenge)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, refusalBody)
			return
		}
		g.mu.Lock()
		c, found := shelf[repo+"@"+ref]
		g.mu.Unlock()
		if !found {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		g.serve(w, r, c)
		return
	}
	w.WriteHeader(http.StatusNotFound)
}

func (g *registry) serve(w http.ResponseWriter, r *http.Request, c content) {
	h := w.Header()
	h.Set("Content-Type", c.typ)
	h.Set("Content-Length", strconv.Itoa(len(c.body)))
	if !g.noDigest {
		h.Set("Docker-Content-Digest", blob.FromBytes(c.body).String())
	}
	if r.Method == http.MethodGet && c.typ == "application/octet-stream" {
		h.Del("Content-Length")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(c.body))
	} else if r.Method == http.MethodGet {
		_, _ = w.Write(c.body)
	}
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// count counts the requests that start with prefix.
func (g *registry) count(prefix string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, a := range g.asked {
		if strings.HasPrefix(a, prefix) {
			n++
		}
	}
	return n
}

func (g *registry) seen() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.asked...)
}

// upstream asks a handler in place of the network: Host is the registry's name.
type upstream struct{ handler http.Handler }

// RoundTrip implements http.RoundTripper.
func (u upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if g, ok := u.handler.(*registry); ok && g.gone {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	rec := httptest.NewRecorder()
	in := r.Clone(r.Context())
	in.Host = r.URL.Host
	if in.Body == nil {
		in.Body = http.NoBody
	}
	u.handler.ServeHTTP(rec, in)
	return rec.Result(), nil
}

func (u upstream) ask(ctx context.Context, method string, ref origin.Ref, header http.Header) (*http.Response, error) {
	to := ref.URL
	if ref.Kind != origin.KindURL {
		noun := map[origin.Kind]string{origin.KindBlob: "blobs/", origin.KindManifest: "manifests/", origin.KindReferrers: "referrers/", origin.KindTags: "tags/list"}[ref.Kind]
		to = "https://" + ref.Registry + "/v2/" + ref.Repository + "/" + noun + ref.Reference
		if ref.Query != "" {
			to += "?" + ref.Query
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, to, nil)
	if err != nil {
		return nil, err
	}
	r.Header = header.Clone()
	return u.RoundTrip(r)
}

func (u upstream) Head(ctx context.Context, ref origin.Ref, header http.Header) (*http.Response, error) {
	return u.ask(ctx, http.MethodHead, ref, header)
}

func (u upstream) Get(ctx context.Context, ref origin.Ref, header http.Header) (*http.Response, error) {
	return u.ask(ctx, http.MethodGet, ref, header)
}

func (u upstream) Pass(ctx context.Context, method string, ref origin.Ref, header http.Header) (*http.Response, error) {
	return u.ask(ctx, method, ref, header)
}

func (u upstream) Forward(w http.ResponseWriter, r *http.Request, registry string) error {
	(&httputil.ReverseProxy{Transport: u, Rewrite: func(pr *httputil.ProxyRequest) {
		pr.Out.URL.Scheme, pr.Out.URL.Host = "https", registry
	}}).ServeHTTP(w, r)
	return nil
}

// world is a proxy with fakes around it and servers in front of it.
type world struct {
	t       *testing.T
	origin  *registry
	tasks   *proxytest.Tasks
	proxy   *proxy.Proxy
	main    *httptest.Server
	logs    *observer.ObservedLogs
	metrics *prometheus.Registry
}

func newWorld(t *testing.T, change func(*proxy.Config)) *world {
	t.Helper()
	w := &world{t: t, origin: newRegistry(), metrics: prometheus.NewRegistry()}
	w.tasks = proxytest.NewTasks(t.TempDir(), upstream{w.origin})
	core, logs := observer.New(zapcore.DebugLevel)
	w.logs = logs
	cfg := proxy.Config{Names: []string{"example.com"}} // that of httptest.NewRequest
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.proxy, err = proxy.New(cfg, w.tasks, upstream{w.origin}, zap.New(core), w.metrics); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.proxy.Close(); err != nil {
			t.Error(err)
		}
		if n := w.tasks.OpenHandles(); n != 0 {
			t.Errorf("%d handles were not closed", n)
		}
	})
	w.main = w.serve(w.proxy.Registry(""))
	return w
}

// serve puts a face behind a server with the limits of the real one.
func (w *world) serve(h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config = w.proxy.Server(h)
	s.Start()
	w.t.Cleanup(s.Close)
	return s
}

// metric is a counter, or the count of a histogram, by "name/label value".
func (w *world) metric(key string) float64 {
	w.t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "/" + l.GetValue()
			}
			switch {
			case name != key:
			case m.GetHistogram() != nil:
				return float64(m.GetHistogram().GetSampleCount())
			default:
				return m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

// got is a response that was read.
type got struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
}

// do sends a request; headers are "Name: value".
func do(t *testing.T, method, url string, headers ...string) got {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Add(k, v)
	}
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return got{resp.StatusCode, resp.Header, string(body), err}
}

func (w *world) get(path string, headers ...string) got {
	w.t.Helper()
	return do(w.t, http.MethodGet, w.main.URL+path, headers...)
}

func (w *world) head(path string, headers ...string) got {
	w.t.Helper()
	return do(w.t, http.MethodHead, w.main.URL+path, headers...)
}

// code is the first code of a body in the spec's form.
func (g got) code() string {
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal([]byte(g.body), &body) != nil || len(body.Errors) == 0 || body.Errors[0].Message == "" {
		return fmt.Sprintf("(no error body: %.80q)", g.body)
	}
	return body.Errors[0].Code
}

// local dials without a guard.
func local(ctx context.Context, network, addr string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// noise is data that does not repeat.
func noise(n int) []byte {
	b := make([]byte, n)
	x := uint32(n)*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}
