package odd

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"strings"

	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// client is a list of requests as one program makes them.
type client struct {
	name string
	// list tells that each request stands for itself; otherwise they are one pull.
	list bool
	face func(Faces) Face
	run  func(*session, context.Context)
}

// clients are all clients. Each has a face of its own, as its users configure it.
func clients() []client {
	ns, path, connect := func(f Faces) Face { return f.NS }, func(f Faces) Face { return f.Path }, func(f Faces) Face { return f.Connect }
	return []client{
		{"containerd", false, ns, (*session).containerd},
		{"chunked", false, ns, (*session).chunked},
		{"podman", false, path, (*session).podman},
		{"docker", false, connect, (*session).docker},
		{"gets", true, ns, (*session).gets},
		{"probe", true, connect, (*session).probe},
		{"stranger", true, ns, (*session).stranger},
	}
}

const acceptAll = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, " +
	"application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*"

// acceptDocker is what podman, skopeo and dockerd send, schema 1 included.
const acceptDocker = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, " +
	"application/vnd.docker.distribution.manifest.v1+prettyjws, application/vnd.docker.distribution.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.index.v1+json"

// part is a descriptor.
type part struct {
	MediaType, Digest string
	Size              int64
	Platform          struct{ Architecture string }
}

type manifestDocument struct {
	Manifests []part
	Config    *part
	Layers    []part
	FSLayers  []struct{ BlobSum string }
}

// containerd resolves by HEAD and reads by digest; sizes must be as told.
func (s *session) containerd(ctx context.Context) { s.resolveAndRead(ctx, s.whole) }

// chunked is containerd 2 that reads blobs by ranges.
func (s *session) chunked(ctx context.Context) { s.resolveAndRead(ctx, s.byRanges) }

type reader func(ctx context.Context, what string, p part) bool

func (s *session) resolveAndRead(ctx context.Context, read reader) {
	o := s.ask(ctx, http.MethodHead, s.path(true, tag), acceptHeader(acceptAll))
	refused := o.status == http.StatusMethodNotAllowed
	o = s.note(o, "HEAD tag", o.status == http.StatusOK && !o.cut || refused, "")
	if !o.right {
		return
	}
	root := part{Digest: o.header.Get("Docker-Content-Digest"), MediaType: o.header.Get("Content-Type")}
	_, _ = fmt.Sscan(o.header.Get("Content-Length"), &root.Size)
	if refused || root.Digest == "" || root.Size <= 0 {
		if o = s.get(ctx, "GET tag", true, tag, acceptHeader(acceptAll)); !o.right {
			return
		}
		if root.Digest = o.header.Get("Docker-Content-Digest"); root.Digest == "" {
			root.Digest = sample.Digest(o.body)
		}
		root.MediaType, root.Size = o.header.Get("Content-Type"), int64(len(o.body))
	}
	s.tree(ctx, "root", root, read)
}

// tree reads a manifest and what it names.
func (s *session) tree(ctx context.Context, what string, p part, read reader) bool {
	o := s.get(ctx, "GET "+what, true, p.Digest, acceptHeader(p.MediaType+", */*"))
	if !o.right || !s.fits(what, p, o.body) {
		return false
	}
	var m manifestDocument
	if json.Unmarshal(o.body, &m) != nil {
		return false
	}
	if strings.Contains(p.MediaType, "index") || strings.Contains(p.MediaType, "list") {
		for _, child := range m.Manifests {
			if child.Platform.Architecture == runtime.GOARCH {
				return s.tree(ctx, "manifest", child, read)
			}
		}
	}
	return s.readParts(ctx, m, read)
}

func (s *session) readParts(ctx context.Context, m manifestDocument, read reader) bool {
	if m.Config != nil && !read(ctx, "config", *m.Config) {
		return false
	}
	for i, l := range m.Layers {
		if !read(ctx, fmt.Sprintf("layer %d", i), l) {
			return false
		}
	}
	for i, l := range m.FSLayers {
		if !read(ctx, fmt.Sprintf("layer %d", i), part{Digest: l.BlobSum}) {
			return false
		}
	}
	return true
}

// fits checks a size that was told, as containerd does when it commits.
func (s *session) fits(what string, p part, body []byte) bool {
	if p.Size > 0 && p.Size != int64(len(body)) {
		s.note(outcome{}, "commit "+what, false, fmt.Sprintf("size is %d, not %d", len(body), p.Size))
		return false
	}
	return true
}

// whole reads a blob; where it is cut the rest is asked for.
func (s *session) whole(ctx context.Context, what string, p part) bool {
	o := s.get(ctx, "GET "+what, false, p.Digest, acceptHeader(p.MediaType+", */*"))
	if o.cut && len(o.body) > 0 {
		header := acceptHeader(p.MediaType + ", */*")
		header.Set("Range", fmt.Sprintf("bytes=%d-", len(o.body)))
		rest := s.get(ctx, "GET rest of "+what, false, p.Digest, header)
		if rest.right && rest.status == http.StatusPartialContent {
			s.outcomes = append(s.outcomes[:len(s.outcomes)-2], rest)
			return s.fits(what, p, append(o.body, rest.body...))
		}
	}
	return o.right && s.fits(what, p, o.body)
}

