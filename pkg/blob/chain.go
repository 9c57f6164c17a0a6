package blob

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

// The hash chain. SHA-2 (FIPS 180-4) absorbs a message block by block: the
// state before piece i depends only on the pieces before it. Link i is that
// state; link 0 is the algorithm's initial value. A piece is proven alone by
// starting from its link and arriving at the next one, and the last piece by
// arriving at the digest itself. When every piece of a blob has passed, the
// links join from the initial value to the digest, and the blob is proven with
// no second pass over its bytes.

var (
	// ErrMismatch: a piece does not lead from its link to the next.
	ErrMismatch = errors.New("piece does not match its link of the hash chain")
	// ErrUnknownLink: a link that is needed is not known yet.
	ErrUnknownLink = errors.New("link of the hash chain is not known yet")
	// ErrConflict: a link differs from the one that is known already.
	ErrConflict = errors.New("link of the hash chain differs from the known one")
)

const (
	magic256 = "sha\x03"
	magic512 = "sha\x07"
)

// LinkSize is the length of a link of d's chain in bytes: 32 for sha256, 64 for
// sha512.
func (d Digest) LinkSize() int {
	if d.Algorithm() == "sha512" {
		return sha512.Size
	}
	return sha256.Size
}

// FirstLink is link 0 of d's chain: the algorithm's initial value.
func (d Digest) FirstLink() []byte {
	return linkOf(d, d.Hash())
}

func linkOf(d Digest, h hash.Hash) []byte {
	b, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		panic(err) // the standard library's SHA-2 never fails here
	}
	return bytes.Clone(b[len(magic256) : len(magic256)+d.LinkSize()])
}

// from returns the hash as it stands before the byte at off, given its link.
func from(d Digest, link []byte, off int64) (hash.Hash, error) {
	if len(link) != d.LinkSize() {
		return nil, fmt.Errorf("link has %d bytes, %s needs %d", len(link), d.Algorithm(), d.LinkSize())
	}
	h := d.Hash()
	magic := magic256
	if d.Algorithm() == "sha512" {
		magic = magic512
	}
	state := make([]byte, 0, len(magic)+len(link)+h.BlockSize()+8)
	state = append(state, magic...)
	state = append(state, link...)
	state = append(state, make([]byte, h.BlockSize())...)
	state = binary.BigEndian.AppendUint64(state, uint64(off))
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
		return nil, err
	}
	return h, nil
}

// Absorber absorbs one piece, part by part. It is for one goroutine at a time.
type Absorber struct {
	digest Digest
	layout Layout
	piece  int
	hash   hash.Hash
	length int64
}

// Absorb begins with piece i, whose link is given. The error says that the link is none
// of d's chain.
func Absorb(d Digest, l Layout, i int, link []byte) (*Absorber, error) {
	h, err := from(d, link, l.Offset(i))
	if err != nil {
		return nil, err
	}
	return &Absorber{digest: d, layout: l, piece: i, hash: h}, nil
}

// Add absorbs the next part of the piece.
func (a *Absorber) Add(part []byte) {
	_, _ = a.hash.Write(part) // it never fails
	a.length += int64(len(part))
}

// Next returns the next link, once all of the piece was added. For the last piece it
// returns nil, and ErrMismatch unless the digest was reached; also where the piece is
// not as long as it should be.
func (a *Absorber) Next() ([]byte, error) {
	if want := a.layout.Length(a.piece); a.length != want || want == 0 {
		return nil, fmt.Errorf("piece %d has %d bytes, its length is %d: %w", a.piece, a.length, want, ErrMismatch)
	}
	if a.piece < a.layout.Pieces()-1 {
		return linkOf(a.digest, a.hash), nil
	}
	if Of(a.digest.Algorithm(), a.hash) != a.digest {
		return nil, ErrMismatch
	}
	return nil, nil
}

