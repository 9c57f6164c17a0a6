package odd

import (
	"fmt"
	"slices"
	"time"
)

// Behaviours is the table of everything odd that clients can pull from. Rows that take
// long are not in it: see Slow.
func Behaviours() []Behaviour {
	return slices.Concat(
		healthy(), headRefused(), headLies(), lengthUnknown(), manifestWrong(), encoded(), slow(), fails(), redirects(), ranges(), limits(),
		headers(), credentials(), small(),
	)
}

const every = "every client"

func healthy() []Behaviour {
	return []Behaviour{
		{Name: "healthy", What: "nothing is odd", Met: every},
		{Name: "healthy-http1", What: "HTTP/1.1 alone is offered", Met: every, HTTP1: true},
		{Name: "healthy-docker", What: "Docker's media types", Met: every, Shape: Shape{Docker: true}},
		{Name: "healthy-single", What: "a manifest without an index", Met: every, Shape: Shape{Single: true}},
	}
}

// headRefused is HEAD that is refused where GET is not.
func headRefused() (out []Behaviour) {
	for _, status := range []int{400, 401, 403, 404, 405, 406, 410, 412, 416, 429, 500, 501, 503} {
		what := fmt.Sprintf("is answered %d, GET 200", status)
		out = append(out,
			Behaviour{Name: fmt.Sprintf("head-manifest-%d", status), What: "HEAD of a manifest " + what,
				Met:   "podman, skopeo, crane, dockerd and curl, which GET; containerd where the status is 405",
				Rules: []Rule{{On: HeadManifest, Status: status}}},
			Behaviour{Name: fmt.Sprintf("head-blob-%d", status), What: "HEAD of a blob " + what, Met: every,
				Rules: []Rule{{On: HeadBlob, Status: status}}})
	}
	signed := &Redirect{Only: "GET"}
	return append(out,
		Behaviour{Name: "head-all-403", What: "every HEAD is answered 403", Met: "podman, skopeo, crane, curl", Rules: []Rule{{On: Heads, Status: 403}}},
		Behaviour{Name: "head-digest-404", What: "HEAD of a manifest by digest is answered 404, by tag 200", Met: every,
			Rules: []Rule{{On: HeadDigest, Status: 404}}},
		Behaviour{Name: "head-429-pause", What: "HEAD is answered 429 with Retry-After: 5", Met: "podman, skopeo, curl",
			Rules: []Rule{{On: Heads, Status: 429, RetryAfter: "5"}}},
		Behaviour{Name: "head-blob-signed", What: "HEAD of a blob is redirected to a URL signed for GET, which answers 403", Met: every,
			Rules: []Rule{{On: Blobs, Redirect: signed}}},
		Behaviour{Name: "head-manifest-signed", What: "HEAD of a manifest is redirected to a URL signed for GET, which answers 403",
			Met: "podman, skopeo, crane, curl", Rules: []Rule{{On: Manifests, Redirect: signed}}},
		Behaviour{Name: "head-manifest-cut", What: "HEAD of a manifest ends without an answer", Met: "podman, skopeo, curl",
			Rules: []Rule{{On: HeadManifest, Drop: true}}},
		Behaviour{Name: "head-blob-cut", What: "HEAD of a blob ends without an answer", Met: every, Rules: []Rule{{On: HeadBlob, Drop: true}}},
		Behaviour{Name: "head-manifest-hangs", What: "HEAD of a manifest is never answered", Met: "podman, skopeo, curl",
			Rules: []Rule{{On: HeadManifest, Hang: true}}, Clients: []string{"podman", "gets"}},
		Behaviour{Name: "head-blob-hangs", What: "HEAD of a blob is never answered", Met: every,
			Rules: []Rule{{On: HeadBlob, Hang: true}}, Clients: []string{"podman", "gets", "containerd"}},
	)
}

