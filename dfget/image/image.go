// Package image reads the documents that describe an image: OCI image indexes
// and manifests and their Docker schema 2 forefathers. It says what has to be
// fetched and which manifest of an index suits a platform.
//
// It is pure: it fetches and writes nothing. The pull command of dfget and
// package layout call it.
package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Media types of Docker's image manifest version 2, schema 2. The OCI ones are
// in the image-spec module.
const (
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	mediaTypeDockerSchema1  = "application/vnd.docker.distribution.manifest.v1"
)

// MaxManifestSize is the largest manifest or index that is read, in bytes: what
// the OCI distribution spec asks registries to accept, and what containerd
// accepts.
const MaxManifestSize = 4 << 20

// ErrFormat is wrapped when a document is not an image manifest or index that
// this package understands.
var ErrFormat = errors.New("not an image manifest")

// Accept lists the media types to ask a registry for, most wanted first, as the
// values of Accept headers.
func Accept() []string {
	return []string{
		specs.MediaTypeImageIndex, specs.MediaTypeImageManifest,
		MediaTypeDockerList, MediaTypeDockerManifest,
		"*/*",
	}
}

// Document is a parsed index or manifest. Exactly one of Index and Manifest is
// set.
type Document struct {
	MediaType string
	Index     *specs.Index
	Manifest  *specs.Manifest
}

// Parse reads body, which came with the media type given ("" = unknown; what
// the document says of itself then decides). Every descriptor in the result has
// a valid digest and a size that is not negative. Errors wrap ErrFormat.
func Parse(mediaType string, body []byte) (Document, error) {
	if len(body) > MaxManifestSize {
		return Document{}, fmt.Errorf("%w: %d bytes are more than the %d that a manifest may have", ErrFormat, len(body), MaxManifestSize)
	}
	var probe struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Config    json.RawMessage `json:"config"`
		Layers    json.RawMessage `json:"layers"`
		FSLayers  json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(body, &probe); err != nil {
		return Document{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	isIndex, isManifest := probe.Manifests != nil, probe.Config != nil || probe.Layers != nil
	if strings.HasPrefix(mediaType, mediaTypeDockerSchema1) || probe.FSLayers != nil {
		return Document{}, fmt.Errorf("%w: it is Docker schema 1, which registries and runtimes have dropped; push the image again with a current docker or podman", ErrFormat)
	}
	if isIndex == isManifest {
		// Both at once is the ambiguity of CVE-2021-41190: two clients could see
		// two different images under one digest.
		return Document{}, fmt.Errorf("%w: it must have either manifests or config and layers", ErrFormat)
	}
	said := probe.MediaType
	if said == "" {
		said = baseType(mediaType)
	}
	if isIndex {
		return parseIndex(said, body)
	}
	return parseManifest(said, body)
}

func baseType(contentType string) string {
	t, _, _ := strings.Cut(contentType, ";")
	return strings.TrimSpace(t)
}

func parseIndex(mediaType string, body []byte) (Document, error) {
	switch mediaType {
	case specs.MediaTypeImageManifest, MediaTypeDockerManifest:
		return Document{}, fmt.Errorf("%w: it says that it is %s but lists manifests", ErrFormat, mediaType)
	case MediaTypeDockerList:
	default:
		mediaType = specs.MediaTypeImageIndex
	}
	var index specs.Index
	if err := json.Unmarshal(body, &index); err != nil {
		return Document{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for i, d := range index.Manifests {
		if err := CheckDescriptor(d); err != nil {
			return Document{}, fmt.Errorf("%w: manifests[%d]: %w", ErrFormat, i, err)
		}
	}
	return Document{MediaType: mediaType, Index: &index}, nil
}

func parseManifest(mediaType string, body []byte) (Document, error) {
	switch mediaType {
	case specs.MediaTypeImageIndex, MediaTypeDockerList:
		return Document{}, fmt.Errorf("%w: it says that it is %s but has layers", ErrFormat, mediaType)
	case MediaTypeDockerManifest:
	default:
		mediaType = specs.MediaTypeImageManifest
	}
	var m specs.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return Document{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err := CheckDescriptor(m.Config); err != nil {
		return Document{}, fmt.Errorf("%w: config: %w", ErrFormat, err)
	}
	for i, d := range m.Layers {
		if err := CheckDescriptor(d); err != nil {
			return Document{}, fmt.Errorf("%w: layers[%d]: %w", ErrFormat, i, err)
		}
	}
	return Document{MediaType: mediaType, Manifest: &m}, nil
}

// CheckDescriptor errs unless d has a digest and a size that can be fetched and
// written safely.
func CheckDescriptor(d specs.Descriptor) error {
	if _, err := blob.ParseDigest(string(d.Digest)); err != nil {
		return err
	}
	if d.Size < 0 || d.Size > blob.MaxSize {
		return fmt.Errorf("size %d: must be between 0 and %d", d.Size, int64(blob.MaxSize))
	}
	return nil
}

// Blobs returns the config and the layers of m, each digest once, in manifest
// order. It errs when one digest is given two sizes.
func Blobs(m *specs.Manifest) ([]specs.Descriptor, error) {
	all := append([]specs.Descriptor{m.Config}, m.Layers...)
	sizes := make(map[string]int64, len(all))
	out := make([]specs.Descriptor, 0, len(all))
	for _, d := range all {
		size, seen := sizes[string(d.Digest)]
		if seen && size != d.Size {
			return nil, fmt.Errorf("%w: %s is said to have %d and %d bytes", ErrFormat, d.Digest, size, d.Size)
		}
		if seen {
			continue
		}
		sizes[string(d.Digest)] = d.Size
		out = append(out, d)
	}
	return out, nil
}

// IsContainerImage tells whether m describes a container image, which runtimes
// can unpack, rather than another artifact kept in a registry.
func IsContainerImage(m *specs.Manifest) bool {
	return m.Config.MediaType == specs.MediaTypeImageConfig || m.Config.MediaType == MediaTypeDockerConfig
}
