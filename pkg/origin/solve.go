package origin

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// solver sends requests to one registry and answers its challenges, with the
// node's own credential or as anybody. The token flows are those of oras-go;
// the solver stands between it and the network, where it
//   - reads all challenges of an answer and hands on one that can be solved,
//   - keeps the registry's own 401, so that callers see it when none can be,
//   - carries token requests through our guarded connections. The library is
//     shown every realm at the registry's own host, because it refuses realms at
//     private addresses of other hosts, which many companies have.
type solver struct {
	home      *url.URL
	registry  string   // its name
	keys      *keyring // nil: none
	anybody   bool     // without a credential, ask for what anybody may have
	names     []string // of the credential in keys
	wire      *wire
	log       *zap.Logger // names the registry
	userAgent string
	library   *auth.Client
}

// attempt is the state of one request in a solver.
type attempt struct {
	repo    string
	entry   string // of the keyring that counts for repo
	route   route
	tried   string // token that the registry has seen in this attempt
	refused *refusal
	// location holds the Location of the last answer, which the library's
	// http.Client would quote in an error where it is no URL.
	location []string
}

type attemptKey struct{}

func attemptOf(ctx context.Context) *attempt {
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok {
		return a
	}
	return &attempt{}
}

// errUnsolved ends the library's work on a challenge that is the caller's.
var errUnsolved = errors.New("challenge is not for us")

// maxTokenBody bounds a token realm's answer.
const maxTokenBody = 128 << 10

func newSolver(c *Client, registry string, home *url.URL, keys *keyring, anybody bool) *solver {
	s := &solver{
		home: home, registry: registry, keys: keys, anybody: anybody, names: keyNames(registry, home),
		wire: c.wire, log: c.log.With(zap.String("registry", registry)), userAgent: c.cfg.UserAgent,
	}
	s.library = &auth.Client{
		Client: &http.Client{
			Transport:     s,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Credential: func(ctx context.Context, _ string) (auth.Credential, error) { return s.credential(ctx) },
		Cache:      newTokenCache(c.cfg.AnswerTimeout + c.cfg.DialTimeout),
		ClientID:   "damselfly",
		Header:     http.Header{},
	}
	return s
}

// entry names the credential of this node that counts for a repository, where the
// registry has several.
func (s *solver) entry(repo string) string { return s.keys.entry(s.names, repo) }

func (s *solver) credential(ctx context.Context) (auth.Credential, error) {
	if s.keys == nil {
		return auth.EmptyCredential, nil
	}
	return s.keys.find(ctx, s.names, attemptOf(ctx).entry)
}

// do sends req, which has no Authorization, for a repository. It returns the
// registry's own 401 where no credential of ours opens; the error wraps
// ErrTokenRealm where the realm could not be asked.
func (s *solver) do(req *http.Request, repo string, r route) (*http.Response, error) {
	a := &attempt{repo: repo, entry: s.entry(repo), route: r}
	resp, err := s.library.Do(req.WithContext(context.WithValue(req.Context(), attemptKey{}, a)))
	if err == nil {
		if resp.StatusCode == http.StatusUnauthorized && a.refused != nil {
			discard(resp.Body)
			s.mistrust(a.entry, http.StatusUnauthorized)
			return a.refused.response(req), nil
		}
		if a.location != nil {
			resp.Header["Location"] = a.location
		}
		return resp, nil
	}
	if ctxErr := req.Context().Err(); ctxErr != nil {
		return nil, ctxErr
	}
	denied := (*errcode.ErrorResponse)(nil)
	if a.refused != nil && (errors.Is(err, errUnsolved) || errors.As(err, &denied)) {
		if denied != nil {
			s.mistrust(a.entry, denied.StatusCode)
		}
		return a.refused.response(req), nil
	}
	if a.refused != nil {
		return nil, fmt.Errorf("%w: %w", ErrTokenRealm, bare(err))
	}
	return nil, bare(err)
}

// mistrust makes the next request look for another credential of this node.
func (s *solver) mistrust(entry string, status int) {
	if s.keys != nil && s.keys.forget(s.names, entry) {
		s.log.Warn("credential of this node does not open what was asked for; check it in the docker config", zap.Int("status", status))
	}
}

// bare is the cause inside what net/http and the library wrapped around it: they
// quote URLs.
func bare(err error) error {
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return errors.New("its answer holds no token")
}

// RoundTrip implements http.RoundTripper for the library.
func (s *solver) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Port() == "0" {
		return s.askRealm(req)
	}
	a := attemptOf(req.Context())
	resp, err := s.wire.send(req, a.route)
	if err != nil {
		return nil, err
	}
	a.location = resp.Header["Location"]
	resp.Header.Del("Location")
	if resp.StatusCode != http.StatusUnauthorized {
		return resp, nil
	}
	a.refused = readRefusal(resp)
	c, ok := s.choose(req.Context(), resp.Header.Values("Www-Authenticate"))
	if !ok {
		return nil, errUnsolved
	}
	again := a.refused.response(req)
	again.Header = http.Header{"Www-Authenticate": {c}}
	return again, nil
}

