package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

const (
	authHost  = "auth.example.com"
	testScope = "repository:" + testRepo + ":pull"
)

func TestSolveFlows(t *testing.T) {
	for name, c := range map[string]struct {
		config    string
		challenge string
		prepare   func(*tokenRealm)
		method    string // of the token request
		user      bool
	}{
		"own credential, token":        {dockerAuth(testRegistry, "bob:secret"), bearerChallenge, nil, "GET", true},
		"own credential, access_token": {dockerAuth(testRegistry, "bob:secret"), bearerChallenge, func(a *tokenRealm) { a.field = "access_token" }, "GET", true},
		"own credential, by URL key":   {dockerAuth("https://"+testRegistry+"/v1/", "bob:secret"), bearerChallenge, nil, "GET", true},
		"identity token":               {`{"auths":{"` + testRegistry + `":{"identitytoken":"identity"}}}`, bearerChallenge, func(a *tokenRealm) { a.field = "access_token" }, "POST", false},
		"anybody":                      {"", bearerChallenge, func(a *tokenRealm) { a.public = true }, "GET", false},
		"bearer after basic":           {dockerAuth(testRegistry, "bob:secret"), "Basic realm=\"x\"\n" + bearerChallenge, nil, "GET", true},
		"bearer after negotiate":       {dockerAuth(testRegistry, "bob:secret"), "Negotiate, " + bearerChallenge, nil, "GET", true},
		"no expiry given":              {dockerAuth(testRegistry, "bob:secret"), bearerChallenge, func(a *tokenRealm) { a.expiresIn = 0 }, "GET", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, c.challenge)
				if c.prepare != nil {
					c.prepare(w.realm)
				}
				cl := w.client(t, c.config)
				for range 3 {
					body, err := cl.Read(t.Context(), blobRef(w.blob), nil, int64(len(w.blob)), 10, 20)
					if err != nil {
						t.Fatal(err)
					}
					if got := slurp(t, body); got != string(w.blob[10:30]) {
						t.Errorf("wrong bytes")
					}
				}
				if w.realm.issued != 1 || w.reg.count() != 4 {
					t.Errorf("%d tokens and %d registry requests for three reads; want 1 and 4", w.realm.issued, w.reg.count())
				}
				req := w.realm.rec.all()[0]
				if _, _, sent := req.BasicAuth(); sent != c.user || req.Method != c.method {
					t.Errorf("token request by %s, Basic %v", req.Method, sent)
				}
				if ua := req.Header.Get("User-Agent"); ua != "damselfly" {
					t.Errorf("token request by %q", ua)
				}
			})
		})
	}
}

func TestSolveBasic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, rec := newMemNet(), &record{}
		n.serve(t, testRegistry+":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec.add(r)
			if u, p, _ := r.BasicAuth(); u != "AWS" || p != "password" {
				w.Header().Set("Www-Authenticate", `Basic realm="https://x.dkr.ecr.example/",service="ecr.amazonaws.com"`)
				w.WriteHeader(http.StatusUnauthorized)
			}
		}))
		c := testClient(t, n, func(c *Config) {
			c.DockerConfig = mustWrite(t, "c.json", dockerAuth(testRegistry, "AWS:password"))
		})
		for range 2 {
			resp, err := c.Head(t.Context(), tagRef("v1"), nil)
			if code := status(t, resp, err); code != http.StatusOK {
				t.Errorf("status %d", code)
			}
		}
		if rec.count() != 3 {
			t.Errorf("%d requests, want 401, 200, 200", rec.count())
		}
	})
}

