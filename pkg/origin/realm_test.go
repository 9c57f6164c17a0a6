package origin

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// tokenRealm is a token server and the check of its tokens.
type tokenRealm struct {
	rec *record

	mu        sync.Mutex
	issued    int
	valid     map[string]bool
	public    bool                           // anybody gets a token that opens
	field     string                         // "token" or "access_token"
	expiresIn int                            // 0: left out
	fault     func(http.ResponseWriter) bool // true: it has answered
	problems  []string
}

func newTokenRealm() *tokenRealm {
	return &tokenRealm{rec: &record{}, valid: map[string]bool{}, field: "token", expiresIn: 300}
}

func (a *tokenRealm) complain(format string, args ...any) {
	a.problems = append(a.problems, fmt.Sprintf(format, args...))
}

func (a *tokenRealm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	a.rec.add(r)
	a.mu.Lock()
	fault := a.fault
	a.mu.Unlock()
	if fault != nil && fault(w) { // it may sleep, which synctest sees only without the lock
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.URL.Path != "/token" || r.Form.Get("service") != "reg" || r.Form.Get("scope") != testScope || len(r.Form["scope"]) != 1 {
		a.complain("%s %s with %v", r.Method, r.URL, r.Form)
	}
	ok := a.public
	if user, pass, sent := r.BasicAuth(); sent {
		ok = user == "bob" && pass == "secret"
		if r.Method != http.MethodGet {
			a.complain("Basic by %s", r.Method)
		}
	} else if r.Method == http.MethodPost {
		ok = r.PostForm.Get("grant_type") == "refresh_token" && r.PostForm.Get("refresh_token") == "identity" && r.PostForm.Get("client_id") != ""
	}
	if !ok {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"no such user"}]}`)
		return
	}
	a.issued++
	tok := fmt.Sprintf("token-%d", a.issued)
	a.valid[tok] = true
	answer := map[string]any{a.field: tok}
	if a.expiresIn > 0 {
		answer["expires_in"] = a.expiresIn
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (a *tokenRealm) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// protect lets requests with a valid token through to h and challenges others.
func (a *tokenRealm) protect(rec *record, challenge string, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		rec.add(r)
		a.mu.Lock()
		ok := a.valid[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
		a.mu.Unlock()
		if ok {
			h(w, r)
			return
		}
		for _, c := range strings.Split(challenge, "\n") {
			w.Header().Add("WWW-Authenticate", c)
		}
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
	}
}

const bearerChallenge = `Bearer realm="http://` + authHost + `/token",service="reg",scope="` + testScope + `"`

// world is a registry with a realm.
type world struct {
	net   *memNet
	realm *tokenRealm
	reg   *record
	blob  []byte
	slow  time.Duration // that the registry takes to answer who may
}

func newWorld(t *testing.T, challenge string) *world {
	w := &world{net: newMemNet(), realm: newTokenRealm(), reg: &record{}, blob: content(1000)}
	w.net.serve(t, authHost+":80", w.realm)
	w.net.serve(t, testRegistry+":80", w.realm.protect(w.reg, challenge, func(rw http.ResponseWriter, r *http.Request) {
		pass(w.slow)
		serveBytes(rw, r, w.blob)
	}))
	t.Cleanup(func() {
		if len(w.realm.problems) > 0 {
			t.Errorf("at the realm: %q", w.realm.problems)
		}
	})
	return w
}

func (w *world) client(t *testing.T, dockerConfig string) *Client {
	return testClient(t, w.net, func(c *Config) {
		if dockerConfig != "" {
			c.DockerConfig = mustWrite(t, "config.json", dockerConfig)
		}
	})
}

func basicAuth(userPass string) string { return base64.StdEncoding.EncodeToString([]byte(userPass)) }

func dockerAuth(registry, userPass string) string {
	return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, registry, basicAuth(userPass))
}

func status(t *testing.T, resp *http.Response, err error) int {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}
