package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-p2p/damselfly/dfget/image"
	"github.com/damselfly-p2p/damselfly/dfget/layout"
)

// skopeo runs the real program, which the test set-up installs.
func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("skopeo")
	if err != nil {
		t.Fatal("skopeo is missing: install the package skopeo")
	}
	out, err := exec.Command(path, append([]string{"--insecure-policy", "--override-os", "linux", "--override-arch", "amd64"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// checkLayout proves every blob in the layout at dir and returns its index.
func checkLayout(t *testing.T, dir string) specs.Index {
	t.Helper()
	var index specs.Index
	if err := json.Unmarshal(mustRead(t, filepath.Join(dir, "index.json")), &index); err != nil {
		t.Fatal(err)
	}
	if got := string(mustRead(t, filepath.Join(dir, "oci-layout"))); got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout: %s", got)
	}
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs/sha256"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		body := mustRead(t, filepath.Join(dir, "blobs/sha256", b.Name()))
		if fmt.Sprintf("%x", sha256.Sum256(body)) != b.Name() {
			t.Errorf("blob %s has other bytes", b.Name())
		}
	}
	return index
}

// sameImage fails unless the docker-archive, folder or archive src leads skopeo
// to the image.
func sameImage(t *testing.T, src string, img testImage) {
	t.Helper()
	dir := t.TempDir()
	skopeo(t, "copy", "--quiet", src, "dir:"+dir)
	var m specs.Manifest
	if err := json.Unmarshal(mustRead(t, filepath.Join(dir, "manifest.json")), &m); err != nil {
		t.Fatal(err)
	}
	if m.Config.Digest != img.config.Digest {
		t.Errorf("%s has config %s, want %s", src, m.Config.Digest, img.config.Digest)
	}
	if len(m.Layers) != len(img.layers) {
		t.Errorf("%s has %d layers, want %d", src, len(m.Layers), len(img.layers))
	}
}

func TestPullToAFolder(t *testing.T) {
	reg := newTestRegistry(t)
	img := reg.pushImage("team/app", "v1", "linux/amd64", 1000, 600_000, 2_000_000)
	dir := t.TempDir()
	path := filepath.Join(dir, "app")
	name := reg.host + "/team/app:v1"
	r := dfget(t, "pull", name, "-O", path, "--plain-http", "--platform", "linux/amd64", "--output", "json")
	r.want(t, exitOK)
	got := readJSON[pullReport](t, r)
	total := img.manifest.Size + img.config.Size
	for _, l := range img.layers {
		total += l.Size
	}
	if got.Ref != name || got.Digest != img.manifest.Digest.String() || got.Manifest != got.Digest || got.Platform != "linux/amd64" ||
		got.Format != "oci" || got.Bytes != total || got.Fetched != total || got.Kept != 0 || got.Source != "origin" || len(got.Blobs) != 4 {
		t.Errorf("JSON object: %+v", got)
	}
	index := checkLayout(t, path)
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations[specs.AnnotationRefName] != "v1" ||
		index.Manifests[0].Annotations[layout.AnnotationImageName] != name {
		t.Errorf("index.json: %+v", index.Manifests)
	}
	want := []string{"app"}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("beside %v there is %v", want, left)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode of the folder: %v, %v", info.Mode(), err)
	}
	sameImage(t, "oci:"+path+":v1", img)

	// Again: all is here, and checked.
	reg.misbehave(nil)
	r = dfget(t, "pull", name, "-O", path, "--plain-http", "--platform", "linux/amd64", "--output", "json")
	r.want(t, exitOK)
	if got := readJSON[pullReport](t, r); reg.count("/blobs/") > 1 || got.Kept < total-img.config.Size-img.manifest.Size {
		t.Errorf("%d blobs were fetched again, %d bytes kept", reg.count("/blobs/"), got.Kept)
	}
}

