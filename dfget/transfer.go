package main

import (
	"context"
	"errors"
	"fmt"

	specs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/dfget/fetch"
	"github.com/damselfly-p2p/damselfly/dfget/image"
	"github.com/damselfly-p2p/damselfly/dfget/layout"
	"github.com/damselfly-p2p/damselfly/dfget/partial"
	"github.com/damselfly-p2p/damselfly/dfget/progress"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// pull fetches the image of o and writes it.
func (s *session) pull(ctx context.Context, o *pullOptions) (report, error) {
	dir, err := s.openDir(o)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	net, err := s.o.connect(ctx, s.p, o.ref, s.warn)
	if err != nil {
		return nil, err
	}
	defer net.close()
	t := &transfer{s: s, o: o, dir: dir, fetcher: net.fetcher}
	if t.img, err = (&resolver{fetcher: net.fetcher, o: o, tally: &t.tally}).resolve(ctx); err != nil {
		return nil, err
	}
	if err := t.checkPlatform(ctx); err != nil {
		return nil, err
	}
	if o.format == formatOCI {
		if err := dir.CheckName(o.entry(t.img.top)); err != nil {
			return nil, err
		}
	} else if err := o.archive(t.img); err != nil {
		return nil, err
	}
	if err := t.fetchBlobs(ctx); err != nil {
		return nil, err
	}
	for _, doc := range t.img.manifests {
		if err := dir.Put(blob.Digest(doc.desc.Digest), doc.body); err != nil {
			return nil, err
		}
	}
	if err := t.write(ctx); err != nil {
		return nil, err
	}
	return t.report(), nil
}

// openDir opens the layout, or the folder in which an archive's blobs collect.
func (s *session) openDir(o *pullOptions) (*layout.Dir, error) {
	if o.format == formatOCI {
		return layout.Open(o.path, "image "+o.ref.String(), s.p.Umask)
	}
	return layout.Stage(o.path, "image "+o.ref.String(), s.p.Umask)
}

// transfer is the fetching and writing of one resolved image.
type transfer struct {
	s       *session
	o       *pullOptions
	dir     *layout.Dir
	fetcher *fetch.Fetcher
	img     *pulled
	tally   tally
	blobs   []blobReport
}

// checkPlatform compares the config of an image that came without an index with
// the platform that is wanted: only there it says its own.
func (t *transfer) checkPlatform(ctx context.Context) error {
	m := t.img.single
	if t.o.all || m == nil || t.img.top.Platform != nil || !image.IsContainerImage(m) {
		return nil
	}
	config := m.Config
	body, res, err := t.fetcher.Manifest(ctx, t.want(config), image.MaxManifestSize)
	if err != nil {
		return err
	}
	t.tally.add(res)
	if err := t.dir.Put(blob.Digest(config.Digest), body); err != nil {
		return err
	}
	have, err := image.ConfigPlatform(body)
	if err != nil || have.OS == "" || have.Architecture == "" {
		return err
	}
	t.img.top.Platform = &have
	if _, ok := image.Matches(t.o.want, have); ok {
		return nil
	}
	wrong := &image.PlatformError{Want: t.o.want, Have: image.FormatPlatform(have)}
	if t.o.explicit {
		return fmt.Errorf("%s: %w", t.o.ref, wrong)
	}
	t.s.warn(fmt.Sprintf("%s: %v", t.o.ref, wrong))
	return nil
}

func (t *transfer) want(d specs.Descriptor) fetch.Want {
	// The flags have been parsed before.
	header, _ := t.o.header()
	ref := t.o.ref
	ref.Kind, ref.Reference = origin.KindBlob, string(d.Digest)
	return fetch.Want{Ref: ref, Digest: blob.Digest(d.Digest), Size: d.Size, Header: header}
}

// fetchBlobs brings config and layers into the layout, some at a time.
func (t *transfer) fetchBlobs(ctx context.Context) error {
	t.blobs = make([]blobReport, len(t.img.blobs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(t.o.parallel)
	for i, d := range t.img.blobs {
		item := t.s.tracker.Item(shortDigest(d), d.Size)
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			res, err := t.fetchBlob(ctx, d, item)
			t.tally.add(res)
			t.blobs[i] = blobReport{Digest: string(d.Digest), MediaType: d.MediaType, Bytes: d.Size, Source: res.Sources.String()}
			return err
		})
	}
	return g.Wait()
}

// shortDigest names a blob on the screen.
func shortDigest(d specs.Descriptor) string {
	return blob.Digest(d.Digest).Hex()[:12]
}

func (t *transfer) fetchBlob(ctx context.Context, d specs.Descriptor, item *progress.Item) (fetch.Result, error) {
	w := t.want(d)
	held, err := t.dir.Holds(w.Digest, w.Size)
	if err != nil {
		return fetch.Result{}, err
	}
	if held {
		item.Kept(w.Size)
		item.End()
		return fetch.Result{}, nil
	}
	f, err := t.dir.Blob(w.Digest)
	if err != nil {
		return fetch.Result{}, err
	}
	defer f.Close()
	res, err := t.fetchAnywhere(ctx, w, d.URLs, f, item)
	if errors.Is(err, blob.ErrMismatch) {
		return res, errors.Join(err, f.Discard())
	}
	if err != nil {
		return res, err
	}
	item.End()
	return res, f.Commit(t.dir.FileMode())
}

// fetchAnywhere fetches from the registry, or, what that does not keep, from the
// URLs that the manifest names (OCI image spec, descriptor.md, "urls").
func (t *transfer) fetchAnywhere(ctx context.Context, w fetch.Want, urls []string, f *partial.File, watch fetch.Watch) (fetch.Result, error) {
	res, err := t.fetcher.Fetch(ctx, w, f, watch)
	for _, u := range urls {
		if !notFound(err) {
			break
		}
		parsed, urlErr := origin.ParseURL(u)
		if urlErr != nil {
			continue
		}
		elsewhere := w
		// The user's headers are for the registry.
		elsewhere.Ref, elsewhere.Header = origin.Ref{Kind: origin.KindURL, URL: parsed}, nil
		res, err = t.fetcher.Fetch(ctx, elsewhere, f, watch)
	}
	return res, err
}

// write gives the image its name.
func (t *transfer) write(ctx context.Context) error {
	entry := t.o.entry(t.img.top)
	if t.o.format == formatOCI {
		return t.dir.Commit(entry)
	}
	a := layout.Archive{Entry: entry}
	for _, doc := range t.img.manifests {
		a.Blobs = append(a.Blobs, doc.desc)
	}
	a.Blobs = append(a.Blobs, t.img.blobs...)
	if t.o.format == formatDockerArchive {
		a.Docker = t.o.dockerImage(t.img.single)
	}
	if err := t.pack(ctx, a); err != nil {
		return err
	}
	return t.dir.Remove()
}

// pack writes the archive beside its name and gives it that name.
func (t *transfer) pack(ctx context.Context, a layout.Archive) error {
	dir, name, err := partial.Locate(t.o.path)
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := partial.Open(dir, name, "archive")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Reset(); err != nil {
		return err
	}
	size := int64(0)
	for _, d := range a.Blobs {
		size += d.Size
	}
	item := t.s.tracker.Local("packing", size)
	if err := t.dir.Pack(&packed{ctx: ctx, File: f, item: item}, a); err != nil {
		return errors.Join(err, f.Discard())
	}
	item.End()
	return f.Commit(0o666 &^ t.s.p.Umask)
}

// packed is a file whose writing is shown and ends with a context.
type packed struct {
	ctx context.Context
	*partial.File
	item *progress.Item
}

func (w *packed) Write(b []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	n, err := w.File.Write(b)
	w.item.Add(int64(n))
	return n, err
}

func (t *transfer) report() *pullReport {
	r := &pullReport{
		Ref: t.o.ref.String(), Path: t.o.path, Format: t.o.format,
		Digest: string(t.img.root), MediaType: t.img.top.MediaType,
		Fetched: t.tally.fetched, Source: t.tally.sources.String(), Blobs: t.blobs,
	}
	if t.img.single != nil {
		r.Manifest = string(t.img.top.Digest)
	}
	if p := t.img.top.Platform; p != nil {
		r.Platform = image.FormatPlatform(*p)
	}
	for _, doc := range t.img.manifests {
		r.Bytes += doc.desc.Size
	}
	for _, d := range t.img.blobs {
		r.Bytes += d.Size
	}
	r.Kept = max(0, r.Bytes-r.Fetched)
	return r
}
