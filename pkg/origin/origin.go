// Package origin reads upstreams: registries (OCI distribution spec v2) and
// plain HTTP(S) servers. It knows their token flows, redirects, ranges, limits
// and misbehaviour, and dials no address that a client could use to reach what
// is not an upstream.
//
// It verifies no digest and keeps no bytes: the store does both. It speaks to
// no peer. pkg/proxy calls Head, Get and Forward on behalf of a client, pkg/task
// calls Size and Read, dfget calls all of them as a client of its own.
//
// DESIGN.md beside this file says which path is taken when.
package origin

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Kind is what a Ref names.
type Kind int

// Kinds of content. All but KindURL live in a repository of a registry and are
// end points of the OCI distribution spec, "API".
const (
	// KindBlob is GET /v2/<name>/blobs/<digest> (end-2).
	KindBlob Kind = iota + 1
	// KindManifest is GET /v2/<name>/manifests/<tag or digest> (end-3).
	KindManifest
	// KindTags is GET /v2/<name>/tags/list (end-8). It has no Reference.
	KindTags
	// KindReferrers is GET /v2/<name>/referrers/<digest> (end-12).
	KindReferrers
	// KindURL is a file on a plain HTTP or HTTPS server.
	KindURL
)

func (k Kind) String() string {
	switch k {
	case KindBlob:
		return "blob"
	case KindManifest:
		return "manifest"
	case KindTags:
		return "tags"
	case KindReferrers:
		return "referrers"
	case KindURL:
		return "url"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Ref says where an upstream keeps something. It is comparable, and holds no
// secret unless URL does.
type Ref struct {
	Kind Kind
	// Registry is the registry's name as image references spell it, with a port
	// where it has one: "docker.io", "registry.example.com:5000".
	Registry string
	// Repository is the repository in that registry: "library/alpine".
	Repository string
	// Reference is a tag or a digest; only a manifest has a tag.
	Reference string
	// Query is the encoded query of KindTags and KindReferrers ("n=100&last=b"),
	// without "?". The other kinds have none.
	Query string
	// URL is the absolute URL of KindURL.
	URL string
}

// Place is where r keeps d. A query of a URL, which may be a secret, does not tell places
// apart.
func (r Ref) Place(d blob.Digest) blob.Place {
	if r.Kind == KindURL {
		at, _, _ := strings.Cut(r.URL, "?")
		return blob.PlaceOf(d, "url", at)
	}
	kind := KindBlob.String()
	if r.Kind == KindManifest {
		kind = KindManifest.String()
	}
	return blob.PlaceOf(d, kind, r.Registry, r.Repository)
}

// Digest is the digest that r names its content by, and whether there is one.
func (r Ref) Digest() (blob.Digest, bool) {
	if r.Kind != KindBlob && r.Kind != KindManifest {
		return "", false
	}
	d, err := blob.ParseDigest(r.Reference)
	return d, err == nil
}

// String names r for people: a URL without its query, or
// registry/repository@digest. It is fit for logs.
func (r Ref) String() string {
	switch {
	case r.Kind == KindURL:
		return Redact(r.URL)
	case r.Reference == "":
		return fmt.Sprintf("%s/%s", r.Registry, r.Repository)
	case strings.Contains(r.Reference, ":"):
		return fmt.Sprintf("%s/%s@%s", r.Registry, r.Repository, r.Reference)
	}
	return fmt.Sprintf("%s/%s:%s", r.Registry, r.Repository, r.Reference)
}

// path is r's path and query below the endpoint of its registry. Every part is
// parsed again here, so that no caller can put another path together.
func (r Ref) path() (*url.URL, error) {
	repo, err := ParseRepository(r.Repository)
	if err != nil {
		return nil, err
	}
	if r.Query != "" && r.Kind != KindTags && r.Kind != KindReferrers {
		return nil, fmt.Errorf("a %s of a registry takes no query", r.Kind)
	}
	if r.Kind == KindTags {
		return &url.URL{Path: "/v2/" + repo + "/tags/list", RawQuery: r.Query}, nil
	}
	ref, err := ParseReference(r.Reference)
	if err != nil {
		return nil, err
	}
	if r.Kind != KindManifest {
		if _, err := blob.ParseDigest(ref); err != nil {
			return nil, err
		}
	}
	switch r.Kind {
	case KindBlob:
		return &url.URL{Path: "/v2/" + repo + "/blobs/" + ref}, nil
	case KindManifest:
		return &url.URL{Path: "/v2/" + repo + "/manifests/" + ref}, nil
	case KindReferrers:
		return &url.URL{Path: "/v2/" + repo + "/referrers/" + ref, RawQuery: r.Query}, nil
	}
	return nil, fmt.Errorf("%s is not kept in a registry", r.Kind)
}
