package core

// Policies to compare with: what schedulers do that do not count copies.

// randomPolicy picks any piece, from whom rarestPolicy would.
type randomPolicy struct{ rarestPolicy }

func (randomPolicy) piece(s *State, _ *member, cand bitset) int { return s.pick(cand) }

// inorderPolicy picks the first piece: clients get their bytes in order, and
// everybody fetches the same at the same time.
type inorderPolicy struct{ rarestPolicy }

func (inorderPolicy) piece(_ *State, _ *member, cand bitset) int { return cand.next(0) }
