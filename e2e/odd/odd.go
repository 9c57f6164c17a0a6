// Package odd is a scripted registry and the judge of who stands in front of it.
// Each behaviour is one way in which a registry that clients can pull from is
// unusual: it refuses HEAD, lies about lengths, redirects, is slow, ignores ranges.
// Clients' request lists are run directly and through a node, and whatever is worse
// through the node is told. It speaks HTTPS with HTTP/2 under a CA of its own.
package odd

import "time"

// Kind is a set of kinds of requests.
type Kind int

// The kinds of requests, and sets of them.
const (
	HeadTag Kind = 1 << iota
	GetTag
	HeadDigest // of a manifest
	GetDigest
	HeadBlob
	GetBlob

	HeadManifest = HeadTag | HeadDigest
	GetManifest  = GetTag | GetDigest
	Heads        = HeadManifest | HeadBlob
	Gets         = GetManifest | GetBlob
	Manifests    = HeadManifest | GetManifest
	Blobs        = HeadBlob | GetBlob
	All          = Heads | Gets
)

// Behaviour is one way in which a registry is odd. All its repositories are: each is
// made when it is first asked for, with an image of its own.
type Behaviour struct {
	// Name is the first component of its repositories; What says what the registry
	// does, and Met which clients meet it and how.
	Name, What, Met string
	Shape           Shape
	Auth            Auth
	Demand          Demand
	// Rules say how requests are answered. The first that matches counts; where none
	// does the answer is a healthy registry's.
	Rules []Rule
	// HTTP1 is for servers that do not offer HTTP/2.
	HTTP1 bool
	// Patience is how long clients wait for an answer; 6 s when 0.
	Patience time.Duration
	// Before is asked by somebody else before each pull.
	Before []Visit
	// Unlisted is for registries whose storage and realm no configuration names: the
	// registry's CA signs for them too.
	Unlisted bool
	// Clients are those that pull from it; nil is all.
	Clients []string
}

// Visit is a GET by somebody else: of a repository's tag, or of its last layer.
type Visit struct {
	Repository string // in the behaviour's; "" is the one that is pulled next
	User       string // of basic authentication
	Layer      bool
}

// Shape says how an image differs from a usual one.
type Shape struct {
	// Layers is for the sizes of the layers; nil for the usual.
	Layers []int64
	// LayerSize and ConfigSize change the sizes that the manifest tells; nil: true
	// sizes. A negative one is left out.
	LayerSize, ConfigSize func(int64) int64
	// ChildType is the media type that the index tells of its manifests.
	ChildType string
	// EmptyLayer makes the first layer one of no bytes, TinyConfig the config {}.
	EmptyLayer, TinyConfig bool
	// Schema1 puts a signed manifest of schema 1 at the tag: its digest is not the
	// hash of its bytes.
	Schema1 bool
	// Docker is for Docker's media types.
	Docker bool
	// Single puts the manifest at the tag, without an index.
	Single bool
}

// Auth says what credential a registry wants; the zero value is none.
type Auth struct {
	// Scheme is basic or bearer.
	Scheme string
	// Realm is where tokens are had: at the registry's own host, or on another host
	// under the same CA.
	RealmElsewhere bool
	// Query is put into the realm's URL.
	Query string
	// Scope is what the challenge asks for: "" the usual, - none at all, or %s
	// replaced by the repository.
	Scope string
	// Public gives tokens to anybody.
	Public bool
	// Wait is how long the realm takes.
	Wait time.Duration
	// Forbidden answers a wrong credential with 403.
	Forbidden bool
	// OnlyTags lets anybody read what is named by digest.
	OnlyTags bool
}

// Demand is a header that every request must bring; Status answers those without.
type Demand struct {
	Header, Value string
	Status        int
}

// Rule is how requests of some kinds are answered. The zero value of each field is
// what a healthy registry does.
type Rule struct {
	On Kind
	// Layer restricts blobs to the last layer, Repository to one of the behaviour's,
	// User to one user of basic authentication; First to so many requests a
	// repository and kind.
	Layer      bool
	Repository string
	User       string
	First      int

	// Wait passes before the headers. With Lazy it is work that is done once for what
	// is asked for: a client that hangs up before its end makes it start anew.
	Wait time.Duration
	Lazy bool
	// Early sends a 103 first.
	Early bool
	// Hang never answers, Drop ends the connection or stream without an answer.
	Hang, Drop bool
	// Status is answered in place of content.
	Status     int
	RetryAfter string
	// Redirect sends the client to another URL, where what follows here holds.
	Redirect *Redirect

	// Length is the Content-Length that a HEAD tells, Digest the digest that any
	// answer tells, Type its Content-Type (- for none), ETag its ETag.
	Length     Length
	Digest     Digest
	Type, ETag string

	// Framing is how a body's end is told, and Trailer adds a trailer to it. Close
	// ends the connection after it.
	Framing        Framing
	Trailer, Close bool
	// Gzip encodes bodies unless the client accepts identity only.
	Gzip bool
	// Range is what becomes of Range.
	Range Range
	// FirstByte passes between the headers and the first byte. Then Cut ends the body
	// after half of it, or before its first byte with CutAtOnce.
	FirstByte      time.Duration
	Cut, CutAtOnce bool
}

// Redirect is where a client is sent.
type Redirect struct {
	// Status is 307 when 0.
	Status int
	// Same keeps it on the registry's host, Relative by a path alone.
	Same, Relative bool
	// Hops is how many redirects follow the first.
	Hops int
	// Only is the one method that the URL is good for; others get 403.
	Only string
	// Once is for a URL that is good for one request, Expires for how long it is.
	Once    bool
	Expires time.Duration
	// Refuse is the status of whatever comes.
	Refuse     int
	RetryAfter string
}

// Length is what a HEAD says in Content-Length.
type Length int

// The lengths.
const (
	LengthRight Length = iota
	LengthZero
	LengthHalf
	LengthPlus
	LengthMinus
	LengthDouble
	LengthEncoded // that of the gzipped bytes
	LengthNone
)

// Digest is what an answer says in Docker-Content-Digest.
type Digest int

// The digests.
const (
	DigestRight   Digest = iota
	DigestOther          // of other bytes that the repository has
	DigestFormer         // of the tag's former target
	DigestUnknown        // of nothing that the repository has
	DigestNone
	DigestChild // all of the answer describes the manifest in the index
)

// Framing is how the end of a body is told.
type Framing int

// The framings. Over HTTP/2 both of the unusual ones are a body of no length.
const (
	FramingLength Framing = iota
	FramingChunked
	FramingClose
)

// Range is what becomes of a request for a range.
type Range int

// The treatments of ranges.
const (
	RangeHonoured  Range = iota
	RangeIgnored         // 200 and all
	Range416             // refused, each with its status
	Range403             //
	Range500             //
	RangeWrong           // other bytes than asked for, and told so
	RangeMultipart       // a multipart of one part
	RangeUntold          // 206 without Content-Range
)