// headLies is HEAD that says something else than GET.
func headLies() (out []Behaviour) {
	for name, length := range map[string]Length{
		"zero": LengthZero, "half": LengthHalf, "plus": LengthPlus, "minus": LengthMinus, "double": LengthDouble, "encoded": LengthEncoded,
	} {
		out = append(out,
			Behaviour{Name: "head-manifest-length-" + name, What: "HEAD of a manifest tells a length that is " + name,
				Met: "podman, skopeo, crane, curl; containerd where it is zero", Rules: []Rule{{On: HeadManifest, Length: length}}},
			Behaviour{Name: "head-blob-length-" + name, What: "HEAD of a blob tells a length that is " + name,
				Met: every, Rules: []Rule{{On: HeadBlob, Length: length}}})
	}
	for name, digest := range map[string]Digest{
		"other": DigestOther, "former": DigestFormer, "unknown": DigestUnknown, "none": DigestNone, "child": DigestChild,
	} {
		out = append(out, Behaviour{Name: "head-digest-" + name, What: "HEAD of a tag tells a digest that is " + name + "; child: that of the index's manifest, as where Accept is ignored",
			Met: "podman, skopeo, crane, curl; containerd where it is former, none or child", Rules: []Rule{{On: HeadTag, Digest: digest}}})
	}
	out = append(out,
		Behaviour{Name: "blob-digest-other", What: "HEAD and GET of a blob tell another digest", Met: every, Rules: []Rule{{On: Blobs, Digest: DigestOther}}},
		Behaviour{Name: "get-digest-other", What: "GET of a tag tells the digest of other bytes", Met: "podman, skopeo, curl",
			Rules: []Rule{{On: GetTag, Digest: DigestOther}}},
		Behaviour{Name: "head-type-wrong", What: "HEAD of a manifest says text/plain", Met: "podman, skopeo, curl",
			Rules: []Rule{{On: HeadManifest, Type: "text/plain"}}},
		Behaviour{Name: "head-type-none", What: "HEAD of a manifest tells no type", Met: "podman, skopeo, curl", Rules: []Rule{{On: HeadManifest, Type: "-"}}},
		Behaviour{Name: "head-type-json", What: "HEAD and GET of a manifest say application/json", Met: "curl",
			Rules: []Rule{{On: Manifests, Type: "application/json"}}},
		Behaviour{Name: "type-none", What: "no answer has a type", Met: "podman, skopeo, curl", Rules: []Rule{{On: All, Type: "-"}}},
	)
	return out
}

// lengthUnknown is bodies whose length nothing tells.
func lengthUnknown() []Behaviour {
	noSize := Shape{LayerSize: func(int64) int64 { return -1 }, ConfigSize: func(int64) int64 { return -1 }}
	none := []Rule{{On: All, Length: LengthNone, Framing: FramingChunked}}
	return []Behaviour{
		{Name: "chunked", What: "bodies are chunked and no HEAD tells a length", Met: every, Rules: none},
		{Name: "chunked-http1", What: "the same over HTTP/1.1", Met: every, Rules: none, HTTP1: true},
		{Name: "chunked-no-size", What: "the same, and descriptors tell no size", Met: "podman, skopeo, containerd, curl", Rules: none, Shape: noSize},
		{Name: "close-delimited", What: "bodies end with the connection, no HEAD tells a length", Met: every, HTTP1: true,
			Rules: []Rule{{On: All, Length: LengthNone, Framing: FramingClose}}},
		{Name: "close-delimited-no-size", What: "the same, and descriptors tell no size", Met: every, HTTP1: true, Shape: noSize,
			Rules: []Rule{{On: All, Length: LengthNone, Framing: FramingClose}}},
		{Name: "chunked-blobs", What: "blobs alone are chunked, their HEAD is refused", Met: every,
			Rules: []Rule{{On: GetBlob, Framing: FramingChunked}, {On: HeadBlob, Status: 405}}},
		{Name: "no-size", What: "descriptors tell no size", Met: every, Shape: noSize},
	}
}

// manifestWrong is manifests that are wrong about their parts.
func manifestWrong() (out []Behaviour) {
	for name, size := range map[string]func(int64) int64{
		"plus": func(n int64) int64 { return n + 1 }, "minus": func(n int64) int64 { return n - 1 },
		"double": func(n int64) int64 { return 2 * n }, "half": func(n int64) int64 { return n / 2 }, "zero": func(int64) int64 { return 0 },
	} {
		out = append(out,
			Behaviour{Name: "layer-size-" + name, What: "the manifest tells layer sizes that are " + name, Met: "podman, dockerd, curl", Shape: Shape{LayerSize: size}},
			Behaviour{Name: "config-size-" + name, What: "the manifest tells a config size that is " + name, Met: "podman, dockerd, curl", Shape: Shape{ConfigSize: size}})
	}
	lies := func(n int64) int64 { return n + 1 }
	chunked := []Rule{{On: HeadBlob, Status: 404}, {On: GetBlob, Framing: FramingChunked}}
	return append(out,
		Behaviour{Name: "layer-size-plus-chunked", What: "the manifest tells layer sizes that are plus, and nothing else tells any", Met: "podman, dockerd, curl",
			Shape: Shape{LayerSize: lies}, Rules: chunked},
		Behaviour{Name: "layer-size-half-chunked", What: "the same with sizes that are half", Met: "podman, dockerd, curl",
			Shape: Shape{LayerSize: func(n int64) int64 { return n / 2 }}, Rules: chunked},
		Behaviour{Name: "sizes-lie-everywhere", What: "manifest and HEAD tell the same wrong size", Met: "podman, dockerd, curl",
			Shape: Shape{LayerSize: lies, ConfigSize: lies}, Rules: []Rule{{On: HeadBlob, Length: LengthPlus}}},
		Behaviour{Name: "child-type-differs", What: "the index tells another media type than the manifest's Content-Type", Met: every,
			Shape: Shape{ChildType: "application/vnd.docker.distribution.manifest.v2+json"}},
		Behaviour{Name: "schema1", What: "a signed manifest of schema 1, whose digest is not the hash of its bytes", Met: "dockerd, podman, skopeo, curl",
			Shape: Shape{Schema1: true}})
}

