package origin

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// forward sends a request through c to the test registry.
func forward(t testing.TB, c *Client, method, target string, body io.Reader, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, target, body)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	if err := c.Forward(w, r, testRegistry); err != nil {
		t.Errorf("%s %s: %v", method, target, err)
	}
	return w
}

func TestForwardPush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := content(300_000)
		var got []byte
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
			got, _ = io.ReadAll(r.Body)
			pass(2 * time.Minute) // a registry may take long to commit a blob
			w.Header().Set("Location", "http://registry.example.com/v2/team/app/blobs/x?_state=1")
			w.Header().Set("Docker-Upload-Uuid", "u")
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusCreated)
		})
		c := testClient(t, n, nil)
		w := forward(t, c, http.MethodPatch, "/v2/team/app/blobs/uploads/u?_state=a%2Fb&ns=registry.example.com", bytes.NewReader(b),
			"Authorization", "Bearer t", "Content-Type", "application/octet-stream", "Content-Range", "0-299999", "Accept-Encoding", "gzip",
			"Connection", "X-Hop", "X-Hop", "1", "Te", "deflate", "Proxy-Authorization", "p", "X-Forwarded-For", "10.0.0.1")
		if w.Code != http.StatusCreated || w.Header().Get("Location") == "" || w.Header().Get("Docker-Upload-Uuid") != "u" || w.Header().Get("Connection") != "" {
			t.Errorf("answer %d %v", w.Code, w.Header())
		}
		r := rec.all()[0]
		if !bytes.Equal(got, b) || r.Method != http.MethodPatch || r.URL.RequestURI() != "/v2/team/app/blobs/uploads/u?_state=a%2Fb" || r.Host != testRegistry {
			t.Errorf("the registry got %s %s (%d bytes) for %s", r.Method, r.URL.RequestURI(), len(got), r.Host)
		}
		if r.Header.Get("Authorization") != "Bearer t" || r.Header.Get("Content-Range") != "0-299999" {
			t.Errorf("header %v", r.Header)
		}
		for _, k := range []string{"X-Hop", "Te", "Proxy-Authorization", "X-Forwarded-For"} {
			if r.Header.Get(k) != "" {
				t.Errorf("%s was passed on", k)
			}
		}
		if got := r.Header.Get("Accept-Encoding"); got != "identity" {
			t.Errorf("Accept-Encoding is %q", got)
		}
	})
}

// Redirects and challenges are the client's own business.
func TestForwardVerbatim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, code := range []int{200, 202, 301, 307, 401, 404, 405, 412, 429, 500, 503} {
			n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
				w.Header().Set("Location", "http://169.254.169.254/x")
				w.Header().Set("Www-Authenticate", bearerChallenge)
				w.WriteHeader(code)
				_, _ = io.WriteString(w, "body")
			})
			c := testClient(t, n, func(c *Config) {
				c.DockerConfig = mustWrite(t, "c.json", dockerAuth(testRegistry, "bob:secret"))
			})
			w := forward(t, c, http.MethodDelete, "/v2/team/app/manifests/v1", nil)
			if w.Code != code || w.Body.String() != "body" || w.Header().Get("Location") != "http://169.254.169.254/x" ||
				w.Header().Get("Www-Authenticate") != bearerChallenge || rec.count() != 1 {
				t.Errorf("%d: %d %q %v after %d requests", code, w.Code, w.Body, w.Header(), rec.count())
			}
			if code == 429 {
				if resp, err := c.Head(t.Context(), tagRef("v1"), nil); status(t, resp, err) != 429 && rec.count() != 1 {
					t.Error("a forwarded 429 makes nobody pause")
				}
			}
		}
	})
}

func TestForwardErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, rec := registryOf(t, func(http.ResponseWriter, *http.Request, int) {})
		c := testClient(t, n, func(c *Config) { c.OnlyListed = true })
		for _, c2 := range []struct{ registry, target string }{
			{testRegistry, "/v2x/"}, {testRegistry, "/metrics"}, {testRegistry, "/v2/../admin"}, {testRegistry, "/v2/%2e%2e/admin"},
			{testRegistry, "/v2/a/..%2f..%2fadmin"}, {testRegistry, "/v2/a%5c..%5cb"}, {testRegistry, "/v2/a%00b"}, {"user@" + testRegistry, "/v2/x"},
			{"other.example.com", "/v2/x"},
		} {
			u, err := url.ParseRequestURI(c2.target)
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			r := (&http.Request{Method: http.MethodPut, URL: u, Header: http.Header{}}).WithContext(t.Context())
			if err := c.Forward(w, r, c2.registry); err == nil || w.Body.Len() > 0 {
				t.Errorf("%s at %s: %v", c2.target, c2.registry, err)
			}
		}
		if rec.count() > 0 {
			t.Errorf("%d requests got through", rec.count())
		}
		err := testClient(t, newMemNet(), nil).Forward(httptest.NewRecorder(), httptest.NewRequest("PUT", "/v2/x?sig=CANARY", nil), testRegistry)
		if err == nil || !strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("no registry: %v", err)
		}
	})
}

func TestForwardToPrefix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		rec, h := recorded(func(w http.ResponseWriter, r *http.Request, _ int) {})
		n.serve(t, "mirror.example:8080", h)
		c := testClient(t, n, func(c *Config) {
			c.Hosts = []Host{{Name: testRegistry, Endpoint: "http://mirror.example:8080/cache/hub/"}}
		})
		forward(t, c, http.MethodGet, "/v2/a%20b/c", nil)
		_, _ = c.Head(t.Context(), tagRef("v1"), nil)
		for i, want := range []string{"/cache/hub/v2/a%20b/c", "/cache/hub/v2/team/app/manifests/v1"} {
			if got := rec.all()[i].URL.EscapedPath(); got != want {
				t.Errorf("asked %s, want %s", got, want)
			}
		}
	})
}

// A body that breaks on the way is not made to look whole.
func TestForwardCutShort(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write(make([]byte, 50))
		cut(w)
	}))
	defer up.Close()
	c := guardedClient(t, Config{Hosts: []Host{{Name: testRegistry, Endpoint: up.URL}}}, nil)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _ = c.Forward(w, r, testRegistry) }))
	defer front.Close()
	resp, err := http.Get(front.URL + "/v2/_catalog")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the client sees %v", err)
	}
	_ = resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
}

// A push goes on where it came in, although the registry's endpoint has another name.
func TestForwardLeadsBack(t *testing.T) {
	endpoint := &url.URL{Scheme: "https", Host: "internal.example.com:8443", Path: "/proxy"}
	for in, want := range map[string]string{
		"https://internal.example.com:8443/proxy/v2/a/blobs/uploads/1?_state=x%2Fy": "/v2/a/blobs/uploads/1?_state=x%2Fy",
		"https://INTERNAL.example.com:8443/proxy/v2/a%2Bb":                          "/v2/a%2Bb",
		"https://internal.example.com:8443/other/v2/a":                              "https://internal.example.com:8443/other/v2/a",
		"http://internal.example.com:8443/proxy/v2/a":                               "http://internal.example.com:8443/proxy/v2/a",
		"https://cdn.example.com/proxy/v2/a":                                        "https://cdn.example.com/proxy/v2/a",
		"/v2/a":                                                                     "/v2/a",
		"":                                                                          "",
	} {
		h := http.Header{"Location": {in}}
		leadBack(h, endpoint)
		if got := h.Get("Location"); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
}
