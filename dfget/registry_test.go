package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-p2p/damselfly/dfget/image"
)

// testRegistry is a real registry implementation behind a hook that lets a test
// misbehave in its place.
type testRegistry struct {
	t    *testing.T
	srv  *httptest.Server
	host string

	mu       sync.Mutex
	requests []string
	hook     func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

func newTestRegistry(t *testing.T) *testRegistry {
	t.Helper()
	reg := &testRegistry{t: t}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	reg.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reg.mu.Lock()
		hook := reg.hook
		reg.requests = append(reg.requests, r.Method+" "+r.URL.Path)
		reg.mu.Unlock()
		if hook != nil {
			hook(w, r, inner)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(reg.srv.Close)
	reg.host = strings.TrimPrefix(reg.srv.URL, "http://")
	return reg
}

// misbehave puts hook before the registry.
func (reg *testRegistry) misbehave(hook func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.hook = hook
	reg.requests = nil
}

// count tells how many requests held part in "METHOD path" since misbehave.
func (reg *testRegistry) count(part string) int {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	n := 0
	for _, r := range reg.requests {
		if strings.Contains(r, part) {
			n++
		}
	}
	return n
}

func (reg *testRegistry) send(method, path, contentType string, body []byte) {
	reg.t.Helper()
	req, err := http.NewRequest(method, reg.srv.URL+path, bytes.NewReader(body))
	if err != nil {
		reg.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		reg.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		msg, _ := io.ReadAll(resp.Body)
		reg.t.Fatalf("%s %s: %s: %s", method, path, resp.Status, msg)
	}
}

// pushBlob uploads body and returns its descriptor.
func (reg *testRegistry) pushBlob(repo, mediaType string, body []byte) specs.Descriptor {
	reg.t.Helper()
	d := digest.FromBytes(body)
	reg.send(http.MethodPost, fmt.Sprintf("/v2/%s/blobs/uploads/?digest=%s", repo, d), "application/octet-stream", body)
	return specs.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
}

// pushManifest uploads doc under the tag, or under its digest when tag is "".
func (reg *testRegistry) pushManifest(repo, tag, mediaType string, doc any) specs.Descriptor {
	reg.t.Helper()
	body, err := json.Marshal(doc)
	if err != nil {
		reg.t.Fatal(err)
	}
	d := digest.FromBytes(body)
	if tag == "" {
		tag = d.String()
	}
	reg.send(http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repo, tag), mediaType, body)
	return specs.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
}

// testImage is an image that was pushed.
type testImage struct {
	manifest specs.Descriptor
	config   specs.Descriptor
	layers   []specs.Descriptor
	bodies   map[digest.Digest][]byte
}

// pushImage makes an image of gzip layers whose files have the sizes given, and
// pushes it under tag.
func (reg *testRegistry) pushImage(repo, tag, platform string, sizes ...int) testImage {
	reg.t.Helper()
	p, err := image.ParsePlatform(platform)
	if err != nil {
		reg.t.Fatal(err)
	}
	img := testImage{bodies: map[digest.Digest][]byte{}}
	config := specs.Image{Platform: specs.Platform{OS: p.OS, Architecture: p.Architecture}}
	config.RootFS.Type = "layers"
	for i, size := range sizes {
		plain := tarOf(reg.t, fmt.Sprintf("file%d", i), size, seedOf(platform)+uint64(i))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(plain))
		var zipped bytes.Buffer
		zw := gzip.NewWriter(&zipped)
		if _, err := zw.Write(plain); err != nil {
			reg.t.Fatal(err)
		}
		if err := zw.Close(); err != nil {
			reg.t.Fatal(err)
		}
		d := reg.pushBlob(repo, specs.MediaTypeImageLayerGzip, zipped.Bytes())
		img.bodies[d.Digest] = zipped.Bytes()
		img.layers = append(img.layers, d)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		reg.t.Fatal(err)
	}
	img.config = reg.pushBlob(repo, specs.MediaTypeImageConfig, raw)
	img.bodies[img.config.Digest] = raw
	m := specs.Manifest{MediaType: specs.MediaTypeImageManifest, Config: img.config, Layers: img.layers}
	m.SchemaVersion = 2
	img.manifest = reg.pushManifest(repo, tag, specs.MediaTypeImageManifest, m)
	return img
}

// pushIndex pushes an image of linux/amd64, linux/arm/v7 and linux/arm64.
func (reg *testRegistry) pushIndex(repo, tag string) (specs.Descriptor, map[string]testImage) {
	reg.t.Helper()
	images := map[string]testImage{}
	index := specs.Index{MediaType: specs.MediaTypeImageIndex}
	index.SchemaVersion = 2
	for _, s := range []string{"linux/amd64", "linux/arm/v7", "linux/arm64"} {
		img := reg.pushImage(repo, "", s, 20_000, 300_000)
		p, _ := image.ParsePlatform(s)
		d := img.manifest
		d.Platform = &p
		index.Manifests = append(index.Manifests, d)
		images[s] = img
	}
	return reg.pushManifest(repo, tag, specs.MediaTypeImageIndex, index), images
}

// tarOf is a tar of one file with size bytes that do not compress.
func tarOf(t *testing.T, name string, size int, seed uint64) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(size), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(noise(size, seed)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func seedOf(s string) uint64 {
	h := fnv.New32a()
	h.Write([]byte(s))
	return uint64(h.Sum32())
}

// noise is size bytes that follow from seed.
func noise(size int, seed uint64) []byte {
	b := make([]byte, size)
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = src.Read(b)
	return b
}