// The registry's own refusal is what callers see when nothing of ours opens.
func TestSolveGivesChallengeBack(t *testing.T) {
	for name, c := range map[string]struct {
		config string
		header http.Header
		tokens int // requests to the realm
	}{
		"no credential of this node":          {"", nil, 0},
		"credential of another registry":      {dockerAuth("other.example.com", "bob:secret"), nil, 0},
		"wrong password":                      {dockerAuth(testRegistry, "bob:wrong"), nil, 1},
		"the client's own token does not do":  {dockerAuth(testRegistry, "bob:secret"), withAuth("Bearer stale"), 0},
		"docker config that cannot be read":   {`{"auths":{"` + testRegistry + `":{"auth":"Q0FOQVJZ"}}}`, nil, 0},
		"docker config that is not JSON":      {`CANARY`, nil, 0},
		"credential helper that is not there": {`{"credHelpers":{"` + testRegistry + `":"nowhere-to-be-found"}}`, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zap.DebugLevel)
				w := newWorld(t, bearerChallenge)
				cl := w.client(t, c.config)
				cl.log = zap.New(core)
				for _, method := range []string{http.MethodHead, http.MethodGet} {
					ask := cl.Head
					if method == http.MethodGet {
						ask = cl.Get
					}
					resp, err := ask(t.Context(), tagRef("v1"), c.header)
					if err != nil {
						t.Fatal(err)
					}
					if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("Www-Authenticate") != bearerChallenge ||
						resp.Header.Get("Docker-Distribution-Api-Version") == "" {
						t.Errorf("%s: %d %v", method, resp.StatusCode, resp.Header)
					}
					if body := slurp(t, resp.Body); method == http.MethodGet && !strings.Contains(body, "authentication required") {
						t.Errorf("body %q", body)
					}
				}
				if got := w.realm.rec.count(); got != 2*c.tokens {
					t.Errorf("%d token requests, want %d", got, 2*c.tokens)
				}
				for _, e := range logs.All() {
					if s := fmt.Sprint(e.Message, e.ContextMap()); strings.Contains(s, "CANARY") || strings.Contains(s, "Q0FOQVJZ") {
						t.Errorf("secret in log: %s", s)
					}
				}
			})
		})
	}
}

// A solver as anybody leaves the client's challenge alone only where Head and
// Get ask; Size, Read, Public and Solver ask for what anybody may have.
func TestSolveAsAnybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, bearerChallenge)
		w.realm.public = true
		c := w.client(t, "")
		if ok, err := c.Public(t.Context(), tagRef("v1")); !ok || err != nil {
			t.Errorf("Public: %v, %v", ok, err)
		}
		resp, err := c.Solver().Get(t.Context(), tagRef("v1"), nil)
		if code := status(t, resp, err); code != http.StatusOK {
			t.Errorf("Solver: %d", code)
		}
		resp, err = c.Head(t.Context(), tagRef("v1"), nil)
		if code := status(t, resp, err); code != http.StatusUnauthorized {
			t.Errorf("Head: %d", code)
		}
		w.realm.set(func() { w.realm.public, w.realm.valid = false, map[string]bool{} })
		if ok, err := c.Public(t.Context(), tagRef("v1")); ok || err != nil {
			t.Errorf("Public of a private one: %v, %v", ok, err)
		}
		_, _, _, err = c.Size(t.Context(), tagRef("v1"), nil)
		var se *StatusError
		if !errors.As(err, &se) || se.Code != http.StatusUnauthorized || se.Header.Get("Www-Authenticate") != bearerChallenge {
			t.Errorf("Size of a private one: %v", err)
		}
	})
}

func TestPublicNeverUsesOwnCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, bearerChallenge)
		c := w.client(t, dockerAuth(testRegistry, "bob:secret"))
		resp, err := c.Head(t.Context(), tagRef("v1"), nil)
		if code := status(t, resp, err); code != http.StatusOK {
			t.Fatalf("own credential: %d", code)
		}
		if ok, err := c.Public(t.Context(), tagRef("v1")); ok || err != nil {
			t.Errorf("a private image is public: %v, %v", ok, err)
		}
	})
}

func TestSolveRefreshesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, bearerChallenge)
		c := w.client(t, dockerAuth(testRegistry, "bob:secret"))
		ask := func() int {
			resp, err := c.Head(t.Context(), tagRef("v1"), nil)
			return status(t, resp, err)
		}
		ask()
		// Revoked before its time: the registry says invalid_token.
		w.realm.set(func() { w.realm.valid = map[string]bool{} })
		if code := ask(); code != http.StatusOK || w.realm.issued != 2 {
			t.Errorf("after revocation: %d with %d tokens", code, w.realm.issued)
		}
		if got := w.reg.count(); got != 4 {
			t.Errorf("%d registry requests, want 4: the refused token is not tried twice", got)
		}
		// Ended: the token is not even sent.
		pass(300 * time.Second)
		ask()
		reqs := w.reg.all()
		if got := reqs[len(reqs)-2].Header.Get("Authorization"); got != "" || w.realm.issued != 3 {
			t.Errorf("after expiry %q was sent, %d tokens", got, w.realm.issued)
		}
		// Many at once: one token for all.
		w.realm.set(func() {
			w.realm.valid = map[string]bool{}
			w.realm.fault = func(http.ResponseWriter) bool { pass(time.Second); return false }
		})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if code := ask(); code != http.StatusOK {
					t.Errorf("one of many: %d", code)
				}
			})
		}
		wg.Wait()
		if w.realm.issued != 4 {
			t.Errorf("%d tokens, want one for all", w.realm.issued-3)
		}
	})
}

