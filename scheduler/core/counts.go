package core

import "math/bits"

// counts is a count for each piece of a blob, kept in bit planes: bit i of plane k of
// a word of 64 pieces is bit k of the count of piece i. So a whole bitmap is added or
// taken away with a few operations a word, and the least counts are found by masks.
type counts struct {
	planes int
	v      []uint64 // the planes of word 0, of word 1, …
}

// firstPlanes hold counts up to 255; further ones come when they are needed.
const firstPlanes = 8

func newCounts(n int) counts {
	return counts{planes: firstPlanes, v: make([]uint64, firstPlanes*words(n))}
}

func (c *counts) word(w int) []uint64 { return c.v[w*c.planes : (w+1)*c.planes] }

// add adds one to the pieces of word w that x has.
func (c *counts) add(w int, x uint64) {
	for i := range c.word(w) {
		if x == 0 {
			return
		}
		p := &c.v[w*c.planes+i]
		*p, x = *p^x, *p&x
	}
	if x != 0 {
		c.grow()
		c.v[w*c.planes+c.planes/2] = x
	}
}

// sub takes one away. The counts must be above zero.
func (c *counts) sub(w int, x uint64) {
	for i := range c.word(w) {
		if x == 0 {
			return
		}
		p := &c.v[w*c.planes+i]
		*p, x = *p^x, ^*p&x
	}
}

func (c *counts) grow() {
	old := *c
	*c = counts{planes: 2 * old.planes, v: make([]uint64, 2*len(old.v))}
	for w := range len(old.v) / old.planes {
		copy(c.word(w), old.word(w))
	}
}

// some is the pieces of word w whose count is above zero.
func (c *counts) some(w int) (x uint64) {
	for _, p := range c.word(w) {
		x |= p
	}
	return x
}

// of is the count of piece p.
func (c *counts) of(p int) (n int) {
	for i, x := range c.word(p >> 6) {
		n |= int(x>>(p&63)&1) << i
	}
	return n
}

// atLeast is the pieces of word w whose count is n or more.
func (c *counts) atLeast(w, n int) uint64 {
	if n >= 1<<c.planes {
		return 0
	}
	more, same := uint64(0), ^uint64(0)
	planes := c.word(w)
	for i := len(planes) - 1; i >= 0; i-- {
		if n>>i&1 == 0 {
			more |= same & planes[i]
			same &^= planes[i]
		} else {
			same &= planes[i]
		}
	}
	return more | same
}

// fewest leaves of the candidates in [from, end) those with the least count.
func (c *counts) fewest(cand bitset, from, end int) {
	for w := range cand {
		if w < from>>6 || w >= words(end) {
			cand[w] = 0
		} else {
			cand[w] &= after(w, from) &^ after(w, end)
		}
	}
	for i := c.planes - 1; i >= 0; i-- {
		some := false
		for w := from >> 6; w < words(end) && !some; w++ {
			some = cand[w]&^c.v[w*c.planes+i] != 0
		}
		for w := from >> 6; w < words(end) && some; w++ {
			cand[w] &^= c.v[w*c.planes+i]
		}
	}
}

// pick is a random one of the set pieces, -1 when there is none.
func (s *State) pick(set bitset) int {
	n := set.size()
	if n == 0 {
		return -1
	}
	skip := 0
	if n > 1 {
		skip = s.rng.IntN(n)
	}
	for w, x := range set {
		if k := bits.OnesCount64(x); skip >= k {
			skip -= k
			continue
		}
		for ; skip > 0; skip-- {
			x &= x - 1
		}
		return w<<6 + bits.TrailingZeros64(x)
	}
	return -1
}
