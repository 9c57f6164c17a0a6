package origin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// The users that every origin with passwords knows: Reader may pull all that is
// there. Stranger has an account in a token realm but no right; a password file
// does not know it.
const (
	Reader   = "bob"
	Stranger = "eve"
	Password = "secret"
)

const (
	issuer  = "Damselfly test realm"
	service = "registry.test"
)

// BasicAuth is the Authorization header of a user.
func BasicAuth(user string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+Password))
}

// RequirePassword answers 401 to whoever is not Reader by password, and hands all other
// requests to next.
func RequirePassword(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != BasicAuth(Reader) {
			Status(http.StatusUnauthorized, "WWW-Authenticate", `Basic realm="test"`)(w, r, nil)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Realm is a token server: it checks a user and signs what the user may do. It
// is safe for concurrent use.
type Realm struct {
	// URL is the realm as challenges name it.
	URL string

	key      *ecdsa.PrivateKey
	entrance *entrance
}

func newRealm(wire Wire) (*Realm, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("token realm: %w", err)
	}
	r := &Realm{key: key}
	if r.entrance, err = open(wire, r); err != nil {
		return nil, fmt.Errorf("token realm: %w", err)
	}
	r.URL = r.entrance.url() + "/token"
	return r, nil
}

func (r *Realm) close() { r.entrance.close() }

// ServeHTTP answers a request for a token by GET with Basic credentials or by
// POST of a form (OAuth2 password grant), as clients try by turns.
func (r *Realm) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if err := req.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	user, password, given := req.BasicAuth()
	if req.Method == http.MethodPost && req.Form.Get("grant_type") == "password" {
		user, password, given = req.Form.Get("username"), req.Form.Get("password"), true
	}
	if given && user != "" && (password != Password || (user != Reader && user != Stranger)) {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong user or password"}]}`, http.StatusUnauthorized)
		return
	}
	var allowed []string
	if user == Reader {
		for _, scope := range req.Form["scope"] {
			allowed = append(allowed, strings.Fields(scope)...)
		}
	}
	token, err := r.Token(allowed...)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 300})
}

// Token signs a token for scopes such as repository:app/img:pull,push.
func (r *Realm) Token(scopes ...string) (string, error) {
	access := []any{}
	for _, scope := range scopes {
		kind, rest, _ := strings.Cut(scope, ":")
		at := strings.LastIndex(rest, ":")
		if at < 0 {
			continue
		}
		access = append(access, map[string]any{"type": kind, "name": rest[:at], "actions": strings.Split(rest[at+1:], ",")})
	}
	now := time.Now().Unix()
	claims, err := json.Marshal(map[string]any{
		"iss": issuer, "aud": service, "sub": "user", "access": access,
		"iat": now, "nbf": now - 10, "exp": now + 300, "jti": rand.Text(),
	})
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	header := fmt.Sprintf(`{"typ":"JWT","alg":"ES256","kid":%q}`, r.kid())
	signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(signed))
	a, b, err := ecdsa.Sign(rand.Reader, r.key, sum[:])
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	signature := make([]byte, 64)
	a.FillBytes(signature[:32])
	b.FillBytes(signature[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

func (r *Realm) kid() string { return "test-key" }

// keySet is the realm's public key as a JSON web key set.
func (r *Realm) keySet() ([]byte, error) {
	point, err := r.key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("token realm: %w", err)
	}
	return json.Marshal(map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": r.kid(),
		"x": base64.RawURLEncoding.EncodeToString(point[1:33]),
		"y": base64.RawURLEncoding.EncodeToString(point[33:]),
	}}})
}
