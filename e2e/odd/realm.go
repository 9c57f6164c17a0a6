package odd

import (
	"crypto/rand"
	"net/http"
	"strings"
)

// The one user that private registries know.
const (
	User     = "reader"
	Password = "secret"
)

// mayEnter checks the credential of a request about a repository ("" for none), and
// answers with the challenge where it does not do.
func (r *Registry) mayEnter(w http.ResponseWriter, req *http.Request, b *Behaviour, repository string) bool {
	a := b.Auth
	if a.Scheme == "" {
		return true
	}
	user, password, basic := req.BasicAuth()
	sent := req.Header.Get("Authorization")
	token, bearer := strings.CutPrefix(sent, "Bearer ")
	switch {
	case a.Scheme == "basic" && basic && user == User && password == Password:
		return true
	case a.Scheme == "bearer" && bearer:
		r.mu.Lock()
		scope, known := r.tokens[token]
		r.mu.Unlock()
		if known && (repository == "" || scope == "" || scope == repository) {
			return true
		}
	}
	if sent != "" && a.Forbidden {
		refuse(w, http.StatusForbidden, "")
		return false
	}
	w.Header().Set("WWW-Authenticate", r.challenge(a, repository))
	refuse(w, http.StatusUnauthorized, "")
	return false
}

func (r *Registry) challenge(a Auth, repository string) string {
	if a.Scheme == "basic" {
		return `Basic realm="odd"`
	}
	host := r.Host
	if a.RealmElsewhere {
		host = r.other
	}
	out := `Bearer realm="https://` + host + "/token" + a.Query + `",service="odd"`
	switch {
	case repository == "" || a.Scope == "-":
	case a.Scope == "":
		out += `,scope="repository:` + repository + `:pull"`
	default:
		out += `,scope="` + strings.ReplaceAll(a.Scope, "%s", repository) + `"`
	}
	return out
}

// serveToken is the token realm, by GET only.
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet {
		refuse(w, http.StatusMethodNotAllowed, "")
		return
	}
	query := req.URL.Query()
	var repository string
	for _, scope := range query["scope"] {
		for one := range strings.FieldsSeq(scope) {
			if part := strings.Split(one, ":"); len(part) == 3 && part[0] == "repository" {
				repository = part[1]
			}
		}
	}
	first, _ := cutFirst(repository)
	b := r.behaviours[first]
	if b == nil {
		b = r.only
	}
	if b == nil {
		refuse(w, http.StatusBadRequest, "")
		return
	}
	if wait(req.Context(), b.Auth.Wait) != nil {
		return
	}
	user, password, sent := req.BasicAuth()
	asked := strings.TrimPrefix(b.Auth.Query, "?")
	if sent && (user != User || password != Password) || !sent && !b.Auth.Public || !strings.Contains(req.URL.RawQuery, asked) {
		refuse(w, http.StatusUnauthorized, "")
		return
	}
	token := rand.Text()
	r.mu.Lock()
	r.tokens[token] = repository
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(`{"token":"` + token + `","expires_in":300}`))
}