// choose picks the challenge to solve and writes it as the library reads it.
func (s *solver) choose(ctx context.Context, fields []string) (string, bool) {
	cred, err := s.credential(ctx)
	if err != nil {
		s.log.Warn("credential of this node cannot be read", zap.Error(err))
		return "", false
	}
	if cred == auth.EmptyCredential && !s.anybody {
		return "", false
	}
	challenges := parseChallenges(fields)
	for _, c := range challenges {
		if c.scheme != schemeBearer {
			continue
		}
		realm, err := parseRealm(c.params["realm"], s.home)
		if err != nil {
			s.log.Warn("challenge of a registry is not usable", zap.Error(err))
			continue
		}
		return fmt.Sprintf(`Bearer realm="%s",service="%s",scope="%s"`,
			s.hideRealm(realm), quotable(c.params["service"]), quotable(c.params["scope"])), true
	}
	for _, c := range challenges {
		if c.scheme == schemeBasic && cred.Username != "" && cred.Password != "" {
			return "Basic", true
		}
	}
	return "", false
}

// quotable drops what the library's reader of quoted strings stumbles over; no
// service or scope has it.
func quotable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == '"' || r == '\\' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}

// hideRealm writes a realm as a URL at the registry's own host, at port 0, which
// no request of ours has; showRealm reads it back.
func (s *solver) hideRealm(realm *url.URL) string {
	u := url.URL{
		Scheme: s.home.Scheme,
		Host:   net.JoinHostPort(s.home.Hostname(), "0"),
		Path:   "/" + base64.RawURLEncoding.EncodeToString([]byte(realm.String())),
	}
	return u.String()
}

// showRealm is the real URL of a token request, with the library's query added
// to the realm's own.
func (s *solver) showRealm(hidden *url.URL) (*url.URL, error) {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(hidden.Path, "/"))
	if err != nil {
		return nil, errors.New("realm of a token request is not one of ours")
	}
	u, err := parseRealm(string(raw), s.home)
	if err != nil {
		return nil, err
	}
	q := u.Query()
	for k, vs := range hidden.Query() {
		q[k] = append(q[k], vs...)
	}
	u.RawQuery = q.Encode()
	return u, nil
}

// askRealm sends a token request. It follows redirects of a GET, where the
// credential stays with the realm's own host. Statuses below 500 are the
// library's to read; others are errors, since asking again may help.
func (s *solver) askRealm(req *http.Request) (*http.Response, error) {
	realm, err := s.showRealm(req.URL)
	if err != nil {
		return nil, err
	}
	u, header, left, inside := realm, req.Header.Clone(), false, s.wire.leads(s.home)
	header.Set("User-Agent", s.userAgent)
	for range maxTokenHops {
		left = left || originOf(u) != originOf(realm)
		if left {
			header.Del("Authorization")
		}
		out := &http.Request{
			Method: req.Method, URL: u, Host: u.Host, Header: header, Body: req.Body, ContentLength: req.ContentLength,
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		}
		resp, err := s.sendRealm(out.WithContext(req.Context()), req.GetBody, left, inside)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", redactURL(u), err)
		}
		next, err := redirectTarget(resp, u)
		if next == nil && err == nil {
			return s.realmAnswer(req, resp, u)
		}
		discard(resp.Body)
		if err != nil {
			return nil, err
		}
		if req.Method != http.MethodGet {
			return nil, fmt.Errorf("%s: %w: what was sent holds a credential", redactURL(u), ErrRedirect)
		}
		if next, err = parseRealm(next.String(), realm); err != nil {
			return nil, fmt.Errorf("%s: %w: %w", redactURL(realm), ErrRedirect, err)
		}
		inside = s.wire.insideNext(u, next, inside)
		u = next
	}
	return nil, fmt.Errorf("%s: %w: too many of them", redactURL(realm), ErrRedirect)
}

const maxTokenHops = 5

// sendRealm sends one token request. A realm at the registry's own name that cannot
// be reached there is looked for at the endpoint, which the operator says the name is
// served at.
func (s *solver) sendRealm(req *http.Request, body func() (io.ReadCloser, error), left, inside bool) (*http.Response, error) {
	r := route{home: originOf(s.home), away: left, inside: inside, lane: laneAsk}
	resp, err := s.wire.send(req, r)
	if err == nil || left || req.Context().Err() != nil {
		return resp, err
	}
	name, bad := ParseRegistry(req.URL.Host)
	if bad != nil || name != s.registry || originOf(req.URL) == originOf(s.home) {
		return nil, err
	}
	there := *req
	there.URL, there.Host = atEndpoint(s.home, req.URL), s.home.Host
	if body != nil {
		if there.Body, bad = body(); bad != nil {
			return nil, err
		}
	}
	if resp, bad = s.wire.send(&there, r); bad != nil {
		return nil, err
	}
	return resp, nil
}

func (s *solver) realmAnswer(req *http.Request, resp *http.Response, u *url.URL) (*http.Response, error) {
	if resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests {
		discard(resp.Body)
		return nil, fmt.Errorf("%s answered %d %s", redactURL(u), resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenBody))
	_ = resp.Body.Close()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", redactURL(u), err)
	}
	if info, ok := req.Context().Value(fetchKey{}).(*fetchInfo); ok {
		info.life = tokenLife(raw)
	}
	resp.Body, resp.Request = io.NopCloser(bytes.NewReader(raw)), req
	return resp, nil
}

// tokenLife is how long the token of a realm's answer may be used: somewhat less
// than the realm says, so that it does not end under way.
func tokenLife(body []byte) time.Duration {
	var t struct {
		ExpiresIn int64 `json:"expires_in"`
	}
	life := defaultTokenLife
	if json.Unmarshal(body, &t) == nil && t.ExpiresIn > 0 {
		life = time.Duration(min(t.ExpiresIn, int64(24*time.Hour/time.Second))) * time.Second
	}
	return life - min(life/10, 10*time.Second)
}
