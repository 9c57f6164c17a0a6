package origin

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/limit"
)

// Client speaks to origins. It is safe for concurrent use.
type Client struct {
	cfg       Config
	log       *zap.Logger
	wire      *wire
	dial      dialFunc // outside
	proxy     proxyFunc
	keys      *keyring
	endpoints map[string]*url.URL // by registry name, of listed hosts
	origins   map[string]bool     // of listed hosts

	locations *expiring[secretRef, place]    // where a GET was redirected to
	missing   *expiring[secretRef, *refusal] // digests that were not there

	mu    sync.Mutex
	hosts map[string]*host
}

// secretRef is a Ref as one credential sees it.
type secretRef struct {
	ref  Ref
	cred [sha256.Size]byte
}

// place is where a redirect led, and by whom: see call.
type place struct {
	url    *url.URL
	inside bool
}

const (
	maxLocations = 4096
	maxMissing   = 1024
	// missingLife is how long an origin is not asked again for a digest that it
	// did not have.
	missingLife = 5 * time.Second
)

// New makes a client. It reads the CA files and
// client certificates of cfg, sends nothing and starts
// nothing. reg may be nil.
func New(cfg Config, log *zap.Logger, reg prometheus.Registerer) (*Client, error) {
	return newClient(cfg, log, reg, nil)
}

// newClient is New with another dialer in place of the guarded one.
func newClient(cfg Config, log *zap.Logger, reg prometheus.Registerer, dial dialFunc) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("origin: %w", err)
	}
	cfg = cfg.withDefaults()
	c := &Client{
		cfg: cfg, log: log, keys: newKeyring(cfg.DockerConfig),
		endpoints: map[string]*url.URL{}, origins: map[string]bool{}, hosts: map[string]*host{},
		locations: newExpiring[secretRef, place](maxLocations), missing: newExpiring[secretRef, *refusal](maxMissing),
	}
	g, err := c.listHosts()
	if err != nil {
		return nil, fmt.Errorf("origin: %w", err)
	}
	dials := dialPair{outside: dial, inside: dial}
	if dial == nil {
		dials = dialPair{outside: g.dial, inside: g.dialInside}
	}
	c.dial = dials.outside
	if c.proxy, err = newProxy(cfg, g); err != nil {
		return nil, fmt.Errorf("origin: %w", err)
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("origin: metrics: %w", err)
	}
	if c.wire, err = newWire(cfg, dials, c.proxy, g.leads, m, log); err != nil {
		return nil, fmt.Errorf("origin: %w", err)
	}
	return c, nil
}