func TestPullIntoALayoutThatExists(t *testing.T) {
	reg := newTestRegistry(t)
	img := reg.pushImage("team/app", "v1", "linux/amd64", 1000, 600_000, 2_000_000)
	path := filepath.Join(t.TempDir(), "app")
	name := reg.host + "/team/app:v1"
	dfget(t, "pull", name, "-O", path, "--plain-http").want(t, exitOK)

	// A blob that rotted is replaced.
	rotten := filepath.Join(path, "blobs/sha256", img.layers[2].Digest.Encoded())
	body := mustRead(t, rotten)
	body[5] ^= 1
	if err := os.WriteFile(rotten, body, 0o600); err != nil {
		t.Fatal(err)
	}
	dfget(t, "pull", name, "-O", path, "--plain-http").want(t, exitOK)
	checkLayout(t, path)

	// Another image in the same layout shares it; another one of the same tag does not replace it.
	other := reg.pushImage("team/app", "v2", "linux/amd64", 1000, 5000)
	dfget(t, "pull", reg.host+"/team/app:v2", "-O", path, "--plain-http").want(t, exitOK)
	sameImage(t, "oci:"+path+":v1", img)
	sameImage(t, "oci:"+path+":v2", other)
	reg.pushImage("team/web", "v1", "linux/amd64", 10)
	dfget(t, "pull", reg.host+"/team/web:v1", "-O", path, "--plain-http").want(t, exitOther, "already holds "+name)

	// A tag that moved is followed.
	moved := reg.pushImage("team/app", "v1", "linux/amd64", 77)
	dfget(t, "pull", name, "-O", path, "--plain-http").want(t, exitOK)
	sameImage(t, "oci:"+path+":v1", moved)
	if index := checkLayout(t, path); len(index.Manifests) != 2 {
		t.Errorf("index.json has %d entries, want 2", len(index.Manifests))
	}
}

func TestPullArchives(t *testing.T) {
	reg := newTestRegistry(t)
	// Two equal layers: one blob.
	img := reg.pushImage("team/app", "v1", "linux/amd64", 1000, 600_000)
	twice := specs.Manifest{MediaType: specs.MediaTypeImageManifest, Config: img.config, Layers: img.layers}
	twice.SchemaVersion = 2
	dir := t.TempDir()
	for _, format := range []string{"", formatDockerArchive, formatOCIArchive} {
		path := filepath.Join(dir, "app"+format+".tar")
		args := []string{"pull", reg.host + "/team/app:v1", "-O", path, "--plain-http", "--platform", "linux/amd64"}
		if format != "" {
			args = append(args, "--format", format)
		}
		dfget(t, args...).want(t, exitOK)
		sameImage(t, "oci-archive:"+path, img)
		if format != formatOCIArchive {
			sameImage(t, "docker-archive:"+path+":"+reg.host+"/team/app:v1", img)
			sameImage(t, "docker-archive:"+path, img)
		}
		if slices.Contains(tarNames(t, path), "manifest.json") != (format != formatOCIArchive) {
			t.Errorf("%s holds %v", format, tarNames(t, path))
		}
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 3 {
		t.Errorf("beside the archives: %v", left)
	}
	a, b := mustRead(t, filepath.Join(dir, "app.tar")), mustRead(t, filepath.Join(dir, "appdocker-archive.tar"))
	if !bytes.Equal(a, b) {
		t.Error("the same image packed twice gave different bytes")
	}

	// By digest there is no tag to keep.
	path := filepath.Join(dir, "digest.tar")
	dfget(t, "pull", reg.host+"/team/app@"+img.manifest.Digest.String(), "-O", path, "--plain-http").want(t, exitOK)
	sameImage(t, "docker-archive:"+path, img)
	var entries []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(tarFile(t, path, "manifest.json"), &entries); err != nil || len(entries) != 1 || len(entries[0].RepoTags) != 0 {
		t.Errorf("manifest.json: %+v, %v", entries, err)
	}
}

func tarNames(t *testing.T, path string) []string {
	t.Helper()
	var out []string
	eachTarEntry(t, path, func(h *tar.Header, _ io.Reader) { out = append(out, h.Name) })
	return out
}

func tarFile(t *testing.T, path, name string) []byte {
	t.Helper()
	var body []byte
	eachTarEntry(t, path, func(h *tar.Header, r io.Reader) {
		if h.Name == name {
			body, _ = io.ReadAll(r)
		}
	})
	return body
}

func eachTarEntry(t *testing.T, path string, see func(*tar.Header, io.Reader)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		see(h, tr)
	}
}

