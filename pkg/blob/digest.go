// Package blob holds the arithmetic of blobs and pieces: digests, piece
// layouts, runs, bitmaps and the hash chain that proves a piece alone.
//
// It is pure: no I/O, no clock, no goroutine. Everything else in Damselfly
// builds on it; it builds on nothing of ours.
package blob

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"strings"
)

// Digest names a blob: an algorithm and the lower-case hex hash of its bytes,
// as the OCI image spec writes it ("sha256:…", descriptor.md, Digests). The
// registered algorithms sha256 and sha512 are understood. A Digest made by
// ParseDigest is valid and safe as a file name part after its colon.
type Digest string

const (
	sha256Prefix = "sha256:"
	sha512Prefix = "sha512:"
)

// ParseDigest checks s and returns it as a Digest. The error says what is wrong
// with it.
func ParseDigest(s string) (Digest, error) {
	alg, hex, ok := strings.Cut(s, ":")
	if !ok {
		return "", fmt.Errorf("digest %q: want algorithm:hex, such as sha256:<64 hex digits>", clip(s))
	}
	var want int
	switch alg {
	case "sha256":
		want = sha256.Size * 2
	case "sha512":
		want = sha512.Size * 2
	default:
		return "", fmt.Errorf("digest %q: algorithm is not supported; sha256 and sha512 are", clip(s))
	}
	if len(hex) != want {
		return "", fmt.Errorf("digest %q: %s needs %d hex digits, this has %d", clip(s), alg, want, len(hex))
	}
	for i := range len(hex) {
		c := hex[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", fmt.Errorf("digest %q: only the lower-case hex digits 0-9a-f may follow the colon", clip(s))
		}
	}
	return Digest(s), nil
}

func clip(s string) string {
	if len(s) > 160 {
		return s[:160] + "…"
	}
	return s
}

// Algorithm is "sha256" or "sha512".
func (d Digest) Algorithm() string {
	alg, _, _ := strings.Cut(string(d), ":")
	return alg
}

// Hex is the hash in lower-case hex.
func (d Digest) Hex() string {
	_, hex, _ := strings.Cut(string(d), ":")
	return hex
}

func (d Digest) String() string { return string(d) }

// Hash returns a new hash of the digest's algorithm.
func (d Digest) Hash() hash.Hash {
	if strings.HasPrefix(string(d), sha512Prefix) {
		return sha512.New()
	}
	return sha256.New()
}

// Of returns the digest of the bytes in h, which was made by the Hash of a
// digest with algorithm alg.
func Of(alg string, h hash.Hash) Digest {
	return Digest(fmt.Sprintf("%s:%x", alg, h.Sum(nil)))
}

// FromBytes returns the sha256 digest of b.
func FromBytes(b []byte) Digest {
	return Digest(fmt.Sprintf("%s%x", sha256Prefix, sha256.Sum256(b)))
}

// Matches tells whether b is the blob that d names.
func (d Digest) Matches(b []byte) bool {
	h := d.Hash()
	h.Write(b)
	return Of(d.Algorithm(), h) == d
}
