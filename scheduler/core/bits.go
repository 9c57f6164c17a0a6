package core

import "math/bits"

// bitset is a set of pieces, 64 a word. Bits past the last piece are never set.
type bitset []uint64

func newBitset(n int) bitset { return make(bitset, words(n)) }

func words(n int) int { return (n + 63) / 64 }

func (b bitset) has(i int) bool { return b[i>>6]>>(i&63)&1 == 1 }
func (b bitset) set(i int)      { b[i>>6] |= 1 << (i & 63) }
func (b bitset) clear(i int)    { b[i>>6] &^= 1 << (i & 63) }

// bit is piece p in its word.
func bit(p int) uint64 { return 1 << (p & 63) }

// fill sets pieces 0 to n-1.
func (b bitset) fill(n int) {
	for w := range b {
		b[w] = ones(w, n)
	}
}

// size is how many pieces are set.
func (b bitset) size() int {
	n := 0
	for _, x := range b {
		n += bits.OnesCount64(x)
	}
	return n
}

// next is the first set piece at or after i, or -1.
func (b bitset) next(i int) int {
	for w := i >> 6; w < len(b); w++ {
		x := b[w]
		if w == i>>6 {
			x &= ^uint64(0) << (i & 63)
		}
		if x != 0 {
			return w<<6 + bits.TrailingZeros64(x)
		}
	}
	return -1
}

// last is the last set piece, or -1.
func (b bitset) last() int {
	for w := len(b) - 1; w >= 0; w-- {
		if b[w] != 0 {
			return w<<6 + 63 - bits.LeadingZeros64(b[w])
		}
	}
	return -1
}

// ones is word w of the set of all n pieces.
func ones(w, n int) uint64 {
	if rest := n - w<<6; rest < 64 {
		return 1<<rest - 1
	}
	return ^uint64(0)
}

// after is the mask of word w that leaves pieces from i on.
func after(w, i int) uint64 {
	switch {
	case i <= w<<6:
		return ^uint64(0)
	case i >= (w+1)<<6:
		return 0
	}
	return ^uint64(0) << (i & 63)
}
