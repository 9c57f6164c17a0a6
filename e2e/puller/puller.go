// Package puller pulls images as a container runtime does, over HTTP through a
// mirror or straight from a registry, and checks every byte against its digest.
// It keeps nothing of what it pulls.
package puller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Puller says how to reach a registry. It is safe for concurrent use.
type Puller struct {
	// Base is scheme://host:port of the mirror or registry.
	Base string
	// Registry is the registry's name, sent to a mirror as ns=; "" sends none.
	Registry string
	// Authorization is sent with every request unless it is empty. Pull and Blob ask
	// Authorize for it instead, unless that is nil.
	Authorization string
	Authorize     func(repository string) (string, error)
	// Client is http.DefaultClient when nil.
	Client *http.Client
}

// Result is what a pull brought.
type Result struct {
	Index, Manifest, Config string // digests
	// LayerBytes is the bytes of all layers.
	LayerBytes int64
	Elapsed    time.Duration
}

// StatusError is an answer other than 200.
type StatusError struct {
	Method, Path string
	Code         int
	Header       http.Header
	Body         string
}

// Error names the request and the answer.
func (e *StatusError) Error() string {
	return fmt.Sprintf("%s %s: %d %s: %s", e.Method, e.Path, e.Code, http.StatusText(e.Code), e.Body)
}

type descriptor struct {
	Digest   string
	Size     int64
	Platform struct{ Architecture string }
}

// Pull pulls the image of this machine's architecture: HEAD of the tag, its
// index, its manifest, then config and layers, three at a time.
func (p *Puller) Pull(ctx context.Context, repository, tag string) (Result, error) {
	start := time.Now()
	var out Result
	p, err := p.authorized(repository)
	if err != nil {
		return out, err
	}
	head, err := p.do(ctx, http.MethodHead, "/v2/"+repository+"/manifests/"+tag)
	if err != nil {
		return out, fmt.Errorf("pull %s:%s: %w", repository, tag, err)
	}
	head.Body.Close()
	out.Index = head.Header.Get("Docker-Content-Digest")
	var index struct{ Manifests []descriptor }
	if err := p.document(ctx, repository, out.Index, &index); err != nil {
		return out, fmt.Errorf("pull %s:%s: %w", repository, tag, err)
	}
	for _, m := range index.Manifests {
		if m.Platform.Architecture == runtime.GOARCH {
			out.Manifest = m.Digest
		}
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	if err := p.document(ctx, repository, out.Manifest, &manifest); err != nil {
		return out, fmt.Errorf("pull %s:%s: %w", repository, tag, err)
	}
	out.Config = manifest.Config.Digest
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(3)
	group.Go(func() error { return p.Blob(ctx, repository, manifest.Config.Digest, manifest.Config.Size) })
	for _, l := range manifest.Layers {
		out.LayerBytes += l.Size
		group.Go(func() error { return p.Blob(ctx, repository, l.Digest, l.Size) })
	}
	if err := group.Wait(); err != nil {
		return out, fmt.Errorf("pull %s:%s: %w", repository, tag, err)
	}
	out.Elapsed = time.Since(start)
	return out, nil
}

// Blob pulls one blob and checks it. It errs unless size bytes with that digest
// arrive.
func (p *Puller) Blob(ctx context.Context, repository, digest string, size int64) error {
	p, err := p.authorized(repository)
	if err != nil {
		return err
	}
	resp, err := p.do(ctx, http.MethodGet, "/v2/"+repository+"/blobs/"+digest)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	hash := sha256.New()
	n, err := io.CopyBuffer(hash, resp.Body, make([]byte, 256<<10))
	if err != nil {
		return fmt.Errorf("blob %s: after %d of %d bytes: %w", digest, n, size, err)
	}
	if got := "sha256:" + hex.EncodeToString(hash.Sum(nil)); got != digest || n != size {
		return fmt.Errorf("blob %s: got %d bytes of digest %s, want %d", digest, n, got, size)
	}
	return nil
}

// authorized is the puller with its Authorization for a repository.
func (p *Puller) authorized(repository string) (*Puller, error) {
	if p.Authorize == nil {
		return p, nil
	}
	q := *p
	q.Authorize = nil
	var err error
	q.Authorization, err = p.Authorize(repository)
	return &q, err
}

// Get does one GET of path, which starts with /v2/, and returns the body. An
// answer other than 200 is a *StatusError.
func (p *Puller) Get(ctx context.Context, path string) ([]byte, error) {
	resp, err := p.do(ctx, http.MethodGet, path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func (p *Puller) document(ctx context.Context, repository, digest string, v any) error {
	body, err := p.Get(ctx, "/v2/"+repository+"/manifests/"+digest)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	if got := "sha256:" + hex.EncodeToString(sum[:]); got != digest {
		return fmt.Errorf("manifest %s: got bytes of digest %s", digest, got)
	}
	return json.Unmarshal(body, v)
}

func (p *Puller) do(ctx context.Context, method, path string) (*http.Response, error) {
	target := p.Base + path
	if p.Registry != "" {
		target += "?ns=" + url.QueryEscape(p.Registry)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", strings.Join([]string{
		"application/vnd.docker.distribution.manifest.v2+json",
		"application/vnd.docker.distribution.manifest.list.v2+json",
		"application/vnd.oci.image.manifest.v1+json",
		"application/vnd.oci.image.index.v1+json", "*/*",
	}, ", "))
	if p.Authorization != "" {
		req.Header.Set("Authorization", p.Authorization)
	}
	client := p.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		if err != nil {
			return nil, err
		}
		return nil, &StatusError{Method: method, Path: path, Code: resp.StatusCode, Header: resp.Header, Body: string(body)}
	}
	return resp, nil
}
