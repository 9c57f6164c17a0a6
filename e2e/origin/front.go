// Package origin starts registries for the end-to-end tests: the distribution
// registry, open or behind a password or a token realm, with its blobs in files
// or in a bucket to which it redirects. They speak HTTPS with HTTP/2 under a private
// CA unless told otherwise. In front of each stands a proxy that counts what is asked
// and sent, and that misbehaves on request. Its counters are what the tests judge by.
package origin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Front is a reverse proxy in front of an HTTP server: it counts, and it injects
// faults. It is safe for concurrent use.
type Front struct {
	// URL is where it listens, https://host:port, or http:// without an authority.
	URL string
	*Counter

	next     http.Handler
	upstream *http.Transport // nil: next answers by itself
	entrance *entrance

	mu    sync.Mutex
	rules []*Rule
}

// Rule makes a front misbehave.
type Rule struct {
	// Match says for which requests; nil is all.
	Match func(*http.Request) bool
	// Times is how many requests it changes, 0 for no end.
	Times int
	// Fault is what happens to them.
	Fault Fault
}

// NewFront starts a front of the server at upstream; counter may be shared with
// other fronts. The caller closes it.
func NewFront(upstream string, counter *Counter, wire Wire) (*Front, error) {
	target, err := url.Parse(upstream)
	if err != nil {
		return nil, fmt.Errorf("front of %s: %w", upstream, err)
	}
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	f, err := NewHandlerFront(&httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(target)
			p.Out.Host = p.In.Host // a presigned URL signs it
			if p.In.TLS != nil {
				p.Out.Header.Set("X-Forwarded-Proto", "https")
			} else if proto := p.In.Header["X-Forwarded-Proto"]; proto != nil {
				p.Out.Header["X-Forwarded-Proto"] = proto
			}
		},
		Transport:     transport,
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if !errors.Is(err, context.Canceled) {
				w.WriteHeader(http.StatusBadGateway)
			}
		},
	}, counter, wire)
	if err == nil {
		f.upstream = transport
	}
	return f, err
}

// NewHandlerFront starts a front of a handler in this process.
func NewHandlerFront(next http.Handler, counter *Counter, wire Wire) (*Front, error) {
	f := &Front{Counter: counter, next: next}
	var err error
	if f.entrance, err = open(wire, f); err != nil {
		return nil, fmt.Errorf("front: %w", err)
	}
	f.URL = f.entrance.url()
	return f, nil
}

// Restart has a new server take over the address, as a rolling update of a proxy
// does. Whoever is connected is told to go (GOAWAY in HTTP/2, Connection: close in
// HTTP/1.1), has the given time to finish, and is then cut off.
func (f *Front) Restart(grace time.Duration) error { return f.entrance.restart(grace) }

// Close stops the front and cuts every connection.
func (f *Front) Close() {
	f.entrance.close()
	if f.upstream != nil {
		f.upstream.CloseIdleConnections()
	}
}

// Inject adds a rule. The first rule that matches a request is the only one that
// changes it. The returned function removes the rule.
func (f *Front) Inject(rule Rule) (remove func()) {
	r := &rule
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, r)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.rules = slices.DeleteFunc(f.rules, func(o *Rule) bool { return o == r })
	}
}

// fault takes the rule for a request and uses it up by one.
func (f *Front) fault(r *http.Request) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, rule := range f.rules {
		if rule.Match != nil && !rule.Match(r) {
			continue
		}
		if rule.Times > 0 {
			if rule.Times--; rule.Times == 0 {
				f.rules = slices.Delete(f.rules, i, i+1)
			}
		}
		return rule.Fault
	}
	return nil
}

// ServeHTTP answers a request.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	counted := &countingWriter{ResponseWriter: w, request: r, counter: f.Counter}
	if fault := f.fault(r); fault != nil {
		fault(counted, r, f.next)
	} else {
		f.next.ServeHTTP(counted, r)
	}
	counted.finish()
}

// countingWriter tells the counter what passes.
type countingWriter struct {
	http.ResponseWriter
	request *http.Request
	counter *Counter
	status  int
}

func (w *countingWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
		w.counter.answered(w.request, w.Header(), status)
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write counts first, and what a failed Write may have sent too: a client that has
// everything must not find less counted. In HTTP/2 one that has it resets the stream, and
// the Write that brought its last bytes then fails, and tells none of them.
func (w *countingWriter) Write(b []byte) (int, error) {
	w.finish()
	w.counter.sent(w.request, w.status, len(b))
	return w.ResponseWriter.Write(b)
}

// finish sends the header if nothing has.
func (w *countingWriter) finish() {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
}

// Unwrap lets http.ResponseController reach the connection.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
