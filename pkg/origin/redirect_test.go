package origin

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// Authorization and Cookie go to the configured scheme, host and port; Range and
// Accept go everywhere.
func TestRedirectRule(t *testing.T) {
	for name, c := range map[string]struct {
		hops []string // where the registry, and each after it, redirects to
		last string   // who answers
		kept bool     // the last one sees Authorization
	}{
		"same host":                {[]string{"/elsewhere"}, testRegistry + ":80", true},
		"same host, port spelled":  {[]string{"http://" + testRegistry + ":80/elsewhere"}, testRegistry + ":80", true},
		"same host, other case":    {[]string{"http://Registry.Example.Com/elsewhere"}, testRegistry + ":80", true},
		"same host, other port":    {[]string{"http://" + testRegistry + ":8080/x"}, testRegistry + ":8080", false},
		"subdomain":                {[]string{"http://cdn." + testRegistry + "/x"}, "cdn." + testRegistry + ":80", false},
		"other host":               {[]string{"http://cdn.example.net/x?X-Amz-Signature=s"}, "cdn.example.net:80", false},
		"userinfo is dropped":      {[]string{"http://u:p@cdn.example.net/x"}, "cdn.example.net:80", false},
		"away and back":            {[]string{"http://cdn.example.net/x", "http://" + testRegistry + "/elsewhere"}, testRegistry + ":80", false},
		"away, relative from then": {[]string{"http://cdn.example.net/x", "/y"}, "cdn.example.net:80", false},
	} {
		for _, code := range []int{301, 302, 303, 307, 308} {
			t.Run(fmt.Sprint(name, code), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n, blob := newMemNet(), content(100)
					hop := 0
					var last *http.Request
					var at string
					for _, addr := range []string{testRegistry + ":80", testRegistry + ":8080", "cdn." + testRegistry + ":80", "cdn.example.net:80"} {
						n.serve(t, addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							last, at = r.Clone(r.Context()), addr
							if hop < len(c.hops) {
								w.Header().Set("Location", c.hops[hop])
								w.WriteHeader(code)
								hop++
								return
							}
							serveBytes(w, r, blob)
						}))
					}
					header := withAuth("Bearer t")
					header.Set("Cookie", "session=1")
					header.Set("Accept", "a/b")
					header.Set("Accept-Encoding", "gzip")
					header.Set("X-Meta-Team", "a")
					body, err := testClient(t, n, nil).Read(t.Context(), blobRef(blob), header, 100, 40, 20)
					if err != nil {
						t.Fatal(err)
					}
					if slurp(t, body) != string(blob[40:60]) {
						t.Error("wrong bytes")
					}
					if at != c.last {
						t.Errorf("answered by %s, want %s", at, c.last)
					}
					if got := last.Header.Get("Authorization") != ""; got != c.kept {
						t.Errorf("Authorization at %s: %v", at, got)
					}
					if got := last.Header.Get("Cookie") != ""; got != c.kept {
						t.Errorf("Cookie at %s: %v", at, got)
					}
					h := last.Header
					if h.Get("Range") != "bytes=40-59" || h.Get("Accept") != "a/b" || h.Get("Accept-Encoding") == "gzip" || (h.Get("X-Meta-Team") != "") != c.kept {
						t.Errorf("header at %s: %v", at, h)
					}
				})
			})
		}
	}
}

func TestRedirectNotFollowed(t *testing.T) {
	for name, location := range map[string]func(n int) string{
		"to itself":      func(int) string { return "?" },
		"loop of two":    func(n int) string { return fmt.Sprintf("/loop/%d", n%2) },
		"without end":    func(n int) string { return fmt.Sprintf("/hop/%d", n) },
		"file":           func(int) string { return "file:///etc/passwd" },
		"no host":        func(int) string { return "http:///x" },
		"not a URL":      func(int) string { return "http://[CANARY" },
		"secret in loop": func(int) string { return "/x?sig=CANARY" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newMemNet()
				rec, h := recorded(func(w http.ResponseWriter, r *http.Request, n int) {
					w.Header().Set("Location", location(n))
					w.WriteHeader(http.StatusTemporaryRedirect)
				})
				n.serve(t, testRegistry+":80", h)
				c := testClient(t, n, nil)
				_, err := c.Head(t.Context(), tagRef("v1"), nil)
				if !errors.Is(err, ErrRedirect) || strings.Contains(err.Error(), "CANARY") {
					t.Errorf("Head: %v", err)
				}
				if rec.count() > maxRedirects+1 {
					t.Errorf("%d requests", rec.count())
				}
				if _, err := c.Read(t.Context(), blobRef(nil), nil, 5, 0, -1); !errors.Is(err, ErrRedirect) {
					t.Errorf("Read: %v", err)
				}
			})
		})
	}
}

