// Package sample makes container images for the end-to-end tests and the demo:
// real tar+gzip layers of incompressible data that a seed determines, two
// architectures under one index. It pushes them through a registry's API. It
// pulls nothing.
package sample

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"time"
)

// Large is the layer sizes of an image of 78 MB, in bytes; a layer comes out a
// few hundred bytes larger.
func Large() []int64 { return []int64{12 << 10, 300 << 10, 1 << 20, 5 << 20, 20 << 20, 48 << 20} }

// Medium is the layer sizes of an image of 34 MB.
func Medium() []int64 { return []int64{12 << 10, 300 << 10, 1 << 20, 3 << 20, 8 << 20, 20 << 20} }

// Small is the layer sizes of an image of 2.4 MB.
func Small() []int64 { return []int64{12 << 10, 300 << 10, 2 << 20} }

// ForeignArch is the architecture in every image that is not this machine's.
func ForeignArch() string {
	if runtime.GOARCH == "amd64" {
		return "arm64"
	}
	return "amd64"
}

// Blob is bytes named by their digest.
type Blob struct {
	MediaType string
	Digest    string
	Data      []byte
}

// Size is the blob's length in bytes.
func (b Blob) Size() int64 { return int64(len(b.Data)) }

// Manifest is the manifest of one architecture with what it names.
type Manifest struct {
	Blob
	Config Blob
	Layers []Blob
}

// LayerBytes is the length of all layers together.
func (m Manifest) LayerBytes() int64 {
	var n int64
	for _, l := range m.Layers {
		n += l.Size()
	}
	return n
}

// Image is an index of two manifests: this machine's architecture and another.
// Only what is named by Native is pulled by a client of this machine.
type Image struct {
	Index   Blob
	Native  Manifest
	Foreign Manifest
}

// Format is the family of media types that an image uses.
type Format int

// The two families of media types.
const (
	OCI Format = iota
	Docker
)

type mediaTypes struct{ index, manifest, config, layer string }

func (f Format) types() mediaTypes {
	if f == Docker {
		return mediaTypes{
			index:    "application/vnd.docker.distribution.manifest.list.v2+json",
			manifest: "application/vnd.docker.distribution.manifest.v2+json",
			config:   "application/vnd.docker.container.image.v1+json",
			layer:    "application/vnd.docker.image.rootfs.diff.tar.gzip",
		}
	}
	return mediaTypes{
		index:    "application/vnd.oci.image.index.v1+json",
		manifest: "application/vnd.oci.image.manifest.v1+json",
		config:   "application/vnd.oci.image.config.v1+json",
		layer:    "application/vnd.oci.image.layer.v1.tar+gzip",
	}
}

// New makes an image whose bytes follow from seed, layers and format alone. The
// foreign architecture has the same number of layers, each at most 64 KiB.
func New(seed string, layers []int64, format Format) (*Image, error) {
	types := format.types()
	native, err := newManifest(seed, runtime.GOARCH, layers, types)
	if err != nil {
		return nil, err
	}
	small := make([]int64, len(layers))
	for i, n := range layers {
		small[i] = min(n, 64<<10)
	}
	foreign, err := newManifest(seed, ForeignArch(), small, types)
	if err != nil {
		return nil, err
	}
	index, err := document(types.index, map[string]any{
		"schemaVersion": 2,
		"mediaType":     types.index,
		"manifests": []any{
			withPlatform(native.Blob, runtime.GOARCH),
			withPlatform(foreign.Blob, ForeignArch()),
		},
	})
	if err != nil {
		return nil, err
	}
	return &Image{Index: index, Native: native, Foreign: foreign}, nil
}

func newManifest(seed, arch string, sizes []int64, types mediaTypes) (Manifest, error) {
	var m Manifest
	var diffs, layers []any
	for i, size := range sizes {
		layer, diff, err := newLayer(fmt.Sprintf("%s/%s/%d", seed, arch, i), i, size)
		if err != nil {
			return Manifest{}, err
		}
		layer.MediaType = types.layer
		m.Layers = append(m.Layers, layer)
		layers = append(layers, descriptor(layer))
		diffs = append(diffs, diff)
	}
	var err error
	m.Config, err = document(types.config, map[string]any{
		"architecture": arch,
		"os":           "linux",
		"config":       map[string]any{"Cmd": []string{"/data/0"}, "Labels": map[string]string{"seed": seed}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return Manifest{}, err
	}
	m.Blob, err = document(types.manifest, map[string]any{
		"schemaVersion": 2,
		"mediaType":     types.manifest,
		"config":        descriptor(m.Config),
		"layers":        layers,
	})
	return m, err
}

// newLayer makes a gzipped tar with one file of size random bytes, and returns
// it with the digest of the tar.
func newLayer(seed string, number int, size int64) (Blob, string, error) {
	var out bytes.Buffer
	out.Grow(int(size) + 4096)
	zw, err := gzip.NewWriterLevel(&out, gzip.NoCompression)
	if err != nil {
		return Blob{}, "", fmt.Errorf("make layer: %w", err)
	}
	diff := sha256.New()
	tw := tar.NewWriter(io.MultiWriter(zw, diff))
	when := time.Unix(1_700_000_000, 0)
	dir := &tar.Header{Typeflag: tar.TypeDir, Name: "data/", Mode: 0o755, ModTime: when}
	file := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("data/%d", number), Mode: 0o644, Size: size, ModTime: when}
	random := rand.NewChaCha8(sha256.Sum256([]byte(seed)))
	steps := []func() error{
		func() error { return tw.WriteHeader(dir) },
		func() error { return tw.WriteHeader(file) },
		func() error { _, err := io.CopyN(tw, random, size); return err },
		tw.Close,
		zw.Close,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return Blob{}, "", fmt.Errorf("make layer: %w", err)
		}
	}
	return Blob{Digest: Digest(out.Bytes()), Data: out.Bytes()}, "sha256:" + hex.EncodeToString(diff.Sum(nil)), nil
}

func document(mediaType string, v any) (Blob, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return Blob{}, fmt.Errorf("make %s: %w", mediaType, err)
	}
	return Blob{MediaType: mediaType, Digest: Digest(data), Data: data}, nil
}

func descriptor(b Blob) map[string]any {
	return map[string]any{"mediaType": b.MediaType, "digest": b.Digest, "size": b.Size()}
}

func withPlatform(b Blob, arch string) map[string]any {
	d := descriptor(b)
	d["platform"] = map[string]any{"architecture": arch, "os": "linux"}
	return d
}

// Digest is the sha256 digest of data in its usual form.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
