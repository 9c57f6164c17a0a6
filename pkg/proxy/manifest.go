package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// Bounds of the manifests that are read here. What is beyond them goes past unread.
const (
	// maxManifest is in bytes. Registries are to take 4 MiB (distribution spec, "Pushing
	// Manifests"), and clients may have many under way; 1 MiB names 4,000 layers.
	maxManifest = 1 << 20
	// maxTokens is how much of the JSON is looked at: what maxChildren layers need, some
	// annotations with each.
	maxTokens = 1 << 16
	// maxChildren bounds what is remembered of one manifest.
	maxChildren = 4096
	// maxDepth bounds how deep the JSON may be; manifests need six levels.
	maxDepth = 32
)

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

// parseManifest reads what a manifest names. What it does not understand names nothing,
// and then each blob is asked for on its own. typ is the media type that the origin gave,
// "" if none; the type returned is that, or the manifest's own, or the one that its shape
// tells. own is what it says itself.
//
// A child is vouched for only where nobody can put a digest of others into a manifest: not
// where a parser could read the document otherwise (see object), not for a subject (it may
// be absent), not for a layer that is kept elsewhere (urls, nondistributable), not where
// type and shape disagree (CVE-2021-41190), not for types whose children registries do not
// check.
func parseManifest(body []byte, typ string) (_, own string, _ []child) {
	doc, err := readDocument(body)
	if err != nil {
		return typ, "", nil
	}
	own = mediaType(doc.mediaType)
	shape := doc.shape()
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
	for i := range doc.children {
		doc.children[i].vouched = doc.children[i].vouched && agreed && !doc.odd
	}
	return typ, own, doc.children
}

// document is what is read of a manifest.
type document struct {
	mediaType string
	lists     map[string]bool // which of the keys that tell its shape it has
	children  []child
	odd       bool // another parser could read it otherwise
}

// shape tells an index from an image manifest by its lists; "" when it is neither or claims
// to be both.
func (d *document) shape() string {
	index := d.lists["manifests"]
	image := d.lists["config"] || d.lists["layers"] || d.lists["blobs"] || d.lists["fsLayers"]
	switch {
	case index && !image:
		return typeOCIIndex
	case d.lists["config"] && !index:
		return typeOCIManifest
	}
	return ""
}

func knownType(t string) bool {
	return t == typeOCIIndex || t == typeOCIManifest || t == typeDockerList || t == typeDockerManifest
}

func indexType(t string) bool { return t == typeOCIIndex || t == typeDockerList }

var errDocument = errors.New("no manifest that is read here")

// readDocument reads a manifest, within the bounds above, each byte once.
func readDocument(body []byte) (*document, error) {
	if len(body) > maxManifest || !utf8.Valid(body) {
		return nil, errDocument
	}
	p := &parser{dec: json.NewDecoder(bytes.NewReader(body)), left: maxTokens}
	p.dec.UseNumber()
	doc := &document{lists: map[string]bool{}}
	err := p.object(&doc.odd, func(key string) error {
		switch key {
		case "mediaType":
			return p.text(&doc.mediaType, &doc.odd)
		case "config", "layers", "manifests", "blobs":
			doc.lists[key] = true
			return p.descriptors(doc, key)
		case "fsLayers":
			doc.lists[key] = true
		}
		return p.skip()
	})
	if err != nil {
		return nil, err
	}
	if _, err := p.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errDocument // something follows
	}
	return doc, nil
}

// parser reads JSON by tokens, so many and no more.
type parser struct {
	dec   *json.Decoder
	left  int
	depth int
}

func (p *parser) token() (json.Token, error) {
	if p.left--; p.left < 0 {
		return nil, errDocument
	}
	t, err := p.dec.Token()
	if err != nil {
		return nil, errDocument
	}
	switch t {
	case json.Delim('{'), json.Delim('['):
		if p.depth++; p.depth > maxDepth {
			return nil, errDocument
		}
	case json.Delim('}'), json.Delim(']'):
		p.depth--
	}
	return t, nil
}

// object reads an object, and has each read the value behind each key. odd is set where
// another parser could read the object otherwise: keys that are the same, but for case or
// what Unicode folds to the same (encoding/json takes the last of them, others the first),
// keys that are like one that means something and are not it, keys that are not plain text.
func (p *parser) object(odd *bool, each func(key string) error) error {
	if t, err := p.token(); err != nil || t != json.Delim('{') {
		return errDocument
	}
	seen := map[string]bool{}
	for {
		t, err := p.token()
		if err != nil {
			return err
		}
		if t == json.Delim('}') {
			return nil
		}
		key, ok := t.(string)
		if !ok {
			return errDocument
		}
		folded := fold(key)
		if meant, ok := meaning[folded]; seen[folded] || ok && key != meant || !plain(key) {
			*odd = true
		}
		seen[folded] = true
		if err := each(key); err != nil {
			return err
		}
	}
}

