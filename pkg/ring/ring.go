// Package ring holds rendezvous hashing: which of several members owns a key.
//
// Everybody who knows the same members names the same owner, in any order and
// without talking; a member that leaves moves only the keys that it owned, and
// one that joins takes only its own share. The schedulers spread blobs with it,
// and a scheduler chooses with it the seed that reads a blob's origin.
//
// It is pure and keeps nothing: members are few (schedulers, seeds), so hashing
// all of them for a key costs less than any structure would.
package ring

import (
	"cmp"
	"slices"
)

// FNV-1a, 64 bit.
const (
	offset64 = 14695981039346656037
	prime64  = 1099511628211
)

// Score is the weight of member for key: the member with the highest score owns
// the key. It is part of the contract between nodes and schedulers of different
// releases and never changes.
func Score(key, member string) uint64 {
	h := uint64(offset64)
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * prime64
	}
	// A byte that UTF-8 never has parts the two: ("ab","c") is not ("a","bc").
	h = (h ^ 0xff) * prime64
	for i := range len(member) {
		h = (h ^ uint64(member[i])) * prime64
	}
	return mix(h)
}

// mix spreads every bit over all others (the finalizer of splitmix64); FNV
// alone leaves scores of similar names close together.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// Owner is the member that owns key, "" when there are no members. The order of
// members does not matter.
func Owner(key string, members []string) string {
	owner, best := "", uint64(0)
	for i, m := range members {
		if s := Score(key, m); i == 0 || s > best || s == best && m < owner {
			owner, best = m, s
		}
	}
	return owner
}

// Rank lists members by their claim on key, the owner first: who takes over
// when those before are gone. The slice is new.
func Rank(key string, members []string) []string {
	ranked := slices.Clone(members)
	slices.SortFunc(ranked, func(a, b string) int {
		return cmp.Or(cmp.Compare(Score(key, b), Score(key, a)), cmp.Compare(a, b))
	})
	return ranked
}
