// Package proxy is how container runtimes meet Damselfly: the pull side of the
// OCI distribution spec for containerd, Docker, podman, CRI-O and skopeo, and an
// HTTP proxy that serves registries to clients that have no mirrors.
//
// It parses, asks the origin who may read what, opens blobs through Tasks and
// copies them out. It fetches nothing itself that a digest names, verifies
// nothing, and knows of no peers: the store does the one, tasks the other.
// pkg/node builds it and gives its handlers to servers.
//
// DESIGN.md beside this file says which request goes where.
package proxy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// Tasks opens blobs. It is safe for concurrent use.
type Tasks interface {
	// Open returns the blob with the bytes [Offset, Offset+Length) of it being made
	// available, for one response. It may return before any byte is here. ctx lives
	// as long as the Handle: when it ends, Open and reads of the Handle's content
	// end. An error that wraps *origin.StatusError is the origin's own answer and
	// is relayed to the client.
	Open(ctx context.Context, req Request) (Handle, error)
	// Keep returns where to write a blob that goes past, from its first byte on. Close
	// keeps it if it has the digest; a writer that has a Discard method forgets it by that.
	// size is -1 where it is not known. Nil: it is here, or on its way, or there is no room.
	// ref is where it comes from.
	Keep(ref origin.Ref, d blob.Digest, size int64) io.WriteCloser
	// Served reports whether the origin is known to serve the blob at ref: to this node, or
	// to those that the bytes that are here came through. Serves notes that it does.
	Served(ref origin.Ref, d blob.Digest) bool
	Serves(ref origin.Ref, d blob.Digest)
}

// Request says what to open, and how the origin can be asked for it.
type Request struct {
	Digest blob.Digest
	// Size is the blob's size in bytes; 0 when it is not known.
	Size int64
	// Ref is where the origin keeps it.
	Ref origin.Ref
	// Header is the client's Authorization, Accept and the like, for the origin.
	Header http.Header
	// Offset and Length are the bytes that will be read; Length below zero is to
	// the end.
	Offset, Length int64
}

// Handle is one response's hold on a blob. Close may be called while another
// goroutine reads the content, once.
type Handle interface {
	// Sealed returns the whole blob as a file of the caller's own, positioned at
	// its start, if it is held whole and proven.
	Sealed() (*os.File, bool)
	// Content returns the blob's bytes; Read waits for those that are not here.
	// Seek waits for nothing, and knows the size.
	Content() io.ReadSeeker
	// Ready waits until the byte at off is here, or returns the task's error, or
	// ctx's.
	Ready(ctx context.Context, off int64) error
	// Close says that this response is done with. Others are not touched.
	Close() error
}

// Upstream speaks to origins on behalf of a client. It is safe for concurrent
// use.
type Upstream interface {
	// Head and Get ask in a client's name and return whatever the origin answers; an
	// error means that there is no answer.
	Head(ctx context.Context, ref origin.Ref, header http.Header) (*http.Response, error)
	Get(ctx context.Context, ref origin.Ref, header http.Header) (*http.Response, error)
	// Pass sends a client's own request, once and as it stands.
	Pass(ctx context.Context, method string, ref origin.Ref, header http.Header) (*http.Response, error)
	// Forward sends any request to a registry and copies its answer. After an
	// error nothing has been written, or the answer is cut short.
	Forward(w http.ResponseWriter, r *http.Request, registry string) error
}

var _ Upstream = (*origin.Client)(nil)

// Proxy holds what the faces share: permissions, tags, sizes. Its methods are
// safe for concurrent use.
type Proxy struct {
	cfg      Config
	tasks    Tasks
	upstream Upstream
	log      *zap.Logger
	metrics  *metrics
	name     string   // of this proxy in viaHeader
	key      [32]byte // of the credentials' HMAC

	grants   *lru[grantKey, grant]
	public   *lru[place, grant] // what anybody could read, and until when that counts
	infos    *lru[place, info]
	unfit    *lru[place, time.Time] // content that does not have its digest, and until when that is believed
	tags     *lru[tagKey, resolved] // as a GET told
	heads    *lru[tagKey, headed]
	last     *lru[tagKey, resolved] // for when the registry is down
	parsed   *lru[parsedKey, parsed]
	counting *lru[string, struct{}]  // registries that count GETs
	headless *lru[string, time.Time] // registries that HEAD tells little of, and until when that is believed
	passed   *lru[string, struct{}]  // what was told once
	flights  singleflight.Group
	claims   *claims      // for URLs
	detached atomic.Int64 // flights under way
	buffers  sync.Pool

	names   map[string]bool // of this node, see called
	callers *callers
	hosts   hostSet
	ca      *authority // nil: no forward proxy
	inner   *http.Server
	plain   *plainProxy

	base    context.Context // ends when the proxy closes
	cancel  context.CancelFunc
	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // of what outlives a request's handler, and of hijacked connections
}