// encoded is bytes on the wire that differ from the content.
func encoded() []Behaviour {
	return []Behaviour{
		{Name: "gzip", What: "bodies are gzipped unless identity alone is accepted", Met: "containerd, curl --compressed", Rules: []Rule{{On: Gets, Gzip: true}}},
		{Name: "gzip-manifests", What: "the same for manifests alone", Met: every, Rules: []Rule{{On: GetManifest, Gzip: true}}},
		{Name: "gzip-blobs", What: "the same for blobs alone", Met: every, Rules: []Rule{{On: GetBlob, Gzip: true}}},
		{Name: "gzip-told", What: "the same, and HEAD tells the encoded length", Met: every,
			Rules: []Rule{{On: Gets, Gzip: true}, {On: Heads, Length: LengthEncoded}}},
	}
}

// second is short beside what the slow do, and long beside what a node may add.
const second = time.Second

func slow() []Behaviour {
	return []Behaviour{
		{Name: "slow-get-manifest", What: "GET of a manifest is answered after 2 s", Met: every, Rules: []Rule{{On: GetManifest, Wait: 2 * second}}},
		{Name: "slow-head-manifest", What: "HEAD of a manifest is answered after 2 s", Met: every, Rules: []Rule{{On: HeadManifest, Wait: 2 * second}}},
		{Name: "slow-manifests", What: "manifests are answered after 1.5 s, however asked for", Met: every, Rules: []Rule{{On: Manifests, Wait: 1500 * time.Millisecond}}},
		{Name: "slow-fetch", What: "a manifest is fetched on demand for 3 s, anew when the client hangs up", Met: every,
			Rules: []Rule{{On: Manifests, Wait: 3 * second, Lazy: true}}},
		{Name: "slow-blob", What: "a blob's headers come after 2 s", Met: every, Rules: []Rule{{On: GetBlob, Wait: 2 * second}}},
		{Name: "slow-head-blob", What: "HEAD of a blob is answered after 2 s", Met: every, Rules: []Rule{{On: HeadBlob, Wait: 2 * second}}},
		{Name: "slow-first-byte", What: "a blob's first byte comes 2 s after its headers", Met: every, Rules: []Rule{{On: GetBlob, FirstByte: 2 * second}}},
		{Name: "slow-first-byte-4", What: "a blob's first byte comes 4 s after its headers", Met: every, Rules: []Rule{{On: GetBlob, Layer: true, FirstByte: 4 * second}}},
		{Name: "slow-realm", What: "the token realm answers after 2 s", Met: every, Auth: Auth{Scheme: "bearer", Wait: 2 * second}},
	}
}

// Slow is the rows with waits as long as real registries make clients wait.
func Slow() []Behaviour {
	patience := 2 * time.Minute
	return []Behaviour{
		{Name: "manifest-45", What: "a manifest is fetched on demand for 45 s, anew when the client hangs up", Met: every, Patience: patience,
			Rules: []Rule{{On: Manifests, Wait: 45 * second, Lazy: true}}, Clients: []string{"containerd", "podman", "docker"}},
		{Name: "blob-25", What: "a layer's first byte comes after 25 s", Met: every, Patience: patience,
			Rules: []Rule{{On: GetBlob, Layer: true, Wait: 25 * second}}, Clients: []string{"containerd", "podman"}},
		{Name: "blob-25-headers", What: "a layer's first byte comes 25 s after its headers", Met: every, Patience: patience,
			Rules: []Rule{{On: GetBlob, Layer: true, FirstByte: 25 * second}}, Clients: []string{"containerd", "podman"}},
		{Name: "realm-25", What: "the token realm answers after 25 s", Met: every, Patience: patience,
			Auth: Auth{Scheme: "bearer", Wait: 25 * second}, Clients: []string{"containerd", "podman"}},
	}
}

