package blob

import (
	"fmt"
	"math/bits"
)

// Bounds of the piece length, in bytes.
const (
	MinPieceLength = 256 << 10
	MaxPieceLength = 16 << 20
	// MaxSize is the largest blob that a Layout describes: 2^20 pieces of the
	// largest length, 16 TiB.
	MaxSize = MaxPieceLength << 20
)

// Layout cuts a blob into pieces. It is a function of the blob's size alone, so
// two nodes never negotiate it. The zero Layout is that of the empty blob.
type Layout struct {
	size   int64
	length int64
}

// NewLayout returns the layout of a blob of size bytes: the piece length is the
// power of two nearest below size/1024, at least MinPieceLength and at most
// MaxPieceLength. It errs on a size below zero or above MaxSize.
func NewLayout(size int64) (Layout, error) {
	if size < 0 || size > MaxSize {
		return Layout{}, fmt.Errorf("blob size %d: must be between 0 and %d", size, int64(MaxSize))
	}
	length := int64(MinPieceLength)
	if ideal := size / 1024; ideal > MinPieceLength {
		length = 1 << (bits.Len64(uint64(ideal)) - 1)
	}
	return Layout{size: size, length: min(length, MaxPieceLength)}, nil
}

// Size is the blob's size in bytes.
func (l Layout) Size() int64 { return l.size }

// PieceLength is the length of every piece but the last, in bytes.
func (l Layout) PieceLength() int64 { return l.length }

// Pieces is the number of pieces; an empty blob has none.
func (l Layout) Pieces() int {
	if l.size == 0 {
		return 0
	}
	return int((l.size + l.length - 1) / l.length)
}

// Offset is where piece i starts in the blob.
func (l Layout) Offset(i int) int64 { return int64(i) * l.length }

// Length is the length of piece i, in bytes; 0 when there is no such piece.
func (l Layout) Length(i int) int64 {
	if i < 0 || i >= l.Pieces() {
		return 0
	}
	return min(l.length, l.size-l.Offset(i))
}

// At is the piece that holds the byte at offset off.
func (l Layout) At(off int64) int { return int(off / l.length) }

// Covering is the run of pieces that hold the n bytes at off, cut to the blob.
func (l Layout) Covering(off, n int64) Run {
	if off < 0 || n <= 0 || off >= l.size {
		return Run{}
	}
	first := l.At(off)
	last := l.At(min(off+n, l.size) - 1)
	return Run{First: first, Count: last - first + 1}
}

// All is the run of every piece.
func (l Layout) All() Run { return Run{Count: l.Pieces()} }

// Bytes is how many bytes the pieces of r hold.
func (l Layout) Bytes(r Run) int64 {
	if r.Count <= 0 {
		return 0
	}
	return min(l.Offset(r.End()), l.size) - l.Offset(r.First)
}

// Check errs unless r lies within the blob and is not empty. Every run from a
// wire goes through it before anything is allocated for it.
func (l Layout) Check(r Run) error {
	n := l.Pieces()
	if r.First < 0 || r.Count <= 0 || r.First >= n || r.Count > n-r.First {
		return fmt.Errorf("pieces %d+%d: the blob has %d", r.First, r.Count, n)
	}
	return nil
}

// Run is Count consecutive pieces starting at First.
type Run struct{ First, Count int }

// End is the piece after the last of the run.
func (r Run) End() int { return r.First + r.Count }

// Contains tells whether piece i is in the run.
func (r Run) Contains(i int) bool { return i >= r.First && i < r.End() }
