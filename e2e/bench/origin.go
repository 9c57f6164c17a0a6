package main

import (
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// registryName and repository are where the origin's image is found.
const (
	registryName = "bench.example.com"
	repository   = "bench/image"
	ociManifest  = "application/vnd.oci.image.manifest.v1+json"
)

// layer is a blob that takes no room: zeros, but for a number in the last 8 bytes.
type layer struct {
	number int
	size   int64
	digest blob.Digest
}

// tail is how many bytes at the end of a layer are not zero.
const tail = 8

func (l layer) last() []byte { return binary.BigEndian.AppendUint64(nil, uint64(l.number)+1) }

// nameLayers computes the digests of layers. What layers have in common is hashed
// once, so it takes as long as the largest.
func nameLayers(ctx context.Context, layers []layer) error {
	bySize := make([]*layer, len(layers))
	for i := range layers {
		bySize[i] = &layers[i]
	}
	slices.SortStableFunc(bySize, func(a, b *layer) int { return int(min(max(a.size-b.size, -1), 1)) })
	zeros := make([]byte, 1<<20)
	hash, done := sha256.New(), int64(0)
	for _, l := range bySize {
		for done < l.size-tail {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			n := min(l.size-tail-done, int64(len(zeros)))
			hash.Write(zeros[:n])
			done += n
		}
		state, err := hash.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			return err
		}
		own := sha256.New()
		if err := own.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
			return err
		}
		own.Write(l.last())
		l.digest = blob.Digest(fmt.Sprintf("sha256:%x", own.Sum(nil)))
	}
	return nil
}

// reader reads a layer.
type reader struct {
	layer
	pos int64
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.pos >= r.size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.size-r.pos)]
	clear(p)
	from := r.size - tail
	for i, b := range r.last() {
		if at := from + int64(i) - r.pos; at >= 0 && at < int64(len(p)) {
			p[at] = b
		}
	}
	r.pos += int64(len(p))
	return len(p), nil
}

// Seek implements io.Seeker.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.size
	}
	r.pos = offset
	return offset, nil
}

// origin is a registry of one image, tag v1, with layers that are made up as they are
// sent.
type origin struct {
	server   *httptest.Server
	layers   map[string]layer // by digest
	manifest []byte
}

// startOrigin serves layers. The caller closes the server.
func startOrigin(layers []layer) (*origin, error) {
	o := &origin{layers: map[string]layer{}}
	var descriptors []map[string]any
	for _, l := range layers {
		o.layers[string(l.digest)] = l
		descriptors = append(descriptors, map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": l.digest, "size": l.size})
	}
	var err error
	o.manifest, err = json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": ociManifest, "layers": descriptors,
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob.FromBytes([]byte("{}")), "size": 2},
	})
	if err != nil {
		return nil, err
	}
	o.server = httptest.NewServer(o)
	return o, nil
}

func (o *origin) manifestDigest() string { return string(blob.FromBytes(o.manifest)) }

// ServeHTTP implements http.Handler.
func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"+repository+"/"), "/")
	l, ok := o.layers[name]
	switch {
	case r.URL.Path == "/v2/":
		w.WriteHeader(http.StatusOK)
	case kind == "manifests" && (name == "v1" || name == o.manifestDigest()):
		w.Header().Set("Content-Type", ociManifest)
		w.Header().Set("Docker-Content-Digest", o.manifestDigest())
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(o.manifest)))
	case kind == "blobs" && ok:
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, &reader{layer: l})
	default:
		http.NotFound(w, r)
	}
}
