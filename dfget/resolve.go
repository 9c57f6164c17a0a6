package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/dfget/fetch"
	"github.com/damselfly-p2p/damselfly/dfget/image"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// maxDepth bounds how deep indexes may lie in each other, and maxManifests how
// many manifests an image may have in all.
const (
	maxDepth     = 4
	maxManifests = 4096
)

// pulled is an image that has been resolved: what must be fetched and written.
type pulled struct {
	root      blob.Digest      // what the reference names
	top       specs.Descriptor // what is written: the root, or the manifest of a platform
	single    *specs.Manifest  // of top, nil when that is an index
	manifests []document       // all that belong to top, top first
	blobs     []specs.Descriptor
}

// document is a manifest or index with the bytes that its digest is of.
type document struct {
	image.Document
	desc specs.Descriptor
	body []byte
}

// resolver reads manifests.
type resolver struct {
	fetcher *fetch.Fetcher
	o       *pullOptions
	tally   *tally
	out     *pulled
}

// tally sums up several fetches. It is safe for concurrent use.
type tally struct {
	mu      sync.Mutex
	sources fetch.Sources
	fetched int64
}

func (t *tally) add(r fetch.Result) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fetched += r.Fetched
	for _, s := range r.Sources {
		t.sources.Add(s)
	}
}

// resolve finds out what the image consists of.
func (r *resolver) resolve(ctx context.Context) (*pulled, error) {
	r.out = &pulled{}
	d, _ := r.o.ref.Digest()
	doc, err := r.read(ctx, r.o.ref, d, specs.Descriptor{Size: -1})
	if err != nil {
		return nil, err
	}
	r.out.root = blob.Digest(doc.desc.Digest)
	if r.o.all {
		if err := r.expand(ctx, doc); err != nil {
			return nil, err
		}
	} else if err := r.descend(ctx, doc); err != nil {
		return nil, err
	}
	r.out.top = r.out.manifests[0].desc
	r.out.single = r.out.manifests[0].Manifest
	return r.out, r.collect()
}

// read fetches and parses one manifest. desc is what an index said of it.
func (r *resolver) read(ctx context.Context, ref origin.Ref, d blob.Digest, desc specs.Descriptor) (document, error) {
	header, err := r.o.header()
	if err != nil {
		return document{}, err
	}
	w := fetch.Want{Ref: ref, Digest: d, Size: desc.Size, Header: acceptManifests(header)}
	if desc.Size > image.MaxManifestSize {
		return document{}, fmt.Errorf("%s: %w: it has %d bytes", ref, fetch.ErrTooLarge, desc.Size)
	}
	body, res, err := r.fetcher.Manifest(ctx, w, image.MaxManifestSize)
	if err != nil {
		return document{}, err
	}
	mediaType := desc.MediaType
	if mediaType == "" {
		mediaType = res.MediaType
	}
	parsed, err := image.Parse(mediaType, body)
	if err != nil {
		return document{}, fmt.Errorf("%s: %w", ref, err)
	}
	r.tally.add(res)
	desc.Digest, desc.Size, desc.MediaType = digest.Digest(res.Digest), res.Size, parsed.MediaType
	return document{Document: parsed, desc: desc, body: body}, nil
}

func (r *resolver) child(d specs.Descriptor) origin.Ref {
	ref := r.o.ref
	ref.Reference = string(d.Digest)
	return ref
}

// descend follows indexes to the manifest of the platform.
func (r *resolver) descend(ctx context.Context, doc document) error {
	for range maxDepth {
		if doc.Manifest != nil {
			r.out.manifests = []document{doc}
			return nil
		}
		d, err := image.Choose(doc.Index, r.o.want)
		if err != nil {
			return fmt.Errorf("%s: %w", r.o.ref, err)
		}
		if doc, err = r.read(ctx, r.child(d), blob.Digest(d.Digest), d); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: %w: indexes lie more than %d deep", r.o.ref, image.ErrFormat, maxDepth)
}

// expand reads all that an index leads to, level by level.
func (r *resolver) expand(ctx context.Context, doc document) error {
	r.out.manifests = []document{doc}
	seen := map[digest.Digest]bool{doc.desc.Digest: true}
	level := []document{doc}
	for depth := 0; len(level) > 0; depth++ {
		var children []specs.Descriptor
		for _, l := range level {
			if l.Index == nil {
				continue
			}
			for _, d := range l.Index.Manifests {
				if !seen[d.Digest] {
					seen[d.Digest] = true
					children = append(children, d)
				}
			}
		}
		if len(seen) > maxManifests || depth > maxDepth && len(children) > 0 {
			return fmt.Errorf("%s: %w: it has more than %d manifests, or indexes more than %d deep", r.o.ref, image.ErrFormat, maxManifests, maxDepth)
		}
		var err error
		if level, err = r.readAll(ctx, children); err != nil {
			return err
		}
		r.out.manifests = append(r.out.manifests, level...)
	}
	return nil
}

// readAll reads manifests, several at a time, and keeps their order.
func (r *resolver) readAll(ctx context.Context, descs []specs.Descriptor) ([]document, error) {
	docs := make([]document, len(descs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.o.parallel)
	for i, d := range descs {
		g.Go(func() error {
			var err error
			docs[i], err = r.read(ctx, r.child(d), blob.Digest(d.Digest), d)
			return err
		})
	}
	return docs, g.Wait()
}

// collect lists the blobs of all manifests, each once, in manifest order.
func (r *resolver) collect() error {
	var all specs.Manifest
	for _, doc := range r.out.manifests {
		if doc.Manifest == nil {
			continue
		}
		list, err := image.Blobs(doc.Manifest)
		if err != nil {
			return fmt.Errorf("%s: %w", r.o.ref, err)
		}
		all.Layers = append(all.Layers, list...)
	}
	if len(all.Layers) == 0 {
		return nil
	}
	all.Config, all.Layers = all.Layers[0], all.Layers[1:]
	var err error
	if r.out.blobs, err = image.Blobs(&all); err != nil {
		return fmt.Errorf("%s: %w", r.o.ref, err)
	}
	return nil
}
