package origin

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// No token, password or presigned query is in an error, a log or an answer.
func TestNoSecrets(t *testing.T) {
	const canary = "CANARY"
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request){
		"401": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(401) },
		"502": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(502) },
		"cut": func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
		"presigned to nowhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://u:"+canary+"@gone.example/x?X-Amz-Signature="+canary, http.StatusTemporaryRedirect)
		},
		"presigned loop": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/loop?sig="+canary, http.StatusTemporaryRedirect)
		},
		"short": func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(headOf(w, r, make([]byte, 10))[:5])
			cut(w)
		},
		"basic": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Www-Authenticate", "Basic")
			w.WriteHeader(401)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zap.DebugLevel)
				n, _ := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) { answer(w, r) })
				c := testClient(t, n, func(c *Config) {
					c.DockerConfig = mustWrite(t, "c.json", dockerAuth(testRegistry, "bob:"+canary))
				})
				c.log = zap.New(core)
				var said []string
				file := Ref{Kind: KindURL, URL: "http://" + testRegistry + "/f?token=" + canary}
				for _, ref := range []Ref{tagRef("v1"), blobRef(nil), file} {
					for _, h := range []http.Header{nil, withAuth("Bearer " + canary)} {
						if resp, err := c.Head(t.Context(), ref, h); err != nil {
							said = append(said, err.Error())
						} else {
							said = append(said, resp.Request.URL.String(), fmt.Sprint(resp.Request.Header))
						}
						if resp, err := c.Get(t.Context(), ref, h); err != nil {
							said = append(said, err.Error())
						} else {
							said = append(said, resp.Request.URL.String(), fmt.Sprint(resp.Request.Header))
							_ = resp.Body.Close()
						}
						if _, err := readAll(t, c, ref, h, 10, 0, -1); err != nil {
							said = append(said, err.Error(), fmt.Sprintf("%+v", err))
						} else if name != "short" {
							t.Error("read what is not there")
						}
						if _, err := c.Stat(t.Context(), ref, h); err != nil {
							said = append(said, err.Error())
						}
					}
					said = append(said, ref.String())
				}
				for _, e := range logs.All() {
					said = append(said, fmt.Sprint(e.Message, e.ContextMap()))
				}
				for _, s := range said {
					if strings.Contains(s, canary) || strings.Contains(s, basicAuth("bob:"+canary)) {
						t.Errorf("secret in %q", s)
					}
				}
			})
		})
	}
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := registryOf(t, func(w http.ResponseWriter, r *http.Request, n int) {
			switch n {
			case 1:
				w.Header().Set("Location", "/x")
				w.WriteHeader(307)
			case 2:
				_, _ = io.WriteString(w, "0123456789")
			case 3:
				w.WriteHeader(404)
			default:
				panic(http.ErrAbortHandler)
			}
		})
		reg := prometheus.NewRegistry()
		c, err := newClient(Config{Proxy: "none", Hosts: []Host{{Name: testRegistry, Endpoint: "http://" + testRegistry}}}, zap.NewNop(), reg, n.dial)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		resp, err := c.Get(t.Context(), tagRef("a"), nil)
		if err != nil || slurp(t, resp.Body) != "0123456789" {
			t.Fatal(err)
		}
		resp, err = c.Head(t.Context(), tagRef("b"), nil)
		status(t, resp, err)
		_, _ = c.Head(t.Context(), tagRef("c"), nil)
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.Metric {
				key := f.GetName()
				for _, l := range m.Label {
					key += " " + l.GetName() + "=" + l.GetValue()
				}
				got[key] = m.Counter.GetValue()
			}
		}
		if want := map[string]float64{
			"damselfly_origin_bytes_total":                     10,
			"damselfly_origin_requests_total code_class=2xx":   1,
			"damselfly_origin_requests_total code_class=3xx":   1,
			"damselfly_origin_requests_total code_class=4xx":   1,
			"damselfly_origin_requests_total code_class=error": maxTries,
		}; !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if _, err := New(Config{}, zap.NewNop(), reg); err != nil {
			t.Errorf("a second client with the same registerer: %v", err)
		}
	})
}