func TestPullPlatforms(t *testing.T) {
	reg := newTestRegistry(t)
	index, images := reg.pushIndex("multi", "v1")
	dir := t.TempDir()
	name := reg.host + "/multi:v1"
	for _, c := range []struct{ flag, got string }{
		{"linux/arm64", "linux/arm64"}, {"linux/arm64/v8", "linux/arm64"}, {"linux/arm", "linux/arm/v7"}, {"linux/x86_64", "linux/amd64"},
	} {
		path := filepath.Join(dir, strings.ReplaceAll(c.flag, "/", "-")+".tar")
		r := dfget(t, "pull", name, "-O", path, "--plain-http", "--platform", c.flag, "--output", "json")
		r.want(t, exitOK)
		got := readJSON[pullReport](t, r)
		if got.Platform != c.got || got.Digest != index.Digest.String() || got.Manifest != images[c.got].manifest.Digest.String() {
			t.Errorf("%s: %+v", c.flag, got)
		}
		sameImage(t, "docker-archive:"+path, images[c.got])
	}
	dfget(t, "pull", name, "-O", filepath.Join(dir, "s390x"), "--plain-http", "--platform", "linux/s390x").
		want(t, exitNotFound, "linux/s390x", "linux/amd64, linux/arm/v7, linux/arm64", "--all-platforms")

	path := filepath.Join(dir, "all")
	r := dfget(t, "pull", name, "-O", path, "--plain-http", "--all-platforms", "--output", "json")
	r.want(t, exitOK)
	if got := readJSON[pullReport](t, r); got.Manifest != "" || got.MediaType != specs.MediaTypeImageIndex || len(got.Blobs) != 9 {
		t.Errorf("%+v", got)
	}
	entry := checkLayout(t, path).Manifests
	if len(entry) != 1 || entry[0].Digest != index.Digest {
		t.Errorf("the index was not kept: %+v", entry)
	}
	sameImage(t, "oci:"+path+":v1", images["linux/amd64"])
	dfget(t, "pull", name, "-O", path+".tar", "--plain-http", "--all-platforms").want(t, exitOK)
	sameImage(t, "oci-archive:"+path+".tar", images["linux/amd64"])

	// An image without an index names its platform in its config alone.
	reg.pushImage("single", "v1", "linux/arm64", 100)
	single := reg.host + "/single:v1"
	dfget(t, "pull", single, "-O", filepath.Join(dir, "no"), "--plain-http", "--platform", "linux/amd64").want(t, exitNotFound, "linux/arm64")
	dfget(t, "pull", single, "-O", filepath.Join(dir, "yes"), "--plain-http", "--platform", "linux/arm64").want(t, exitOK)
	foreign := "linux/s390x"
	reg.pushImage("single", "v2", foreign, 100)
	dfget(t, "pull", reg.host+"/single:v2", "-O", filepath.Join(dir, "warned"), "--plain-http").want(t, exitOK, "warning", foreign)
	if _, err := os.Lstat(filepath.Join(dir, "no")); err == nil {
		t.Error("a failed pull left a folder")
	}
}

func TestPullOfAnArtifact(t *testing.T) {
	reg := newTestRegistry(t)
	m := specs.Manifest{
		MediaType: specs.MediaTypeImageManifest, ArtifactType: "application/vnd.test",
		Config: reg.pushBlob("chart", "application/vnd.oci.empty.v1+json", []byte("{}")),
		Layers: []specs.Descriptor{reg.pushBlob("chart", "application/vnd.test.layer", noise(1000, 30)), reg.pushBlob("chart", "application/empty", nil)},
	}
	m.SchemaVersion = 2
	reg.pushManifest("chart", "v1", specs.MediaTypeImageManifest, m)
	dir := t.TempDir()
	dfget(t, "pull", reg.host+"/chart:v1", "-O", filepath.Join(dir, "chart"), "--plain-http").want(t, exitOK)
	if blobs := names(t, filepath.Join(dir, "chart/blobs/sha256")); len(blobs) != 4 {
		t.Errorf("%d blobs, want manifest, config, layer and empty layer", len(blobs))
	}
	checkLayout(t, filepath.Join(dir, "chart"))
	dfget(t, "pull", reg.host+"/chart:v1", "-O", filepath.Join(dir, "chart.tar"), "--plain-http").want(t, exitOK)
	dfget(t, "pull", reg.host+"/chart:v1", "-O", filepath.Join(dir, "x.tar"), "--plain-http", "--format", "docker-archive").
		want(t, exitUsage, "not a container image", "oci-archive")
}