// meaning is the keys that mean something in a manifest or a descriptor (OCI image spec,
// manifest.md, image-index.md, descriptor.md; docker schema 1), by what they fold to.
var meaning = func() map[string]string {
	out := map[string]string{}
	for _, key := range []string{
		"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "blobs", "subject", "annotations", "fsLayers",
		"digest", "size", "urls", "data", "platform",
	} {
		out[fold(key)] = key
	}
	return out
}()

// fold maps strings that differ only by what encoding/json disregards in keys to one: each
// rune is the least of those that Unicode's simple folding takes for the same.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			least = min(least, next)
		}
		return least
	}, s)
}

// plain reports whether a key is of letters, digits and signs of ASCII.
func plain(key string) bool {
	for _, r := range key {
		if r <= ' ' || r > '~' {
			return false
		}
	}
	return key != ""
}

// text reads a string; any other value is odd.
func (p *parser) text(into *string, odd *bool) error {
	t, err := p.token()
	if err != nil {
		return err
	}
	if s, ok := t.(string); ok {
		*into = s
		return nil
	}
	*odd = true
	return p.rest(t)
}

// skip reads a value and forgets it.
func (p *parser) skip() error {
	t, err := p.token()
	if err != nil {
		return err
	}
	return p.rest(t)
}

// rest reads what belongs to a value that began with t.
func (p *parser) rest(t json.Token) error {
	if t != json.Delim('{') && t != json.Delim('[') {
		return nil
	}
	for above := p.depth - 1; p.depth > above; {
		if _, err := p.token(); err != nil {
			return err
		}
	}
	return nil
}

// descriptors reads the value of config, an object, or of another key of these, a list of
// objects.
func (p *parser) descriptors(doc *document, key string) error {
	kind := origin.KindBlob
	if key == "manifests" {
		kind = origin.KindManifest
	}
	one := func() error {
		c, ok, err := p.descriptor(kind)
		if err != nil {
			return err
		}
		if !ok {
			doc.odd = true
			return nil
		}
		if len(doc.children) < maxChildren {
			c.vouched = c.vouched && key != "blobs"
			doc.children = append(doc.children, c)
		}
		return nil
	}
	if key == "config" {
		return one()
	}
	t, err := p.token()
	if err != nil {
		return err
	}
	if t != json.Delim('[') {
		doc.odd = true
		return p.rest(t)
	}
	for p.dec.More() {
		if err := one(); err != nil {
			return err
		}
	}
	_, err = p.token()
	return err
}

// descriptor reads a descriptor (OCI image spec, descriptor.md). ok is false where it names
// no content.
func (p *parser) descriptor(kind origin.Kind) (c child, ok bool, err error) {
	c = child{kind: kind}
	var digest, typ string
	odd, elsewhere := false, false
	err = p.object(&odd, func(key string) error {
		switch key {
		case "digest":
			return p.text(&digest, &odd)
		case "mediaType":
			return p.text(&typ, &odd)
		case "size":
			return p.size(&c.size)
		case "urls":
			return p.filled(&elsewhere)
		}
		return p.skip()
	})
	if err != nil {
		return c, false, err
	}
	if c.digest, err = blob.ParseDigest(digest); err != nil {
		return c, false, nil
	}
	c.mediaType = mediaType(typ)
	elsewhere = elsewhere || strings.Contains(c.mediaType, ".nondistributable.") || strings.Contains(c.mediaType, ".foreign.")
	c.vouched = !odd && !elsewhere
	return c, true, nil
}

// filled reads a value that is anything but null or an empty list.
func (p *parser) filled(into *bool) error {
	t, err := p.token()
	if err != nil {
		return err
	}
	*into = t != nil && (t != json.Delim('[') || p.dec.More())
	return p.rest(t)
}

// size reads a size; 0 is one that is none.
func (p *parser) size(into *int64) error {
	t, err := p.token()
	if err != nil {
		return err
	}
	if n, ok := t.(json.Number); ok {
		if size, err := n.Int64(); err == nil && size >= 0 && size <= blob.MaxSize {
			*into = size
		}
	}
	return p.rest(t)
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