// The one who began a token request may leave; the others get the token.
func TestSolveFirstOneLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, bearerChallenge)
		w.realm.fault = func(http.ResponseWriter) bool { pass(5 * time.Second); return false }
		c := w.client(t, dockerAuth(testRegistry, "bob:secret"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Head(ctx, tagRef("v1"), nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the first one: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			resp, err := c.Head(t.Context(), tagRef("v1"), nil)
			if code := status(t, resp, err); code != http.StatusOK {
				t.Errorf("the second one: %d", code)
			}
		})
		wg.Wait()
		if w.realm.issued != 1 {
			t.Errorf("%d tokens", w.realm.issued)
		}
	})
}

func TestRealmInTrouble(t *testing.T) {
	for name, c := range map[string]struct {
		challenge string
		fault     func(http.ResponseWriter) bool
		says      string
	}{
		"500":          {bearerChallenge, func(w http.ResponseWriter) bool { w.WriteHeader(500); return true }, "answered 500"},
		"429":          {bearerChallenge, func(w http.ResponseWriter) bool { w.WriteHeader(429); return true }, "answered 429"},
		"no token":     {bearerChallenge, func(w http.ResponseWriter) bool { _, _ = io.WriteString(w, `{}`); return true }, "holds no token"},
		"not JSON":     {bearerChallenge, func(w http.ResponseWriter) bool { _, _ = io.WriteString(w, `<html>CANARY`); return true }, "holds no token"},
		"out of reach": {`Bearer realm="http://gone.example.com/token?x=CANARY",service="reg"`, nil, "connection refused"},
		"redirect loop": {bearerChallenge, func(w http.ResponseWriter) bool {
			w.Header().Set("Location", "/token?again")
			w.WriteHeader(302)
			return true
		}, "redirect"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, c.challenge)
				w.realm.fault = c.fault
				cl := w.client(t, dockerAuth(testRegistry, "bob:secret"))
				_, err := cl.Head(t.Context(), tagRef("v1"), nil)
				if !errors.Is(err, ErrTokenRealm) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), testRegistry) {
					t.Errorf("got %v", err)
				}
				if err != nil && (strings.Contains(err.Error(), "CANARY") || strings.Contains(err.Error(), ":0/")) {
					t.Errorf("error says too much: %v", err)
				}
			})
		})
	}
}

// A realm may redirect, but the credential stays with its own host, and never
// goes on in a POST.
func TestRealmRedirect(t *testing.T) {
	for name, config := range map[string]string{
		"basic":          dockerAuth(testRegistry, "bob:secret"),
		"identity token": `{"auths":{"` + testRegistry + `":{"identitytoken":"identity"}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, bearerChallenge)
				elsewhere, h := recorded(func(w http.ResponseWriter, r *http.Request, _ int) { w.WriteHeader(http.StatusUnauthorized) })
				w.net.serve(t, authHost+":8080", h)
				w.realm.fault = func(rw http.ResponseWriter) bool {
					rw.Header().Set("Location", "http://"+authHost+":8080/token")
					rw.WriteHeader(http.StatusTemporaryRedirect)
					return true
				}
				resp, err := w.client(t, config).Head(t.Context(), tagRef("v1"), nil)
				if name == "basic" {
					if code := status(t, resp, err); code != http.StatusUnauthorized {
						t.Errorf("status %d", code)
					}
				} else if !errors.Is(err, ErrRedirect) || !errors.Is(err, ErrTokenRealm) || elsewhere.count() > 0 {
					t.Errorf("got %v, and %d requests elsewhere", err, elsewhere.count())
				}
				for _, r := range elsewhere.all() {
					if r.Header.Get("Authorization") != "" || r.Method != http.MethodGet {
						t.Errorf("%s with %q went to another port", r.Method, r.Header.Get("Authorization"))
					}
				}
			})
		})
	}
}

// A registry by TLS that names a realm by plain HTTP gets no credential there.
func TestRealmDowngrade(t *testing.T) {
	var told int
	auth := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { told++ }))
	defer auth.Close()
	reg := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", `Bearer realm="`+auth.URL+`/token"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer reg.Close()
	c, err := New(Config{
		Proxy: "none", Allow: []string{"127.0.0.1"}, DockerConfig: mustWrite(t, "c.json", dockerAuth(testRegistry, "bob:secret")),
		Hosts: []Host{{Name: testRegistry, Endpoint: reg.URL, CAFile: mustWrite(t, "ca.pem", certPEM(reg))}},
	}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	resp, err := c.Head(t.Context(), tagRef("v1"), nil)
	if code := status(t, resp, err); code != http.StatusUnauthorized || told != 0 {
		t.Errorf("status %d, %d token requests", code, told)
	}
}
