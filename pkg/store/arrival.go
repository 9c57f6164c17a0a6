package store

import (
	"crypto/sha512"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Arrival is a piece that comes in parts. Each is hashed as it is added, while the
// processor has it at hand; nothing is written before Put has proven the whole. It is
// for one goroutine at a time. One that is not put needs no end.
type Arrival struct {
	b      *Blob
	i      int
	parts  [][]byte
	link   [sha512.Size]byte
	hashed *blob.Absorber // of all parts, from link on; nil: of none
}

// Arrive begins piece i of the blob. The caller has the blob in use until after Put.
func (b *Blob) Arrive(i int) *Arrival {
	a := &Arrival{b: b, i: i}
	if b.layout.Check(blob.Run{First: i, Count: 1}) != nil || b.load() != nil {
		return a // Put says so
	}
	// Who proves the piece in the end, and against which link, is Put's business: a link
	// that is not known yet or changes meanwhile costs hashing it then.
	if p, held, err := b.proofOf(i, true); err == nil && !held {
		_ = a.absorb(p.link) // Put tries again and says why
	}
	return a
}

// Add takes the next part of the piece. The part stays as it is until Put has returned.
func (a *Arrival) Add(part []byte) {
	a.parts = append(a.parts, part)
	if a.hashed != nil {
		a.hashed.Add(part)
	}
}

// Put is Blob.Put with all the parts that were added.
func (a *Arrival) Put() error {
	defer func() { a.parts = nil }()
	return a.b.put(a, false)
}

// next is where the piece leads to from link.
func (a *Arrival) next(link [sha512.Size]byte) ([]byte, error) {
	if a.hashed == nil || a.link != link {
		if err := a.absorb(link); err != nil {
			return nil, err
		}
	}
	return a.hashed.Next()
}

// absorb hashes what was added, from link on.
func (a *Arrival) absorb(link [sha512.Size]byte) (err error) {
	a.link = link
	a.hashed, err = blob.Absorb(a.b.digest, a.b.layout, a.i, link[:a.b.digest.LinkSize()])
	if err != nil {
		return err
	}
	for _, part := range a.parts {
		a.hashed.Add(part)
	}
	return nil
}
