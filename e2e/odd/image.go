package odd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// tag is the one tag of every repository.
const tag = "v1"

// document is something that a repository serves.
type document struct {
	data              []byte
	digest, mediaType string
	manifest, last    bool
}

// image is what a repository holds.
type image struct {
	byDigest map[string]*document
	// target is what the tag names, former what it named before, child the manifest
	// of this machine, which is target where there is no index.
	target, former, child *document
	config                *document
	layers                []*document
}

type object = map[string]any

func newImage(seed string, shape Shape) (*image, error) {
	sizes, format := shape.Layers, sample.OCI
	if sizes == nil {
		sizes = []int64{4 << 10, 280 << 10}
	}
	if shape.Docker {
		format = sample.Docker
	}
	made, err := sample.New(seed, sizes, format)
	if err != nil {
		return nil, err
	}
	img := &image{byDigest: map[string]*document{}}
	img.former = img.add(made.Foreign.Blob, true)
	for _, b := range append([]sample.Blob{made.Foreign.Config}, made.Foreign.Layers...) {
		img.add(b, false)
	}
	manifest := object{}
	if err := json.Unmarshal(made.Native.Data, &manifest); err != nil {
		return nil, fmt.Errorf("odd image: %w", err)
	}
	if err := img.parts(made.Native, shape, manifest); err != nil {
		return nil, err
	}
	if img.child, err = img.document(made.Native.MediaType, manifest); err != nil {
		return nil, err
	}
	switch {
	case shape.Schema1:
		err = img.schema1(seed)
	case shape.Single:
		img.target = img.child
	default:
		err = img.index(made.Index, shape)
	}
	return img, err
}

// parts adds config and layers and has the manifest name them.
func (img *image) parts(made sample.Manifest, shape Shape, manifest object) error {
	config := made.Config
	if shape.TinyConfig {
		config.Data = []byte("{}")
	}
	layers := slices.Clone(made.Layers)
	if shape.EmptyLayer {
		layers[0].Data = nil
	}
	img.config = img.add(config, false)
	manifest["config"] = descriptor(img.config, shape.ConfigSize)
	var list []any
	for _, b := range layers {
		d := img.add(b, false)
		img.layers = append(img.layers, d)
		list = append(list, descriptor(d, shape.LayerSize))
	}
	img.layers[len(img.layers)-1].last = true
	manifest["layers"] = list
	return nil
}

func (img *image) index(made sample.Blob, shape Shape) error {
	index := object{}
	if err := json.Unmarshal(made.Data, &index); err != nil {
		return fmt.Errorf("odd image: %w", err)
	}
	entry, ok := index["manifests"].([]any)[0].(object)
	if !ok {
		return fmt.Errorf("odd image: the sample's index has no manifests")
	}
	entry["digest"], entry["size"] = img.child.digest, len(img.child.data)
	if shape.ChildType != "" {
		entry["mediaType"] = shape.ChildType
	}
	var err error
	img.target, err = img.document(made.MediaType, index)
	return err
}

// schema1 puts a signed manifest at the tag. Its digest is that of the payload that
// is signed: the same without the signatures.
func (img *image) schema1(seed string) error {
	var layers, history []any
	for _, l := range img.layers {
		layers = append(layers, object{"blobSum": l.digest})
		history = append(history, object{"v1Compatibility": fmt.Sprintf(`{"id":%q}`, l.digest[7:])})
	}
	payload := object{
		"schemaVersion": 1, "name": seed, "tag": tag, "architecture": "amd64", "fsLayers": layers, "history": history,
	}
	bare, err := json.MarshalIndent(payload, "", "   ")
	if err != nil {
		return fmt.Errorf("odd image: %w", err)
	}
	signed := bytes.TrimSuffix(bare, []byte("\n}"))
	signed = append(slices.Clone(signed), `,
   "signatures": [{"header": {"alg": "ES256"}, "signature": "c2lnbmVk", "protected": "e30"}]
}`...)
	img.target = &document{
		data: signed, digest: sample.Digest(bare), mediaType: "application/vnd.docker.distribution.manifest.v1+prettyjws", manifest: true,
	}
	img.byDigest[img.target.digest] = img.target
	return nil
}

func (img *image) document(mediaType string, v object) (*document, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("odd image: %w", err)
	}
	return img.add(sample.Blob{MediaType: mediaType, Data: data}, true), nil
}

func (img *image) add(b sample.Blob, manifest bool) *document {
	d := &document{data: b.Data, digest: sample.Digest(b.Data), mediaType: b.MediaType, manifest: manifest}
	img.byDigest[d.digest] = d
	return d
}

func descriptor(d *document, size func(int64) int64) object {
	out := object{"mediaType": d.mediaType, "digest": d.digest}
	told := int64(len(d.data))
	if size != nil {
		told = size(told)
	}
	if told >= 0 {
		out["size"] = told
	}
	return out
}

// find is what a reference names, nil for nothing.
func (img *image) find(manifest bool, reference string) *document {
	if manifest && reference == tag {
		return img.target
	}
	if d := img.byDigest[reference]; d != nil && d.manifest == manifest {
		return d
	}
	return nil
}
