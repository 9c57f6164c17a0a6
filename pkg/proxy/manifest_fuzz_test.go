package proxy

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/distribution/distribution/v3"
	_ "github.com/distribution/distribution/v3/manifest/manifestlist" // registers its media type
	_ "github.com/distribution/distribution/v3/manifest/ocischema"    // and these theirs
	"github.com/distribution/distribution/v3/manifest/schema2"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	ownDigest     = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	anotherDigest = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// checkedBy is what distribution's registry looks for in the repository before it takes
// the manifest as a media type (registry/storage, verifyManifest); false where it takes it
// for none.
func checkedBy(body []byte, typ string) (map[string]bool, bool) {
	m, _, err := distribution.UnmarshalManifest(typ, body)
	if err != nil {
		return nil, false
	}
	out := map[string]bool{}
	for _, d := range m.References() {
		switch d.MediaType {
		case schema2.MediaTypeForeignLayer:
			continue
		case v1.MediaTypeImageLayerNonDistributable, v1.MediaTypeImageLayerNonDistributableGzip: //nolint:staticcheck // registries take them still
			if len(d.URLs) > 0 {
				continue
			}
		}
		out[d.Digest.String()] = true
	}
	return out, true
}

// tricks are manifests that somebody who may push could use to have another's digest named.
func tricks() []string {
	own := `{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + ownDigest + `","size":2}`
	layer := func(keys string) string {
		return `{"schemaVersion":2,"mediaType":"` + typeOCIManifest + `","config":` + own + `,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":2,` + keys + `}]}`
	}
	another, mine := `"`+anotherDigest+`"`, `"`+ownDigest+`"`
	out := []string{
		layer(`"digest":` + mine),
		layer(`"digest":` + another + `,"Digest":` + mine),
		layer(`"DIGEST":` + mine + `,"digest":` + another),
		layer(`"digest":` + another + `,"digest":` + mine),
		layer(`"digest":` + mine + `,"digest":` + another),
		layer(`"digest":` + another + `,"d\u0069gest":` + mine),
		layer(`"digest":` + another + `,"dige\u017ft":` + mine),
		layer(`"digest":` + another + `,"digeſt":` + mine),
		layer(`"digest":` + another + `,"digest\u0000":` + mine),
		layer(`"digest":` + another + `,"urls":["https://example.com/x"]`),
		layer(`"digest":` + another + `,"URLs":["https://example.com/x"]`),
		layer(`"digest":[` + another + `],"Digest":` + mine),
		layer(`"digest":null,"Digest":` + another),
		layer(`"Digest":` + another),
		layer(`"digest":` + another + `,"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"`),
		layer(`"digest":` + another + `,"MediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"`),
	}
	for _, keys := range []string{
		`"layers":[%[2]s],"Layers":[%[1]s]`, `"layers":[%[2]s],"layers":[%[1]s]`, `"layers":[%[2]s],"layer\u017f":[%[1]s]`,
		`"layers":%[2]s,"Layers":[%[1]s]`, `"layers":[[%[2]s],%[1]s]`, `"layers":[%[1]s],"manifests":[%[2]s]`, `"layers":[%[1]s],"blobs":[%[2]s]`,
		`"layers":[%[1]s],"subject":%[2]s`, `"layers":[%[1]s],"config":%[2]s`, `"layers":[%[1]s],"Config":%[2]s`, `"config":[%[2]s],"layers":[%[1]s]`,
		`"layers":[%[1]s,null,%[2]s]`, `"layers":[%[1]s]}{"layers":[%[2]s]`, `"manifests":[%[2]s],"Manifests":[%[1]s]`, `"manifests":[%[2]s]`,
		`"config":%[2]s,"manifest\u017f":[],"layers":[%[1]s]`,
	} {
		for _, typ := range []string{typeOCIManifest, typeDockerManifest, typeOCIIndex, typeDockerList} {
			body := fmt.Sprintf(keys, own, `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":2,"digest":`+another+`}`)
			out = append(out, `{"schemaVersion":2,"mediaType":"`+typ+`",`+body+`}`, `{"schemaVersion":2,"mediaType":"`+typ+`","config":`+own+`,`+body+`}`)
		}
	}
	return out
}

func checkVouched(t *testing.T, body []byte) {
	t.Helper()
	for _, typ := range []string{"", typeOCIManifest, typeOCIIndex, typeDockerManifest, typeDockerList} {
		_, own, kids := parseManifest(body, typ)
		for _, c := range kids {
			if !c.vouched {
				continue
			}
			if !json.Valid(body) {
				t.Fatalf("vouched for %s in what is no JSON:\n%s", c.digest, body)
			}
			// What a registry took it for: what it answers with, or what it says itself.
			for _, as := range []string{typ, own} {
				if as == "" {
					continue
				}
				if checked, ok := checkedBy(body, as); ok && !checked[c.digest.String()] {
					t.Fatalf("as %s vouched for %s, which the registry did not check:\n%s", as, c.digest, body)
				}
			}
		}
	}
}

// Nothing is vouched for that distribution, which reads JSON otherwise, does not check.
func TestVouchedIsChecked(t *testing.T) {
	for _, body := range tricks() {
		checkVouched(t, []byte(body))
	}
	if _, _, kids := parseManifest([]byte(tricks()[0]), typeOCIManifest); len(kids) != 2 || !kids[0].vouched || !kids[1].vouched {
		t.Errorf("an honest manifest vouches for %+v", kids)
	}
}

func FuzzVouchedIsChecked(f *testing.F) {
	for _, body := range tricks() {
		f.Add([]byte(body))
	}
	f.Fuzz(checkVouched)
}