// Advance absorbs piece i, whose link is given, and returns the next link, as Absorber
// does. It is safe for concurrent use and hashes the piece once.
func Advance(d Digest, l Layout, i int, link, piece []byte) (next []byte, err error) {
	if int64(len(piece)) != l.Length(i) {
		return nil, fmt.Errorf("piece %d has %d bytes, its length is %d: %w", i, len(piece), l.Length(i), ErrMismatch)
	}
	a, err := Absorb(d, l, i, link)
	if err != nil {
		return nil, err
	}
	a.Add(piece)
	return a.Next()
}

// Chain is the part of a blob's links that is known. It is not safe for
// concurrent use; hashing is Advance's work and needs no Chain.
type Chain struct {
	size  int
	links []byte // all links side by side, zero where unknown
	known *Bitmap
}

// NewChain returns the chain of a blob with link 0 known. A blob of n pieces has
// links 0 to n-1.
func NewChain(d Digest, l Layout) *Chain {
	c := &Chain{size: d.LinkSize(), known: NewBitmap(l.Pieces())}
	c.links = make([]byte, c.size*l.Pieces())
	if l.Pieces() > 0 {
		copy(c.links, d.FirstLink())
		c.known.Set(0)
	}
	return c
}

// Link returns link i, nil where it is not known. The bytes are as those of Links.
func (c *Chain) Link(i int) []byte {
	if !c.known.Has(i) {
		return nil
	}
	return c.links[i*c.size : (i+1)*c.size : (i+1)*c.size]
}

// Front is the first link that is not known; Len when all are.
func (c *Chain) Front() int { return c.known.NextClear(0) }

// Len is the number of links that the whole chain has: that of the pieces.
func (c *Chain) Len() int { return c.known.Len() }

// Whole tells whether every link is known.
func (c *Chain) Whole() bool { return c.known.Full() }

// Add records links that stand side by side, the first being link first. It
// takes all or none of them: an error says that they do not fit the blob, or
// wraps ErrConflict where a known link differs.
func (c *Chain) Add(first int, links []byte) error {
	n := len(links) / c.size
	if len(links)%c.size != 0 || first < 0 || first > c.Len() || n > c.Len()-first {
		return fmt.Errorf("%d bytes of links from %d: the chain has %d links of %d bytes", len(links), first, c.Len(), c.size)
	}
	for i := range n {
		if old := c.Link(first + i); old != nil && !bytes.Equal(old, links[i*c.size:(i+1)*c.size]) {
			return fmt.Errorf("link %d: %w", first+i, ErrConflict)
		}
	}
	for i := range n { // not one that is known: see Links
		if !c.known.Has(first + i) {
			copy(c.links[(first+i)*c.size:], links[i*c.size:(i+1)*c.size])
		}
	}
	c.known.SetRun(Run{First: first, Count: n})
	return nil
}

// Links returns the known links from first on, at most count and up to the
// first unknown one, side by side. The bytes are the chain's own; they never change,
// so others may go on reading them while the chain learns.
func (c *Chain) Links(first, count int) []byte {
	if first < 0 || first >= c.Len() {
		return nil
	}
	end := min(c.known.NextClear(first), first+count)
	if end <= first {
		return nil
	}
	return c.links[first*c.size : end*c.size : end*c.size]
}

// Proves tells whether the links that prove piece i are known: its own and the
// next, or for the last piece its own.
func (c *Chain) Proves(i int) bool {
	return c.known.Has(i) && (i == c.Len()-1 || c.known.Has(i+1))
}

// Contradicts tells whether the two chains, of one blob, know different links in the
// same place.
func (c *Chain) Contradicts(o *Chain) bool {
	for i := range c.Len() {
		if a, b := c.Link(i), o.Link(i); a != nil && b != nil && !bytes.Equal(a, b) {
			return true
		}
	}
	return false
}

// Forget drops every link but link 0: the chain led to a wrong digest. What Links has
// given stays as it is.
func (c *Chain) Forget() { c.Cut(1) }

// Cut drops every link from link first on, but link 0, as Forget does.
func (c *Chain) Cut(first int) {
	c.links = append(make([]byte, 0, len(c.links)), c.links...)
	for i := max(first, 1); i < c.Len(); i++ {
		c.known.Clear(i)
	}
}