// Ten redirects are followed, as by every client.
func TestRedirectTen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		_, h := recorded(func(w http.ResponseWriter, r *http.Request, n int) {
			if n <= maxRedirects {
				http.Redirect(w, r, fmt.Sprintf("/hop/%d", n), http.StatusFound)
			}
		})
		n.serve(t, testRegistry+":80", h)
		resp, err := testClient(t, n, nil).Head(t.Context(), tagRef("v1"), nil)
		if code := status(t, resp, err); code != http.StatusOK {
			t.Errorf("status %d", code)
		}
	})
}

// From https to http only what a digest will prove.
func TestRedirectToPlain(t *testing.T) {
	blob := content(50)
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serveBytes(w, r, blob) }))
	defer plain.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL+"/x", http.StatusFound)
	}))
	defer secure.Close()
	c, err := New(Config{
		Proxy: "none", Allow: []string{"127.0.0.1"},
		Hosts: []Host{{Name: testRegistry, Endpoint: secure.URL, CAFile: mustWrite(t, "ca.pem", certPEM(secure))}},
	}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	body, err := c.Read(t.Context(), blobRef(blob), nil, 50, 0, -1)
	if err != nil || slurp(t, body) != string(blob) {
		t.Errorf("by digest: %v", err)
	}
	for _, ref := range []Ref{tagRef("v1"), {Kind: KindURL, URL: secure.URL + "/file"}} {
		if _, err := c.Get(t.Context(), ref, nil); !errors.Is(err, ErrRedirect) {
			t.Errorf("%s: %v; want ErrRedirect", ref, err)
		}
	}
}

// A plain server gets the client's own headers, other hosts after it do not.
func TestURLHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		here, h := recorded(func(w http.ResponseWriter, r *http.Request, _ int) {
			http.Redirect(w, r, "http://cdn.example.net/f", http.StatusFound)
		})
		n.serve(t, "files.example:80", h)
		there, h := recorded(func(http.ResponseWriter, *http.Request, int) {})
		n.serve(t, "cdn.example.net:80", h)
		header := http.Header{
			"Private-Token": {"t"}, "Authorization": {"a"}, "Connection": {"close, X-Hop"}, "X-Hop": {"1"}, "Te": {"trailers"},
			"Host": {"evil"}, "Accept-Encoding": {"gzip"}, "Proxy-Authorization": {"p"}, "Content-Length": {"5"}, "Accept": {"x/y"},
		}
		resp, err := testClient(t, n, nil).Get(t.Context(), Ref{Kind: KindURL, URL: "http://files.example/f#frag"}, header)
		if code := status(t, resp, err); code != http.StatusOK {
			t.Fatalf("status %d", code)
		}
		first, second := here.all()[0], there.all()[0]
		if first.Header.Get("Private-Token") != "t" || first.Header.Get("Authorization") != "a" || first.Host != "files.example" {
			t.Errorf("the server asked: %s %v", first.Host, first.Header)
		}
		for _, k := range []string{"X-Hop", "Te", "Proxy-Authorization", "Content-Length"} {
			if first.Header.Get(k) != "" {
				t.Errorf("%s was passed on", k)
			}
		}
		if second.Header.Get("Private-Token") != "" || second.Header.Get("Authorization") != "" || second.Header.Get("Accept") != "x/y" {
			t.Errorf("the other host: %v", second.Header)
		}
	})
}

func TestPresignedLife(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for query, want := range map[string]time.Duration{
		"":                                       maxLocation,
		"X-Amz-Expires=1200":                     maxLocation,
		"X-Amz-Expires=60":                       time.Minute,
		"X-Goog-Expires=30":                      30 * time.Second,
		"X-Amz-Expires=junk":                     maxLocation,
		"X-Amz-Expires=-5":                       maxLocation,
		"se=2026-01-02T03%3A05%3A05Z":            time.Minute,
		"se=2026-01-02T03%3A00%3A00Z":            -4*time.Minute - 5*time.Second,
		fmt.Sprintf("Expires=%d", now.Unix()+90): 90 * time.Second,
	} {
		if got := presignedLife(&url.URL{RawQuery: query}, now); got != want {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
	}
}