func TestPullForeignLayerFromItsURL(t *testing.T) {
	reg := newTestRegistry(t)
	body := noise(50_000, 31)
	var asked atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Header.Get("Authorization") != "" {
			t.Error("the registry's credential went to the layer's server")
		}
		_, _ = w.Write(body)
	}))
	defer elsewhere.Close()
	img := reg.pushImage("win", "", "linux/amd64", 10)
	m := specs.Manifest{MediaType: image.MediaTypeDockerManifest, Config: img.config}
	m.SchemaVersion = 2
	m.Layers = append(slices.Clone(img.layers), specs.Descriptor{
		MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Digest: "sha256:" + "x", Size: int64(len(body)), URLs: []string{"ftp://nowhere/", elsewhere.URL + "/layer"},
	})
	m.Layers[1].Digest = specs.DescriptorEmptyJSON.Digest.Algorithm().FromBytes(body)
	reg.pushManifest("win", "v1", image.MediaTypeDockerManifest, m)
	path := filepath.Join(t.TempDir(), "win")
	dfget(t, "pull", reg.host+"/win:v1", "-O", path, "--plain-http", "-H", "Authorization: Bearer x").want(t, exitOK)
	checkLayout(t, path)
	if asked.Load() != 1 {
		t.Errorf("the layer's server was asked %d times", asked.Load())
	}
}

func TestPullShowsProgress(t *testing.T) {
	reg := newTestRegistry(t)
	img := reg.pushImage("app", "v1", "linux/amd64", 300_000, 300_000)
	name := img.layers[0].Digest.Encoded()[:12]
	for mode, shows := range map[string]bool{"bar": true, "plain": false, "none": false} {
		r := dfget(t, "pull", reg.host+"/app:v1", "-O", filepath.Join(t.TempDir(), "app"), "--plain-http", "--progress", mode)
		r.want(t, exitOK, "in ", "from the origin")
		if strings.Contains(r.errOut, name) != shows {
			t.Errorf("--progress %s: %q", mode, r.errOut)
		}
		if r.out != "" {
			t.Errorf("--progress %s wrote to standard output: %q", mode, r.out)
		}
	}
	r := dfget(t, "pull", reg.host+"/app:v1", "-O", filepath.Join(t.TempDir(), "app"), "--plain-http", "--quiet")
	if r.want(t, exitOK); r.out+r.errOut != "" {
		t.Errorf("--quiet said %q", r.out+r.errOut)
	}
}

// An index whose only entry names no platform is that image, whatever else the index
// lists of it; of several nobody can tell.
func TestPullOfAnIndexWithoutPlatforms(t *testing.T) {
	reg := newTestRegistry(t)
	img := reg.pushImage("bare", "", "linux/amd64", 100)
	other := reg.pushImage("bare", "", "linux/arm64", 200)
	attestation := other.manifest
	attestation.Platform = &specs.Platform{OS: "unknown", Architecture: "unknown"}
	push := func(tag string, manifests ...specs.Descriptor) string {
		index := specs.Index{MediaType: specs.MediaTypeImageIndex, Manifests: manifests}
		index.SchemaVersion = 2
		reg.pushManifest("bare", tag, specs.MediaTypeImageIndex, index)
		return reg.host + "/bare:" + tag
	}
	dir := t.TempDir()
	for _, name := range []string{push("one", img.manifest), push("attested", img.manifest, attestation)} {
		path := filepath.Join(dir, name[strings.LastIndex(name, ":")+1:]+".tar")
		dfget(t, "pull", name, "-O", path, "--plain-http", "--platform", "linux/amd64").want(t, exitOK)
		sameImage(t, "docker-archive:"+path, img)
		dfget(t, "pull", name, "-O", path+"2.tar", "--plain-http", "--platform", "linux/s390x").want(t, exitNotFound, "linux/amd64")
	}
	dfget(t, "pull", push("two", img.manifest, other.manifest), "-O", filepath.Join(dir, "two"), "--plain-http").
		want(t, exitNotFound, "2 manifests that name no platform")
	dfget(t, "pull", push("none", attestation), "-O", filepath.Join(dir, "none"), "--plain-http").want(t, exitNotFound, "no image at all")
}
