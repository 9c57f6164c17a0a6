package e2e

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/odd"
)

// envOddSeeds is how many random registries TestOddRandom makes, envOddFirst the seed
// of the first: a case that failed is made again by its seed and 1.
const (
	envOddSeeds = "DAMSELFLY_ODD_SEEDS"
	envOddFirst = "DAMSELFLY_ODD_FIRST"
)

// TestOddRandom pulls from registries that are odd in several ways at once, directly
// and through a node, as TestOdd does.
func TestOddRandom(t *testing.T) {
	n, first := number(t, envOddSeeds, 200), number(t, envOddFirst, 1)
	registries := odd.Random(first, n)
	world := startOdd(t, registries, cluster.Config{Nodes: 1, Alone: true})
	start := time.Now()
	found, err := odd.Judge(t.Context(), world.Server, world.faces[0], world.faces[0])
	must(t, err)
	byName := map[string]odd.Behaviour{}
	for _, behaviours := range registries {
		for _, b := range behaviours {
			byName[b.Name] = b
		}
	}
	for _, v := range found {
		if len(v.Worse) > 0 {
			t.Logf("%s=%s %s=1 makes this one again: %s", envOddFirst, strings.TrimPrefix(v.Behaviour, "random-"), envOddSeeds, byName[v.Behaviour])
		}
	}
	t.Logf("%d random registries in %.0f s", n, time.Since(start).Seconds())
	judgeOdd(t, found)
}

// number is a number in the environment.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	must(t, err)
	return n
}
