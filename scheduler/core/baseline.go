package core

import "math/bits"

// Policies to compare with: what schedulers do that do not count copies.

// randomPolicy picks any piece, from whom rarestPolicy would.
type randomPolicy struct{ rarestPolicy }

func (randomPolicy) piece(s *State, _ *member, cand bitset) int {
	skip := s.rng.IntN(cand.size())
	for w, x := range cand {
		if n := bits.OnesCount64(x); skip >= n {
			skip -= n
			continue
		}
		for ; skip > 0; skip-- {
			x &= x - 1
		}
		return w<<6 + bits.TrailingZeros64(x)
	}
	return -1
}

// inorderPolicy picks the first piece: clients get their bytes in order, and
// everybody fetches the same at the same time.
type inorderPolicy struct{ rarestPolicy }

func (inorderPolicy) piece(_ *State, _ *member, cand bitset) int { return cand.next(0) }
