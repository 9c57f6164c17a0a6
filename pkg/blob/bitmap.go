package blob

import "math/bits"

// Bitmap is a set of pieces of one blob. It is not safe for concurrent use.
type Bitmap struct {
	words []uint64
	n     int
	count int
}

// NewBitmap returns an empty set of pieces 0 to n-1.
func NewBitmap(n int) *Bitmap {
	return &Bitmap{words: make([]uint64, (n+63)/64), n: n}
}

// Len is the number of pieces that the set ranges over.
func (b *Bitmap) Len() int { return b.n }

// Count is the number of pieces in the set.
func (b *Bitmap) Count() int { return b.count }

// Full tells whether every piece is in the set.
func (b *Bitmap) Full() bool { return b.count == b.n }

// Has tells whether piece i is in the set; a piece out of range never is.
func (b *Bitmap) Has(i int) bool {
	return i >= 0 && i < b.n && b.words[i>>6]>>(i&63)&1 == 1
}

// Set puts piece i into the set and tells whether it was new. A piece out of
// range is not taken.
func (b *Bitmap) Set(i int) bool {
	if i < 0 || i >= b.n || b.Has(i) {
		return false
	}
	b.words[i>>6] |= 1 << (i & 63)
	b.count++
	return true
}

// Clear takes piece i out of the set and tells whether it was there.
func (b *Bitmap) Clear(i int) bool {
	if !b.Has(i) {
		return false
	}
	b.words[i>>6] &^= 1 << (i & 63)
	b.count--
	return true
}

// SetRun puts the part of r that is in range into the set.
func (b *Bitmap) SetRun(r Run) {
	for i := max(r.First, 0); i < min(r.End(), b.n); i++ {
		b.Set(i)
	}
}

// Words are the set's bits, 64 pieces a word, lowest piece first. The slice is
// the set's own: read it, do not write it.
func (b *Bitmap) Words() []uint64 { return b.words }

// Clone returns a copy.
func (b *Bitmap) Clone() *Bitmap {
	c := *b
	c.words = append([]uint64(nil), b.words...)
	return &c
}

// NextClear is the first piece at or after i that is not in the set, or Len.
func (b *Bitmap) NextClear(i int) int {
	for ; i < b.n; i = (i>>6 + 1) << 6 {
		if w := ^b.words[i>>6] >> (i & 63); w != 0 {
			return min(i+bits.TrailingZeros64(w), b.n)
		}
	}
	return b.n
}

// NextSet is the first piece at or after i that is in the set, or Len.
func (b *Bitmap) NextSet(i int) int {
	for ; i < b.n; i = (i>>6 + 1) << 6 {
		if w := b.words[i>>6] >> (i & 63); w != 0 {
			return i + bits.TrailingZeros64(w)
		}
	}
	return b.n
}

// Runs lists the set as runs, in order.
func (b *Bitmap) Runs() []Run {
	var runs []Run
	for i := b.NextSet(0); i < b.n; {
		end := b.NextClear(i)
		runs = append(runs, Run{First: i, Count: end - i})
		i = b.NextSet(end)
	}
	return runs
}