// fails is failures after a while, of which a client learns by a status.
func fails() (out []Behaviour) {
	for _, row := range []struct {
		name, what string
		rule       Rule
	}{
		{"503", "a layer is answered 503 after 4 s", Rule{Wait: 4 * second, Status: 503}},
		{"cut", "a layer's connection ends after 4 s without an answer", Rule{Wait: 4 * second, Drop: true}},
		{"cut-headers", "a layer's connection ends 4 s after the headers", Rule{FirstByte: 4 * second, CutAtOnce: true}},
		{"503-at-once", "a layer is answered 503", Rule{Status: 503}},
		{"404", "a layer is answered 404", Rule{Status: 404}},
		{"cut-half", "a layer is cut half way, each time", Rule{Cut: true}},
	} {
		row.rule.On, row.rule.Layer = GetBlob, true
		out = append(out, Behaviour{Name: "fails-" + row.name, What: row.what, Met: every, Rules: []Rule{row.rule}})
	}
	once := []Rule{{On: GetBlob, Layer: true, First: 1, Cut: true}}
	return append(out,
		Behaviour{Name: "fails-cut-once", What: "a layer is cut half way once", Met: "containerd, dockerd, podman, which ask for the rest", Rules: once},
		Behaviour{Name: "fails-manifest-503", What: "a manifest by digest is answered 503 after 2 s", Met: every,
			Rules: []Rule{{On: GetDigest, Wait: 2 * second, Status: 503}}},
		Behaviour{Name: "fails-tag-cut", What: "a tag's connection ends after 2 s", Met: every, Rules: []Rule{{On: HeadTag | GetTag, Wait: 2 * second, Drop: true}}},
	)
}

// redirects is documents that are elsewhere.
func redirects() (out []Behaviour) {
	row := func(name, what string, on Kind, r Redirect) {
		out = append(out, Behaviour{Name: "redirect-" + name, What: what, Met: every, Rules: []Rule{{On: on, Redirect: &r}}})
	}
	for _, status := range []int{301, 302, 303, 307, 308} {
		row(fmt.Sprint("blob-", status), fmt.Sprintf("blobs are redirected by %d to another host", status), Blobs, Redirect{Status: status})
	}
	row("manifest", "manifests are redirected to another host", Manifests, Redirect{})
	row("manifest-302-same", "manifests are redirected on the same host", Manifests, Redirect{Status: 302, Same: true})
	row("manifest-get", "GET of a manifest is redirected, HEAD is not", GetManifest, Redirect{})
	row("relative", "everything is redirected by a path alone", All, Redirect{Relative: true})
	row("two-hops", "blobs are redirected twice", Blobs, Redirect{Hops: 1})
	row("five-hops", "blobs are redirected six times", Blobs, Redirect{Hops: 5})
	row("once", "a blob's URL is good for one request", Blobs, Redirect{Once: true})
	row("expires", "a blob's URL is good for two seconds", Blobs, Redirect{Expires: 2 * second})
	row("get-only", "GET of a blob is redirected, HEAD is answered", GetBlob, Redirect{Only: "GET"})
	row("http", "blobs are redirected on the registry's own host", Blobs, Redirect{Same: true})
	out = append(out,
		Behaviour{Name: "redirect-unlisted", What: "blobs are on another host under the registry's CA, which no configuration names", Met: every,
			Unlisted: true, Rules: []Rule{{On: Blobs, Redirect: &Redirect{}}}},
		Behaviour{Name: "redirect-private", What: "the same of a private registry, whose storage refuses its credential", Met: every,
			Auth: Auth{Scheme: "bearer"}, Rules: []Rule{{On: Blobs, Redirect: &Redirect{}}}},
		Behaviour{Name: "redirect-chunked", What: "storage sends bodies without a length and ignores ranges", Met: every,
			Rules: []Rule{{On: Blobs, Redirect: &Redirect{}, Length: LengthNone, Framing: FramingChunked, Range: RangeIgnored}}})
	return out
}

// ranges is servers that do something else with Range.
func ranges() (out []Behaviour) {
	for _, row := range []struct {
		name, what string
		ranges     Range
	}{
		{"ignored", "is ignored", RangeIgnored}, {"416", "is answered 416", Range416}, {"403", "is answered 403", Range403},
		{"500", "is answered 500", Range500}, {"wrong", "gets other bytes", RangeWrong}, {"multipart", "gets a multipart of one", RangeMultipart},
		{"untold", "gets 206 without Content-Range", RangeUntold},
	} {
		out = append(out,
			Behaviour{Name: "range-" + row.name, What: "Range " + row.what, Met: every, Rules: []Rule{{On: Blobs, Range: row.ranges}}},
			Behaviour{Name: "range-" + row.name + "-no-head", What: "the same, and HEAD is refused with 405", Met: every,
				Rules: []Rule{{On: HeadBlob, Status: 405}, {On: Blobs, Range: row.ranges}}})
	}
	return out
}
