package origin

import (
	"context"
	"crypto/tls"
	"maps"
	"net/http"
	"strings"
	"sync"
)

// Counts is what an origin has been asked for and has sent. Only what reached
// the front is in it: pushes by Origin.Push are not.
type Counts struct {
	// Requests is every request but the registry's own to its bucket; Status counts
	// the answers by status code.
	Requests int
	Status   map[int]int
	// Spoken counts these answers by protocols, such as "HTTP/2.0, TLS 1.3".
	Spoken map[string]int
	// ManifestGets and ManifestHeads count the answers 200 by the manifest's
	// digest, however the manifest was asked for.
	ManifestGets  map[string]int
	ManifestHeads map[string]int
	// BlobGets counts GETs of a blob answered 200 or 206 by digest, redirects
	// excluded; BlobBytes is the bytes of those bodies that were sent.
	BlobGets  map[string]int
	BlobBytes map[string]int64
}

func newCounts() Counts {
	return Counts{
		Status:        map[int]int{},
		Spoken:        map[string]int{},
		ManifestGets:  map[string]int{},
		ManifestHeads: map[string]int{},
		BlobGets:      map[string]int{},
		BlobBytes:     map[string]int64{},
	}
}

// Bytes is the bytes sent of the blobs with the given digests.
func (c Counts) Bytes(digests ...string) int64 {
	var n int64
	for _, d := range digests {
		n += c.BlobBytes[d]
	}
	return n
}

// Counter counts what the fronts of one origin do. It is safe for concurrent
// use.
type Counter struct {
	mu      sync.Mutex
	counts  Counts
	changed chan struct{} // closed and replaced when a byte has been counted
}

// NewCounter returns a counter that has counted nothing.
func NewCounter() *Counter {
	return &Counter{counts: newCounts(), changed: make(chan struct{})}
}

// Counts returns a copy of what has been counted.
func (c *Counter) Counts() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.counts
	out.Status = maps.Clone(out.Status)
	out.Spoken = maps.Clone(out.Spoken)
	out.ManifestGets = maps.Clone(out.ManifestGets)
	out.ManifestHeads = maps.Clone(out.ManifestHeads)
	out.BlobGets = maps.Clone(out.BlobGets)
	out.BlobBytes = maps.Clone(out.BlobBytes)
	return out
}

// Reset starts counting from nothing.
func (c *Counter) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts = newCounts()
}

// WaitBytes waits until n bytes of a blob have been sent. It errs when ctx ends.
func (c *Counter) WaitBytes(ctx context.Context, digest string, n int64) error {
	for {
		c.mu.Lock()
		sent, changed := c.counts.BlobBytes[digest], c.changed
		c.mu.Unlock()
		if sent >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// answered counts one answer of the registry.
func (c *Counter) answered(r *http.Request, header http.Header, status int) {
	kind, reference := classify(r)
	if kind == own {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.Requests++
	c.counts.Status[status]++
	c.counts.Spoken[spoken(r)]++
	switch {
	case kind == manifest && status == http.StatusOK:
		if d := header.Get("Docker-Content-Digest"); d != "" {
			reference = d
		}
		if r.Method == http.MethodGet {
			c.counts.ManifestGets[reference]++
		} else if r.Method == http.MethodHead {
			c.counts.ManifestHeads[reference]++
		}
	case kind == blob && r.Method == http.MethodGet && (status == http.StatusOK || status == http.StatusPartialContent):
		c.counts.BlobGets[reference]++
	}
}

// sent counts n bytes of a body.
func (c *Counter) sent(r *http.Request, status, n int) {
	kind, reference := classify(r)
	if n == 0 || kind != blob || r.Method != http.MethodGet || status >= 300 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.BlobBytes[reference] += int64(n)
	close(c.changed)
	c.changed = make(chan struct{})
}

// spokenHeader is where a proxy before a front says what its clients speak.
const spokenHeader = "X-Spoken"

// spoken tells the protocols that a request came by.
func spoken(r *http.Request) string {
	if by := r.Header.Get(spokenHeader); by != "" {
		return by
	}
	if r.TLS == nil {
		return r.Proto
	}
	return r.Proto + ", " + tls.VersionName(r.TLS.Version)
}

type class int

const (
	other class = iota
	manifest
	blob
	own // of the registry to its bucket
)

// classify tells what a request is about and which reference it names. It knows
// the paths of the registry API and those of the registry's files in a bucket.
func classify(r *http.Request) (class, string) {
	path := r.URL.Path
	if strings.HasPrefix(path, "/v2/") {
		if _, reference, ok := strings.Cut(path, "/manifests/"); ok {
			return manifest, reference
		}
		if _, reference, ok := strings.Cut(path, "/blobs/"); ok && strings.Contains(reference, ":") {
			return blob, reference
		}
		return other, ""
	}
	// A client has a presigned URL; the registry signs its own requests in a
	// header. The path is .../docker/registry/v2/blobs/<algorithm>/<2 hex>/<hex>/data.
	if strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-") {
		return own, ""
	}
	if _, rest, ok := strings.Cut(path, "/docker/registry/v2/blobs/"); ok {
		if part := strings.Split(rest, "/"); len(part) == 4 && part[3] == "data" {
			return blob, part[0] + ":" + part[2]
		}
	}
	return other, ""
}
