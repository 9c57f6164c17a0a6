package proxy

import (
	"encoding/json"
	"mime"
	"strings"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// maxManifest is the largest manifest that is served, in bytes: what the
// distribution spec asks registries to take ("Pushing Manifests"), and where
// containerd stops reading.
const maxManifest = 4 << 20

// maxChildren bounds what is remembered of one manifest. Blobs beyond it cost a
// HEAD when they are asked for.
const maxChildren = 4096

// Media types of manifests (OCI image spec, media-types.md; docker image
// manifest v2, schema 2).
const (
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeOctets         = "application/octet-stream"
)

// child is a blob or manifest that a manifest names.
type child struct {
	kind      origin.Kind
	digest    blob.Digest
	size      int64
	mediaType string
	// vouched: registries take a manifest only with this child in the same
	// repository, so who may read the one may read the other.
	vouched bool
}

// parseManifest reads what a manifest names. It is tolerant: what it does not
// understand names nothing, and then each blob is asked for on its own. typ is
// the media type that the origin gave, "" if none; the type returned is that, or
// the manifest's own, or the one that its shape tells. own is what it says itself.
//
// A child is vouched for only where nobody can put a digest of others into a
// manifest: not for a subject (it may be absent), not for a layer that is kept
// elsewhere (urls, nondistributable), not where type and shape disagree
// (CVE-2021-41190), not for types whose children registries do not check.
func parseManifest(body []byte, typ string) (_, own string, _ []child) {
	// A map, because encoding/json fills struct fields whatever the case of the
	// key, and so would see lists that the registry did not check.
	var doc map[string]json.RawMessage
	if len(body) > maxManifest || json.Unmarshal(body, &doc) != nil {
		return typ, "", nil
	}
	own = mediaType(text(doc["mediaType"]))
	shape := shapeOf(doc)
	agreed := shape != "" && (typ != "" || own != "")
	for _, t := range []string{typ, own} {
		agreed = agreed && (t == "" || indexType(t) == (shape == typeOCIIndex) && knownType(t))
	}
	if own == "" && (shape == typeOCIManifest && typ == typeOCIManifest || shape == typeOCIIndex && typ == typeOCIIndex) {
		own = typ // OCI documents need not say it
	}
	switch {
	case typ == "" && own != "":
		typ = own
	case typ == "":
		typ = shape
	}
	var kids []child
	for _, key := range []string{"manifests", "config", "layers", "blobs"} {
		kind := origin.KindBlob
		if key == "manifests" {
			kind = origin.KindManifest
		}
		for _, d := range descriptors(doc[key]) {
			if c, ok := parseChild(d, kind); ok && len(kids) < maxChildren {
				c.vouched = c.vouched && agreed && key != "blobs"
				kids = append(kids, c)
			}
		}
	}
	return typ, own, kids
}

// shapeOf tells an index from an image manifest by its lists; "" when it is
// neither or claims to be both.
func shapeOf(doc map[string]json.RawMessage) string {
	index := doc["manifests"] != nil
	image := doc["config"] != nil || doc["layers"] != nil || doc["blobs"] != nil || doc["fsLayers"] != nil
	switch {
	case index && !image:
		return typeOCIIndex
	case image && !index && doc["config"] != nil:
		return typeOCIManifest
	}
	return ""
}

func knownType(t string) bool {
	return t == typeOCIIndex || t == typeOCIManifest || t == typeDockerList || t == typeDockerManifest
}

func indexType(t string) bool { return t == typeOCIIndex || t == typeDockerList }

// descriptors is the descriptor or list of descriptors in raw.
func descriptors(raw json.RawMessage) []map[string]json.RawMessage {
	if len(raw) == 0 {
		return nil
	}
	var list []map[string]json.RawMessage
	if json.Unmarshal(raw, &list) == nil {
		return list
	}
	var one map[string]json.RawMessage
	if json.Unmarshal(raw, &one) == nil && one != nil {
		return []map[string]json.RawMessage{one}
	}
	return nil
}

// parseChild reads a descriptor (OCI image spec, descriptor.md).
func parseChild(doc map[string]json.RawMessage, kind origin.Kind) (child, bool) {
	d, err := blob.ParseDigest(text(doc["digest"]))
	if err != nil {
		return child{}, false
	}
	c := child{kind: kind, digest: d, mediaType: mediaType(text(doc["mediaType"]))}
	if json.Unmarshal(doc["size"], &c.size) != nil || c.size < 0 || c.size > blob.MaxSize {
		c.size = 0
	}
	elsewhere := strings.Contains(c.mediaType, ".nondistributable.") || strings.Contains(c.mediaType, ".foreign.")
	var urls []string
	if raw := doc["urls"]; raw != nil && (json.Unmarshal(raw, &urls) != nil || len(urls) > 0) {
		elsewhere = true
	}
	c.vouched = !elsewhere
	return c, true
}

// text is the JSON string in raw, "" where there is none.
func text(raw json.RawMessage) string {
	var s string
	if len(raw) == 0 || json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// mediaType is a media type without parameters, "" where s is none.
func mediaType(s string) string {
	if len(s) > 255 || s == "" {
		return ""
	}
	t, _, err := mime.ParseMediaType(s)
	if err != nil || !strings.Contains(t, "/") {
		return ""
	}
	return t
}