// byRanges reads a blob from its start and, large ones, from the middle at the same
// time.
func (s *session) byRanges(ctx context.Context, what string, p part) bool {
	header := acceptHeader(p.MediaType + ", */*")
	header.Set("Range", "bytes=0-")
	o := s.get(ctx, "GET bytes=0- of "+what, false, p.Digest, header)
	if !o.right || !s.fits(what, p, o.body) {
		return false
	}
	if o.status != http.StatusPartialContent || p.Size < 64<<10 {
		return true
	}
	header = header.Clone()
	header.Set("Range", fmt.Sprintf("bytes=%d-", p.Size/2))
	return s.get(ctx, "GET second half of "+what, false, p.Digest, header).right
}

// plain reads a blob and believes its digest alone.
func (s *session) plain(ctx context.Context, what string, p part) bool {
	return s.get(ctx, "GET "+what, false, p.Digest, nil).right
}

// podman begins with the tag's GET; so do skopeo and CRI-O.
func (s *session) podman(ctx context.Context) {
	o := s.ask(ctx, http.MethodGet, "/v2/", nil)
	if o = s.note(o, "GET /v2/", o.status == http.StatusOK || o.status == http.StatusUnauthorized, ""); o.right {
		s.fromTag(ctx)
	}
}

// docker asks for the tag by HEAD, and reads the digest that this tells; where it tells
// none it reads the tag.
func (s *session) docker(ctx context.Context) {
	o := s.ask(ctx, http.MethodGet, "/v2/", nil)
	if o = s.note(o, "GET /v2/", o.status == http.StatusOK || o.status == http.StatusUnauthorized, ""); !o.right {
		return
	}
	o = s.ask(ctx, http.MethodHead, s.path(true, tag), acceptHeader(acceptDocker))
	o = s.note(o, "HEAD tag", true, "")
	if digest := o.header.Get("Docker-Content-Digest"); o.status == http.StatusOK && digest != "" {
		s.fromRoot(ctx, s.get(ctx, "GET root", true, digest, acceptHeader(acceptDocker)))
		return
	}
	s.fromTag(ctx)
}

func (s *session) fromTag(ctx context.Context) {
	s.fromRoot(ctx, s.get(ctx, "GET tag", true, tag, acceptHeader(acceptDocker)))
}

// fromRoot reads what an index or a manifest names.
func (s *session) fromRoot(ctx context.Context, o outcome) {
	var m manifestDocument
	if !o.right || json.Unmarshal(o.body, &m) != nil {
		return
	}
	for _, child := range m.Manifests {
		if child.Platform.Architecture == runtime.GOARCH {
			o = s.get(ctx, "GET manifest", true, child.Digest, acceptHeader(acceptDocker))
			if m = (manifestDocument{}); !o.right || json.Unmarshal(o.body, &m) != nil {
				return
			}
			break
		}
	}
	s.readParts(ctx, m, s.plain)
}

// gets is a GET of everything, as curl does it.
func (s *session) gets(ctx context.Context) {
	s.get(ctx, "GET tag", true, tag, nil)
	s.get(ctx, "GET root", true, s.repo.target.digest, nil)
	s.get(ctx, "GET manifest", true, s.repo.child.digest, nil)
	s.get(ctx, "GET config", false, s.repo.config.digest, nil)
	for i, l := range s.repo.layers {
		s.get(ctx, fmt.Sprintf("GET layer %d", i), false, l.digest, nil)
	}
}

// probe is what tools ask: HEADs first, then ranges, then all.
func (s *session) probe(ctx context.Context) {
	layer := s.repo.layers[len(s.repo.layers)-1]
	s.head(ctx, "HEAD tag", true, tag, acceptAll)
	s.head(ctx, "HEAD manifest", true, s.repo.child.digest, acceptAll)
	s.head(ctx, "HEAD config", false, s.repo.config.digest, "")
	s.head(ctx, "HEAD layer", false, layer.digest, "")
	half := len(layer.data) / 2
	for _, asked := range []string{"bytes=0-99", fmt.Sprintf("bytes=%d-%d", half, half+999), "bytes=-512", fmt.Sprintf("bytes=%d-", half)} {
		s.get(ctx, "GET "+asked, false, layer.digest, http.Header{"Range": {asked}})
	}
	s.get(ctx, "GET tag", true, tag, acceptHeader(acceptAll))
	s.get(ctx, "GET manifest", true, s.repo.child.digest, acceptHeader(acceptAll))
	s.get(ctx, "GET layer", false, layer.digest, nil)
	o := s.ask(ctx, http.MethodGet, s.path(true, tag), http.Header{"If-None-Match": {`"` + s.repo.target.digest + `"`}, "Accept": {acceptAll}})
	s.note(o, "GET tag if it changed", o.status == http.StatusNotModified || o.status == http.StatusOK && !o.cut, "")
}

// stranger has a wrong password, and wants what others have pulled.
func (s *session) stranger(ctx context.Context) {
	s.password = "guessed"
	s.get(ctx, "GET tag", true, tag, acceptHeader(acceptAll))
	s.get(ctx, "GET manifest", true, s.repo.child.digest, nil)
	s.get(ctx, "GET layer", false, s.repo.layers[len(s.repo.layers)-1].digest, nil)
	s.head(ctx, "HEAD layer", false, s.repo.layers[0].digest, "")
}
