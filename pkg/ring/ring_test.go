package ring_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/damselfly-p2p/damselfly/pkg/ring"
)

func members() *rapid.Generator[[]string] {
	return rapid.SliceOfNDistinct(rapid.String(), 1, 12, rapid.ID[string])
}

// Releases meet in one cluster: a changed score would make them disagree.
func TestScoreNeverChanges(t *testing.T) {
	for _, c := range []struct {
		key, member string
		want        uint64
	}{
		{"", "", 0x4f2db50f124040cd},
		{"sha256:abc", "seed-0", 0x27c6d9d8108c09e2},
		{"sha256:abc", "seed-1", 0xca970c80b9aa6b32},
	} {
		if got := ring.Score(c.key, c.member); got != c.want {
			t.Errorf("Score(%q, %q) = %#x, want %#x", c.key, c.member, got, c.want)
		}
	}
	if ring.Score("ab", "c") == ring.Score("a", "bc") {
		t.Error("key and member run together")
	}
}

func TestNobodyOwnsAnythingWithoutMembers(t *testing.T) {
	if o := ring.Owner("k", nil); o != "" {
		t.Errorf("owner %q", o)
	}
	if r := ring.Rank("k", nil); len(r) != 0 {
		t.Errorf("rank %q", r)
	}
}

func TestEverybodyNamesTheSameOwner(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := members().Draw(t, "members")
		key := rapid.String().Draw(t, "key")
		other := rapid.Permutation(all).Draw(t, "other order")
		if a, b := ring.Owner(key, all), ring.Owner(key, other); a != b {
			t.Fatalf("owner depends on the order: %q, %q", a, b)
		}
		ranked := ring.Rank(key, other)
		if !slices.Equal(ranked, ring.Rank(key, all)) || ranked[0] != ring.Owner(key, all) {
			t.Fatalf("rank %q, owner %q", ranked, ring.Owner(key, all))
		}
		a, b := slices.Clone(ranked), slices.Clone(all)
		slices.Sort(a)
		slices.Sort(b)
		if !slices.Equal(a, b) {
			t.Fatalf("rank %q of members %q", a, b)
		}
	})
}

func TestLeavingMovesOnlyWhatTheMemberOwned(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := members().Draw(t, "members")
		gone := rapid.SampledFrom(all).Draw(t, "gone")
		rest := slices.DeleteFunc(slices.Clone(all), func(m string) bool { return m == gone })
		key := rapid.String().Draw(t, "key")
		before, after := ring.Owner(key, all), ring.Owner(key, rest)
		if before != gone && after != before {
			t.Fatalf("%q left, but the key moved from %q to %q", gone, before, after)
		}
		if before == gone && len(rest) > 0 && after != ring.Rank(key, all)[1] {
			t.Fatalf("the key went to %q, not to the second in rank", after)
		}
	})
}

func TestSharesAreEven(t *testing.T) {
	for _, n := range []int{2, 3, 5, 16} {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf("seed-%d", i))
		}
		const keys = 20000
		owned := map[string]int{}
		for i := range keys {
			owned[ring.Owner(fmt.Sprintf("sha256:%064x", i), all)]++
		}
		mean := float64(keys) / float64(n)
		for _, m := range all {
			// Six standard deviations of a fair draw.
			if d := math.Abs(float64(owned[m]) - mean); d > 6*math.Sqrt(mean) {
				t.Errorf("%d members: %s owns %d keys, the fair share is %.0f", n, m, owned[m], mean)
			}
		}
	}
}

func BenchmarkOwner(b *testing.B) {
	all := []string{"12D3KooWA", "12D3KooWB", "12D3KooWC"}
	for b.Loop() {
		ring.Owner("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", all)
	}
}
