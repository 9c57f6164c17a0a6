package fetch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// The daemon's own path for content that is known by digest and kept at a URL,
// and the prefix of the headers that it passes on to the origin of that URL.
const (
	blobPath           = "/damselfly/v1/blob"
	originHeaderPrefix = "Damselfly-Origin-"
)

// MirrorConfig says how the local daemon is reached.
type MirrorConfig struct {
	// URL is the daemon's address: scheme://host[:port].
	URL string
	// PlainHTTP lists the registries that are served without TLS; only their
	// token realms may be without TLS too.
	PlainHTTP []string
	// DockerConfig is the path of the docker config.json with the user's
	// credentials; "" = none.
	DockerConfig string
	// Realm carries token requests to the realms that registries name.
	Realm http.RoundTripper
	// Stall is how long the daemon may send nothing. 0 = DefaultStall.
	Stall time.Duration
	// UserAgent is sent where the user's headers have none.
	UserAgent string
}

// Mirror is the Source that asks the local daemon. The daemon passes the
// registry's challenge on; Mirror answers it with the user's own credential.
type Mirror struct {
	cfg  MirrorConfig
	base *url.URL
	wire *http.Transport

	mu      sync.Mutex
	clients map[string]*auth.Client // by registry
}

// NewMirror returns the Source that cfg describes. It sends nothing yet.
func NewMirror(cfg MirrorConfig) (*Mirror, error) {
	base, err := url.Parse(cfg.URL)
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") || base.User != nil {
		return nil, fmt.Errorf("address of the daemon %q: want scheme://host:port, such as http://127.0.0.1:65001", cfg.URL)
	}
	base.Path, base.RawQuery, base.Fragment = strings.TrimRight(base.Path, "/"), "", ""
	if cfg.Stall <= 0 {
		cfg.Stall = DefaultStall
	}
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	return &Mirror{
		cfg: cfg, base: base,
		wire: &http.Transport{
			DialContext:         dialer.DialContext,
			DisableCompression:  true,
			MaxIdleConnsPerHost: 16,
			IdleConnTimeout:     30 * time.Second,
			ReadBufferSize:      64 << 10,
		},
		clients: map[string]*auth.Client{},
	}, nil
}

// Name is "daemon".
func (m *Mirror) Name() string { return "daemon" }

// URL is the daemon's address.
func (m *Mirror) URL() string { return m.base.String() }

// Close closes idle connections.
func (m *Mirror) Close() { m.wire.CloseIdleConnections() }

// Probe errs unless a daemon answers within the timeout.
func (m *Mirror) Probe(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.base.String()+"/v2/", nil)
	if err != nil {
		return err
	}
	resp, err := m.wire.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("no daemon at %s: %w", m.base, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Docker-Distribution-Api-Version") == "" {
		return fmt.Errorf("what answers at %s is no daemon: status %d", m.base, resp.StatusCode)
	}
	return nil
}

// Open implements Source.
func (m *Mirror) Open(ctx context.Context, w Want, off int64, validator string) (*Reply, error) {
	dog := newWatchdog(ctx, m.cfg.Stall)
	resp, err := m.send(dog.ctx, w, requestHeader(w, off, validator))
	if err != nil {
		err = dog.explain(err)
		dog.stop()
		return nil, err
	}
	resp.Body = &guarded{ReadCloser: resp.Body, dog: dog}
	return reply(resp, w)
}