// listHosts takes note of the listed hosts and returns the guard that trusts
// them.
func (c *Client) listHosts() (*guard, error) {
	var allow []netip.Prefix
	for _, s := range c.cfg.Allow {
		p, err := parsePrefix(s)
		if err != nil {
			return nil, err
		}
		allow = append(allow, p)
	}
	g := newGuard(allow, c.cfg.DialTimeout)
	g.private = c.cfg.Private
	for _, h := range c.cfg.Hosts {
		name, u, err := h.parse()
		if err != nil {
			return nil, err
		}
		c.endpoints[name], c.origins[originOf(u)] = u, true
		g.trust(u)
		if err := g.name(name); err != nil {
			return nil, err
		}
	}
	for _, name := range c.cfg.Named {
		if err := g.name(name); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// Limit has the bytes that Read reads wait for all of limits, as the class that its
// context says. Manifests, tokens and what is forwarded do not wait. It must be called
// before anything is read.
func (c *Client) Limit(limits ...*limit.Bucket) { c.wire.limits = limits }

// Close drops idle connections. Requests under way go on, and the client can
// still be used.
func (c *Client) Close() { c.wire.closeIdle() }

// Head asks for the headers of ref on behalf of a client and returns the answer
// of the registry whatever its status: a 401 comes with the registry's own
// challenge. header is the client's: its Authorization goes to the configured
// endpoint alone; what does not concern the content is not sent. Where it has no
// Authorization and Config.DockerConfig has a credential of the registry, a 401
// is answered with that. Redirects are followed. A failure of the origin that may
// pass (5xx, a reset connection) is tried again, for about a second in all.
//
// While the host has asked who sends this (429 with Retry-After) to wait, the
// question does, where that is ten seconds at most: a client that is told of a refusal
// asks again at once, or gives up. In a longer pause one question at a time is sent all
// the same, and others of the same credential and kind wait for its answer: if that is
// a refusal they get a copy. None is answered from memory.
//
// Errors: ErrForbiddenAddress, ErrUnlistedHost, ErrRedirect, ErrStalled,
// ErrTokenRealm, what is wrong with ref, or the network's. The caller closes the
// body.
func (c *Client) Head(ctx context.Context, ref Ref, header http.Header) (*http.Response, error) {
	ans, err := c.ask(ctx, http.MethodHead, ref, header, askClient)
	return ans.Response, err
}

// Get is Head for the content: manifests, tag lists, referrers, and blobs or
// files that are only passed through. The body fails with ErrStalled when the
// origin is silent for Config.StallTimeout.
func (c *Client) Get(ctx context.Context, ref Ref, header http.Header) (*http.Response, error) {
	ans, err := c.ask(ctx, http.MethodGet, ref, header, askClient)
	return ans.Response, err
}

// Pass sends a client's request for ref, GET or HEAD, once and as it stands, Range,
// conditions and encodings included, and returns whatever the origin answers. Redirects
// are followed; one that cannot be is the answer. Nothing is tried again, held back by a
// pause or answered from memory: the client gets what it would have got without us. The
// origin may be silent for Config.AnswerTimeout, before its answer and within. Errors are
// those of Head. The caller closes the body.
func (c *Client) Pass(ctx context.Context, method string, ref Ref, header http.Header) (*http.Response, error) {
	return c.pass(ctx, method, ref, header, askClient)
}

func (c *Client) pass(ctx context.Context, method string, ref Ref, header http.Header, who asker) (*http.Response, error) {
	h, err := c.host(ref)
	if err != nil {
		return nil, fmt.Errorf("origin: %w", err)
	}
	question, err := h.call(method, ref, passHeader(header, c.cfg.UserAgent), who, lanePass)
	if err != nil {
		return nil, fmt.Errorf("origin: %w", err)
	}
	question.relay = true
	ans, err := c.wire.follow(ctx, question)
	if errors.Is(err, ErrTokenRealm) && ctx.Err() == nil {
		question.solve = nil // the challenge is the client's then
		ans, err = c.wire.follow(ctx, question)
	}
	if err != nil {
		return nil, about(ref, err)
	}
	ans.Request = bareRequest(question.method, question.url)
	return ans.Response, nil
}

// Solver is a Client for who cannot answer a challenge: its Head and Get fetch
// the token that anybody may have where this node has no credential.
type Solver struct{ c *Client }

// Solver returns c as a Solver.
func (c *Client) Solver() Solver { return Solver{c} }

// Head is Client.Head.
func (s Solver) Head(ctx context.Context, ref Ref, header http.Header) (*http.Response, error) {
	ans, err := s.c.ask(ctx, http.MethodHead, ref, header, askNode)
	return ans.Response, err
}

// Get is Client.Get.
func (s Solver) Get(ctx context.Context, ref Ref, header http.Header) (*http.Response, error) {
	ans, err := s.c.ask(ctx, http.MethodGet, ref, header, askNode)
	return ans.Response, err
}

// Pass is Client.Pass.
func (s Solver) Pass(ctx context.Context, method string, ref Ref, header http.Header) (*http.Response, error) {
	return s.c.pass(ctx, method, ref, header, askNode)
}

// Forward is Client.Forward; it solves nothing.
func (s Solver) Forward(w http.ResponseWriter, r *http.Request, registry string) error {
	return s.c.Forward(w, r, registry)
}

// Public tells whether the origin serves ref to anybody: without a credential,
// or with the token that its realm gives to anybody. An error says that it could
// not be found out, and is a *StatusError where the origin answered something
// other than yes (2xx) or no (401, 403, 404).
func (c *Client) Public(ctx context.Context, ref Ref) (bool, error) {
	ans, err := c.ask(ctx, http.MethodHead, ref, nil, askAnybody)
	if err != nil {
		return false, err
	}
	switch code := ans.StatusCode; {
	case code >= 200 && code < 300:
		discard(ans.Body)
		return true, nil
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusNotFound:
		discard(ans.Body)
		return false, nil
	}
	return false, readRefusal(ans.Response).err(ref, time.Now())
}

const (
	maxTries      = 4
	askBackoff    = 100 * time.Millisecond
	maxAskWait    = 10 * time.Second
	readBackoff   = 200 * time.Millisecond
	maxBackoff    = 5 * time.Second
	goodProgress  = 64 << 10
	probeManifest = 4 << 20
)

// ask is one question with its retries.
func (c *Client) ask(ctx context.Context, method string, ref Ref, header http.Header, who asker) (answer, error) {
	h, err := c.host(ref)
	if err != nil {
		return answer{}, fmt.Errorf("origin: %w", err)
	}
	question, err := h.call(method, ref, passHeader(header, c.cfg.UserAgent), who, laneAsk)
	if err != nil {
		return answer{}, fmt.Errorf("origin: %w", err)
	}
	patience := time.Now().Add(maxAskWait)
	again := false
	for try := 1; ; try++ {
		ans, err := c.askOnce(ctx, h, question, patience, again)
		last := try == maxTries
		wait := backoff(askBackoff, try)
		switch {
		case err == nil && ans.StatusCode == http.StatusTooManyRequests:
			if wait, again = c.refusedWait(h, question, ans, patience); last || !again {
				return ans, nil
			}
			discard(ans.Body)
		case err != nil && (last || ctx.Err() != nil || permanent(err) || isSilent(err) || !h.gate.mayRetry(time.Now())):
			return answer{}, about(ref, err)
		case err == nil && (!passing(ans.StatusCode) || ans.Header.Get("Retry-After") != "" || last || !h.gate.mayRetry(time.Now())):
			return ans, nil
		case err == nil:
			discard(ans.Body)
		}
		if err := sleep(ctx, wait); err != nil {
			return answer{}, about(ref, err)
		}
	}
}

// refusedWait tells whether a question that got a 429 is put again, and after which
// wait beside that of the host's pause.
func (c *Client) refusedWait(h *host, question call, ans answer, patience time.Time) (time.Duration, bool) {
	now := time.Now()
	if !ans.away {
		left, _, _ := h.gate.pause(question.pause, now)
		return 0, left > 0 && !now.Add(left).After(patience) // askOnce waits
	}
	d, ok := retryAfter(ans.Header, now)
	if !ok {
		d = firstPause
	}
	return d, !now.Add(d).After(patience)
}

// askOnce asks within the host's limits. The place is given back when the body
// of the answer is closed.
func (c *Client) askOnce(ctx context.Context, h *host, question call, patience time.Time, again bool) (answer, error) {
	if err := h.gate.waitAsk(ctx, question.pause, patience, again); err != nil {
		return answer{}, err
	}
	// What answered may be a presigned URL, and the request holds Authorization:
	// neither is the caller's business.
	shown := bareRequest(question.method, question.url)
	done, fresh, err := h.gate.admit(ctx, question.pause)
	if err != nil {
		return answer{}, err
	}
	if fresh != nil {
		return answer{Response: fresh.response(shown)}, nil
	}
	var refused *refusal
	defer func() { done(refused) }()
	leave, err := h.gate.enter(ctx, false)
	if err != nil {
		return answer{}, err
	}
	sent := time.Now()
	ans, err := c.wire.follow(ctx, question)
	if err != nil {
		leave()
		return answer{}, err
	}
	ans.Request = shown
	if ans.StatusCode == http.StatusTooManyRequests {
		r := readRefusal(ans.Response)
		leave()
		ans.Response = r.response(ans.Request)
		if !ans.away {
			refused = r
		}
		h.gate.saw(question.pause, sent, time.Now(), refused)
		return ans, nil
	}
	h.gate.saw(question.pause, sent, time.Now(), nil)
	if question.method == http.MethodHead {
		// Not everybody closes a body that cannot be there.
		discard(ans.Body)
		leave()
		ans.Body = http.NoBody
		return ans, nil
	}
	ans.Body = &leavingBody{ReadCloser: ans.Body, leave: leave}
	return ans, nil
}

// leavingBody gives its place at the gate back when it is closed.
type leavingBody struct {
	io.ReadCloser
	leave func()
}

func (b *leavingBody) Close() error {
	defer b.leave()
	return b.ReadCloser.Close()
}

// bareRequest is a request for show: without header, and query.
func bareRequest(method string, u *url.URL) *http.Request {
	return &http.Request{
		Method: method, URL: &url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}, Host: u.Host, Header: http.Header{},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
}

// secret is ref as it is seen by whoever sends header, which passHeader made.
func secret(ref Ref, header http.Header) secretRef {
	sum := sha256.New()
	for _, k := range slices.Sorted(maps.Keys(header)) {
		if passes(k) {
			continue
		}
		for _, v := range header[k] {
			fmt.Fprintf(sum, "%d:%s=%d:%s", len(k), k, len(v), v)
		}
	}
	return secretRef{ref: ref, cred: [sha256.Size]byte(sum.Sum(nil))}
}
