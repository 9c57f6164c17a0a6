package image_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-p2p/damselfly/dfget/image"
)

const someDigest = digest.Digest("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

func platform(t *testing.T, s string) specs.Platform {
	t.Helper()
	p, err := image.ParsePlatform(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestChoosePicksTheBestVariant(t *testing.T) {
	index := func(platforms ...string) *specs.Index {
		var x specs.Index
		for _, s := range platforms {
			parts := strings.Split(s, "/")
			d := specs.Descriptor{Digest: someDigest, ArtifactType: s, Platform: &specs.Platform{OS: parts[0], Architecture: parts[1]}}
			if len(parts) > 2 {
				d.Platform.Variant = parts[2]
			}
			x.Manifests = append(x.Manifests, d)
		}
		return &x
	}
	all := index("unknown/unknown", "linux/amd64", "linux/amd64/v3", "linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "linux/386", "windows/amd64")
	for _, c := range []struct{ want, got string }{
		{"linux/amd64", "linux/amd64"},
		{"linux/x86_64", "linux/amd64"},
		{"linux/amd64/v2", "linux/amd64"},
		{"linux/amd64/v4", "linux/amd64/v3"},
		{"linux/arm", "linux/arm/v7"},
		{"linux/arm/v6", "linux/arm/v6"},
		{"linux/arm/7", "linux/arm/v7"},
		{"linux/arm/v8", "linux/arm/v7"},
		{"linux/armhf", "linux/arm/v7"},
		{"linux/arm64", "linux/arm64/v8"},
		{"linux/aarch64", "linux/arm64/v8"},
		{"windows/amd64", "windows/amd64"},
		{"Linux/AMD64", "linux/amd64"},
	} {
		d, err := image.Choose(all, platform(t, c.want))
		if err != nil || d.ArtifactType != c.got {
			t.Errorf("for %s: %q, %v; want %s", c.want, d.ArtifactType, err, c.got)
		}
	}
	_, err := image.Choose(index("linux/arm/v7", "linux/arm64"), platform(t, "linux/s390x"))
	var missing *image.PlatformError
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), "linux/arm/v7, linux/arm64") || !strings.Contains(err.Error(), "linux/s390x") {
		t.Errorf("error does not say what is wanted and what there is: %v", err)
	}
	if _, err := image.Choose(index("linux/arm/v7"), platform(t, "linux/arm/v6")); err == nil {
		t.Error("an image for arm/v7 was chosen for an arm/v6 machine, which cannot run it")
	}
}

func TestParsePlatformRefuses(t *testing.T) {
	for _, s := range []string{"", "linux", "linux/", "/amd64", "linux/arm/", "a/b/c/d"} {
		if p, err := image.ParsePlatform(s); err == nil {
			t.Errorf("ParsePlatform(%q) = %v, want an error", s, p)
		}
	}
}

func TestLocalPlatformIsWhereContainersRun(t *testing.T) {
	for _, c := range []struct{ os, arch, want string }{
		{"linux", "amd64", "linux/amd64"}, {"darwin", "arm64", "linux/arm64"}, {"windows", "amd64", "windows/amd64"}, {"linux", "arm", "linux/arm/v7"},
	} {
		if got := image.FormatPlatform(image.LocalPlatform(c.os, c.arch)); got != c.want {
			t.Errorf("%s/%s runs %s, want %s", c.os, c.arch, got, c.want)
		}
	}
}

func TestParseRefusesAmbiguousAndUnsafeDocuments(t *testing.T) {
	desc := `{"digest":"` + string(someDigest) + `","size":0}`
	for name, c := range map[string]struct{ mediaType, body string }{
		"not json":                {"", "<html>"},
		"index and manifest":      {"", `{"manifests":[],"config":` + desc + `,"layers":[]}`},
		"neither":                 {"", `{}`},
		"schema 1":                {"application/vnd.docker.distribution.manifest.v1+prettyjws", `{"fsLayers":[]}`},
		"schema 1 unnamed":        {"", `{"fsLayers":[],"history":[]}`},
		"path in a digest":        {"", `{"config":` + desc + `,"layers":[{"digest":"sha256:../../etc/passwd","size":1}]}`},
		"no digest":               {"", `{"config":{"size":1},"layers":[]}`},
		"negative size":           {"", `{"config":` + desc + `,"layers":[{"digest":"` + string(someDigest) + `","size":-1}]}`},
		"bad digest in index":     {"", `{"manifests":[{"digest":"md5:00","size":1}]}`},
		"manifest said to be one": {"", `{"mediaType":"` + specs.MediaTypeImageManifest + `","manifests":[]}`},
		"index said to be one":    {"", `{"mediaType":"` + specs.MediaTypeImageIndex + `","config":` + desc + `}`},
		"too big":                 {"", strings.Repeat(" ", image.MaxManifestSize) + `{"manifests":[]}`},
	} {
		if doc, err := image.Parse(c.mediaType, []byte(c.body)); !errors.Is(err, image.ErrFormat) {
			t.Errorf("%s: got %+v, %v; want ErrFormat", name, doc, err)
		}
	}
}

func TestParseKeepsTheMediaTypeOfDocker(t *testing.T) {
	desc := `{"digest":"` + string(someDigest) + `","size":0,"mediaType":"` + image.MediaTypeDockerConfig + `"}`
	doc, err := image.Parse(image.MediaTypeDockerManifest+"; charset=utf-8", []byte(`{"schemaVersion":2,"config":`+desc+`,"layers":[`+desc+`]}`))
	if err != nil || doc.Manifest == nil || doc.MediaType != image.MediaTypeDockerManifest || !image.IsContainerImage(doc.Manifest) {
		t.Fatalf("%+v, %v", doc, err)
	}
	blobs, err := image.Blobs(doc.Manifest)
	if err != nil || len(blobs) != 1 {
		t.Fatalf("one digest twice must be fetched once: %v, %v", blobs, err)
	}
	doc.Manifest.Layers[0].Size = 7
	if _, err := image.Blobs(doc.Manifest); !errors.Is(err, image.ErrFormat) {
		t.Fatalf("two sizes for one digest: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("", []byte(`{"manifests":[{"digest":"`+string(someDigest)+`","size":3,"platform":{"os":"linux","architecture":"arm"}}]}`))
	f.Add(specs.MediaTypeImageManifest, []byte(`{"config":{"digest":"`+string(someDigest)+`","size":0},"layers":[]}`))
	f.Fuzz(func(t *testing.T, mediaType string, body []byte) {
		doc, err := image.Parse(mediaType, body)
		if err != nil {
			if !errors.Is(err, image.ErrFormat) {
				t.Fatalf("error is not ErrFormat: %v", err)
			}
			return
		}
		if (doc.Index == nil) == (doc.Manifest == nil) {
			t.Fatal("want exactly one of index and manifest")
		}
		var descs []specs.Descriptor
		if doc.Index != nil {
			descs = doc.Index.Manifests
			if d, err := image.Choose(doc.Index, image.LocalPlatform("linux", "arm")); err == nil && image.CheckDescriptor(d) != nil {
				t.Fatal("chose a bad descriptor")
			}
		} else if blobs, err := image.Blobs(doc.Manifest); err == nil {
			descs = blobs
		}
		for _, d := range descs {
			if err := image.CheckDescriptor(d); err != nil {
				t.Fatalf("bad descriptor passed: %v", err)
			}
		}
		if _, err := json.Marshal(doc); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParsePlatform(f *testing.F) {
	f.Add("linux/amd64")
	f.Add("linux/arm/v7")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := image.ParsePlatform(s)
		if err != nil {
			return
		}
		again, err := image.ParsePlatform(image.FormatPlatform(p))
		if err != nil || image.FormatPlatform(again) != image.FormatPlatform(p) {
			t.Fatalf("%q -> %v -> %v, %v", s, p, again, err)
		}
	})
}
