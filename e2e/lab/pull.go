package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e/fabric"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// registryName is the registry's name in image references. Nothing resolves it.
const registryName = "registry.test"

// parallel is how many blobs a client asks for at a time, as containerd does.
const parallel = 3

// tag is that of every image.
const tag = "v1"

// image is an image with the repository that it was pushed to.
type image struct {
	*sample.Image
	repository string
}

// client pulls for one node. It runs in the lab's process, its sockets in the node's
// network namespace.
type client struct {
	// node is the member's name.
	node string
	// base is scheme://host:port of a mirror or registry; registry is sent as ns=, ""
	// sends none.
	base, registry string
	http           *http.Client
	// authorize makes the header that lets the client read a repository.
	authorize     func(repository string) (string, error)
	authorization string // once it is made
}

// client returns a client whose connections start at port, and who may read the
// origin. base and registry are as in client.
func (w *world) client(node string, port *fabric.Port, base, registry string) client {
	t := w.origin.Transport()
	t.DialContext, t.MaxIdleConnsPerHost, t.ReadBufferSize = port.Dial, parallel, 64<<10
	return client{
		node: node, base: base, registry: registry, http: &http.Client{Transport: t}, authorize: w.origin.As(origin.Reader),
	}
}

// point is how many bytes of layers a pull had got at a time since the run's start.
type point struct {
	at    time.Duration
	bytes int64
}

// pull is one image pulled by one node. Its plain fields are set once it is over;
// times count from the run's start.
type pull struct {
	node              string
	image             image
	start, first, end time.Duration // first is 0 when no byte of a layer came
	progress          []point       // of the layers, ten times a second and at the end
	err               error
	wrongBytes        int64 // bytes that are not the blob's
	wrongBlobs        int   // blobs that ended as if whole and had such bytes

	began time.Time // the run's start
	got   atomic.Int64
	early atomic.Int64 // first, in nanoseconds
	wrong atomic.Int64
	lies  atomic.Int64 // wrongBlobs
}

// took is how long the pull took.
func (p *pull) took() time.Duration { return p.end - p.start }

// bytes are those of layers that the client has got until now.
func (p *pull) bytes() int64 { return p.got.Load() }

// pull pulls an image as a container runtime does: HEAD of its tag, index, manifest,
// then config and layers. Every byte is compared with what was pushed, which proves
// more than its digest would and costs less. It returns when all is checked or failed,
// and records the pull in the world.
func (w *world) pull(ctx context.Context, c client, img image) *pull {
	p := w.newPull(c.node, img)
	sampled, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); p.record(sampled) }()
	p.err = c.pull(ctx, p)
	p.end = time.Since(p.began)
	stop()
	<-done
	p.first, p.wrongBytes, p.wrongBlobs = time.Duration(p.early.Load()), p.wrong.Load(), int(p.lies.Load())
	p.progress = append(p.progress, point{p.end, p.bytes()})
	c.http.CloseIdleConnections()
	if p.err != nil && ctx.Err() == nil {
		w.say("%s: %v", p.node, p.err)
	}
	return p
}

// record notes progress ten times a second until ctx ends.
func (p *pull) record(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		p.progress = append(p.progress, point{time.Since(p.began), p.bytes()})
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (c client) pull(ctx context.Context, p *pull) error {
	img := p.image
	var err error
	if c.authorization, err = c.authorize(img.repository); err != nil {
		return err
	}
	head, err := c.do(ctx, http.MethodHead, "/v2/"+img.repository+"/manifests/"+tag)
	if err != nil {
		return err
	}
	head.Body.Close()
	if got := head.Header.Get("Docker-Content-Digest"); got != img.Index.Digest {
		return fmt.Errorf("%s:%s is said to be %q, want %s", img.repository, tag, got, img.Index.Digest)
	}
	if err := c.document(ctx, img.repository, img.Index); err != nil {
		return err
	}
	if err := c.document(ctx, img.repository, img.Native.Blob); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	group.Go(func() error { return c.blob(ctx, p, img.Native.Config, false) })
	for _, l := range img.Native.Layers {
		group.Go(func() error { return c.blob(ctx, p, l, true) })
	}
	return group.Wait()
}

// document gets a manifest and compares it.
func (c client) document(ctx context.Context, repository string, want sample.Blob) error {
	resp, err := c.do(ctx, http.MethodGet, "/v2/"+repository+"/manifests/"+want.Digest)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", want.Digest, err)
	}
	if !bytes.Equal(body, want.Data) {
		return fmt.Errorf("manifest %s: got %d other bytes", want.Digest, len(body))
	}
	return nil
}

// blob gets a blob and compares it while it comes. The bytes of layers are counted.
func (c client) blob(ctx context.Context, p *pull, want sample.Blob, layer bool) error {
	resp, err := c.do(ctx, http.MethodGet, "/v2/"+p.image.repository+"/blobs/"+want.Digest)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	check := &checker{want: want.Data}
	buffer := make([]byte, 256<<10)
	for {
		n, err := resp.Body.Read(buffer)
		check.write(buffer[:n])
		if layer && n > 0 {
			p.early.CompareAndSwap(0, int64(time.Since(p.began)))
			p.got.Add(int64(n))
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			p.wrong.Add(check.wrong)
			return fmt.Errorf("blob %s: after %d of %d bytes: %w", want.Digest, check.at, want.Size(), err)
		}
	}
	p.wrong.Add(check.wrong)
	if check.wrong > 0 || check.at != want.Size() {
		p.lies.Add(1)
		return fmt.Errorf("blob %s: got %d of %d bytes, %d of them wrong", want.Digest, check.at, want.Size(), check.wrong)
	}
	return nil
}

// checker compares a stream with the bytes that it should be.
type checker struct {
	want      []byte
	at, wrong int64
}

func (c *checker) write(b []byte) {
	want := c.want[min(c.at, int64(len(c.want))):]
	c.at += int64(len(b))
	if bytes.HasPrefix(want, b) {
		return
	}
	for i := range b {
		if i >= len(want) || b[i] != want[i] {
			c.wrong++
		}
	}
}

// do does one request as containerd does. An answer other than 200 is an error.
func (c client) do(ctx context.Context, method, path string) (*http.Response, error) {
	target := c.base + path
	if c.registry != "" {
		target += "?ns=" + url.QueryEscape(c.registry)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, */*")
	if c.authorization != "" {
		req.Header.Set("Authorization", c.authorization)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(body))
}