func (m *Mirror) send(ctx context.Context, w Want, header http.Header) (*http.Response, error) {
	if w.Ref.Kind == origin.KindURL {
		return m.sendURL(ctx, w, header)
	}
	for k := range w.Header {
		if k != "Authorization" && k != "Accept" && k != "User-Agent" {
			return nil, fmt.Errorf("%w: the daemon does not pass the header %s on to registries", ErrUnusable, k)
		}
	}
	noun := "blobs"
	if w.Ref.Kind == origin.KindManifest {
		noun = "manifests"
	}
	u := &url.URL{
		Scheme: m.scheme(w.Ref.Registry), Host: w.Ref.Registry,
		Path: "/v2/" + w.Ref.Repository + "/" + noun + "/" + w.Ref.Reference,
	}
	req, err := http.NewRequestWithContext(context.WithValue(ctx, relayedKey{}, u.Path), http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	m.setAgent(req.Header)
	resp, err := m.client(w.Ref.Registry).Do(req)
	return resp, m.unsolved(err, w.Ref)
}

// sendURL asks for a file that has a digest. The origin's headers are marked, so
// that none of them can steer the daemon itself.
func (m *Mirror) sendURL(ctx context.Context, w Want, header http.Header) (*http.Response, error) {
	if w.Digest == "" {
		return nil, fmt.Errorf("%w: the daemon shares only what has a digest", ErrUnusable)
	}
	q := url.Values{"digest": {string(w.Digest)}, "url": {w.Ref.URL}}
	if w.Size >= 0 {
		q.Set("size", strconv.FormatInt(w.Size, 10))
	}
	u := below(m.base, blobPath, q)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for k := range w.Header {
		header.Del(k)
	}
	for k, v := range w.Header {
		header[http.CanonicalHeaderKey(originHeaderPrefix+k)] = v
	}
	req.Header = header
	m.setAgent(req.Header)
	return m.wire.RoundTrip(req)
}

func (m *Mirror) setAgent(h http.Header) {
	if h.Get("User-Agent") == "" {
		h.Set("User-Agent", m.cfg.UserAgent)
	}
}

func (m *Mirror) scheme(registry string) string {
	for _, r := range m.cfg.PlainHTTP {
		if r == registry {
			return "http"
		}
	}
	return "https"
}

// client is the registry's client: tokens of one registry never meet another's.
func (m *Mirror) client(registry string) *auth.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, ok := m.clients[registry]
	if !ok {
		c = &auth.Client{
			Client: &http.Client{
				Transport:     &relay{base: m.base, daemon: m.wire, realm: m.cfg.Realm, registry: registry},
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			},
			Credential: func(ctx context.Context, _ string) (auth.Credential, error) {
				return credential(ctx, m.cfg.DockerConfig, registry)
			},
			Cache:    auth.NewCache(),
			ClientID: "dfget",
			Header:   http.Header{},
		}
		m.clients[registry] = c
	}
	return c
}

// unsolved turns the library's failure to answer a challenge into the answer
// that the registry gave. The library's text may quote URLs with their query.
func (m *Mirror) unsolved(err error, ref origin.Ref) error {
	if err == nil {
		return nil
	}
	var denied *errcode.ErrorResponse
	if errors.Is(err, auth.ErrBasicCredentialNotFound) || errors.As(err, &denied) && denied.StatusCode < 500 {
		return &origin.StatusError{Code: http.StatusUnauthorized, Header: http.Header{}, Ref: ref}
	}
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		return wrapped.Err
	}
	if errors.As(err, &denied) {
		return fmt.Errorf("%w: it answered %d", origin.ErrTokenRealm, denied.StatusCode)
	}
	if errors.Is(err, origin.ErrCredentials) {
		return err
	}
	return fmt.Errorf("%w: %w", origin.ErrTokenRealm, err)
}

// credential finds the user's credential of a registry in a docker config.json,
// plain or by its helpers; the empty one where there is none.
func credential(ctx context.Context, path, registry string) (auth.Credential, error) {
	if path == "" {
		return auth.EmptyCredential, nil
	}
	store, err := credentials.NewStore(path, credentials.StoreOptions{})
	if err != nil {
		return auth.EmptyCredential, fmt.Errorf("%w: %s is not a docker config.json that can be read", origin.ErrCredentials, path)
	}
	names := []string{registry}
	if registry == "docker.io" {
		names = []string{"https://index.docker.io/v1/", registry, "index.docker.io", "registry-1.docker.io"}
	}
	for _, name := range names {
		cred, err := store.Get(ctx, name)
		if err != nil {
			// The library's text may hold what a credential helper printed.
			return auth.EmptyCredential, fmt.Errorf("%w: that of %s in %s cannot be read", origin.ErrCredentials, name, path)
		}
		if cred != auth.EmptyCredential {
			return cred, nil
		}
	}
	return auth.EmptyCredential, nil
}