// maxTags bounds the tags of which is remembered what they were.
const maxTags = 4096

// New checks cfg and makes a proxy. With Config.CADir it creates or reads the CA
// there. It starts nothing; Close ends what requests leave behind. reg may be
// nil.
func New(cfg Config, tasks Tasks, upstream Upstream, log *zap.Logger, reg prometheus.Registerer) (*Proxy, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("registering the proxy's metrics: %w", err)
	}
	p := &Proxy{
		cfg: cfg, tasks: tasks, upstream: upstream, log: log, metrics: m, name: rand.Text(),
		names: namesOf(cfg.Names), callers: newCallers(),
		grants: newLRU[grantKey, grant](cfg.GrantEntries), public: newLRU[place, grant](cfg.GrantEntries),
		infos: newLRU[place, info](cfg.GrantEntries), unfit: newLRU[place, time.Time](maxTags),
		tags: newLRU[tagKey, resolved](maxTags), heads: newLRU[tagKey, headed](maxTags), last: newLRU[tagKey, resolved](maxTags),
		claims: newClaims(), parsed: newLRU[parsedKey, parsed](maxParsed), counting: newLRU[string, struct{}](maxPassed), headless: newLRU[string, time.Time](maxPassed), passed: newLRU[string, struct{}](maxPassed),
	}
	_, _ = rand.Read(p.key[:]) // never fails (crypto/rand)
	if p.cfg.DefaultRegistry, err = origin.ParseRegistry(cfg.DefaultRegistry); err != nil {
		return nil, err
	}
	p.base, p.cancel = context.WithCancel(context.Background())
	if cfg.CADir == "" {
		return p, nil
	}
	if cfg.Dial == nil {
		return nil, errors.New("proxy: CADir is set but Dial is not: the forward proxy needs a dialer that refuses internal addresses")
	}
	if p.hosts, err = parseHosts(cfg.Intercept); err != nil {
		return nil, err
	}
	if p.ca, err = openAuthority(cfg.CADir); err != nil {
		return nil, err
	}
	p.inner = p.newInner()
	p.plain = p.newPlain()
	return p, nil
}

// Registry is the registry face. With a defaultRegistry, requests that do not
// say ns mean that registry, and the ping is its ping: give Docker's
// registry-mirrors a face with docker.io. Without one it is the main face: a
// request says ns, or starts its path with the registry's name, or means
// Config.DefaultRegistry; the ping is answered here; and loopback clients can
// read URLs whose digest they know at /damselfly/v1/blob.
//
// It panics when defaultRegistry is not a registry name, which its caller
// writes.
func (p *Proxy) Registry(defaultRegistry string) http.Handler {
	if defaultRegistry == "" {
		return p.guarded(p.face(face{fallback: p.cfg.DefaultRegistry}))
	}
	name, err := origin.ParseRegistry(defaultRegistry)
	if err != nil {
		panic(err)
	}
	return p.guarded(p.face(face{registry: name}))
}

// Server is an HTTP/1.1 server for a face, with the limits that the faces rely
// on: of time, of headers, and of connections, in ConnContext and ConnState. The caller
// sets its address, serves and shuts it down.
func (p *Proxy) Server(h http.Handler) *http.Server {
	s := p.server(h)
	s.ConnContext = p.callers.enter
	s.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateClosed { // a hijacked one leaves by release
			p.callers.leave(c)
		}
	}
	return s
}

// server is Server for connections that are counted already.
func (p *Proxy) server(h http.Handler) *http.Server {
	errorLog, err := zap.NewStdLogAt(p.log, zap.DebugLevel)
	if err != nil {
		errorLog = zap.NewStdLog(p.log)
	}
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          errorLog,
	}
}

// Close ends tunnels, connections taken over from Docker, and questions to
// origins under way, and waits for them. Shut the servers of the faces down
// first; afterwards requests fail.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	var err error
	if p.inner != nil {
		err = p.inner.Close()
	}
	p.running.Wait()
	if p.plain != nil {
		p.plain.idle()
	}
	return err
}

// enter counts something that runs on its own; it fails once the proxy closes.
func (p *Proxy) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.running.Add(1)
	return true
}

func (p *Proxy) leave() { p.running.Done() }
