package e2e

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/odd"
)

// Settings of the tests with odd registries, as environment variables.
const (
	// envOdd is a regular expression for the names of rows.
	envOdd = "DAMSELFLY_ODD"
)

// oddName is what real clients call the odd registries; Go's clients use no proxy for
// an address of loopback.
const oddName = "odd.test"

// oddWorld is odd registries and a cluster in front of them.
type oddWorld struct {
	*odd.Server
	*cluster.Cluster
	faces []odd.Faces // of each node
}

// startOdd starts registries with these behaviours, and a cluster.
func startOdd(t *testing.T, behaviours [][]odd.Behaviour, cfg cluster.Config) oddWorld {
	t.Helper()
	server, err := odd.Start(odd.Config{Dir: directory(t), Registries: behaviours})
	must(t, err)
	t.Cleanup(server.Close)
	registries, storages := server.Hosts()
	for _, host := range registries { // by a name too, as real clients want it
		_, port, _ := strings.Cut(host, ":")
		name := oddName + ":" + port
		cfg.Hosts = append(cfg.Hosts, cluster.Host{Name: name, Endpoint: "https://" + host, CAFile: server.CAFile})
		cfg.Intercept = append(cfg.Intercept, host, name)
	}
	for _, host := range slices.Concat(registries, storages) {
		cfg.Hosts = append(cfg.Hosts, cluster.Host{Name: host, Endpoint: "https://" + host, CAFile: server.CAFile})
	}
	cfg.Dir, cfg.Bin, cfg.LogLevel = directory(t), programs(t).bin, os.Getenv(envLog)
	c, err := cluster.Start(deadline(t), cfg)
	must(t, err)
	t.Cleanup(func() {
		must(t, c.Close())
		if t.Failed() {
			t.Logf("logs:\n%s", c.Logs(40))
		}
	})
	world := oddWorld{Server: server, Cluster: c}
	for _, node := range c.Nodes {
		faces, err := odd.NewFaces(node.Mirror, node.Proxy, server.CAFile, node.CAFile)
		must(t, err)
		world.faces = append(world.faces, faces)
	}
	return world
}

// TestOdd pulls from every odd registry as clients do, directly and twice through a
// node: nothing is worse through the node, and what is kept is told.
func TestOdd(t *testing.T) {
	testOdd(t, odd.Behaviours(), cluster.Config{Nodes: 1, Alone: true})
}

// TestOddSlow waits for registries as long as their clients do.
func TestOddSlow(t *testing.T) {
	testOdd(t, odd.Slow(), cluster.Config{Nodes: 1, Alone: true})
}

// TestOddCluster pulls from one registry of each kind through one node of a cluster and
// then through another.
func TestOddCluster(t *testing.T) {
	rows := []string{
		"healthy", "head-manifest-404", "head-blob-403", "head-blob-signed", "head-blob-length-half", "head-digest-former", "chunked",
		"chunked-no-size", "close-delimited-no-size", "layer-size-plus", "config-size-half", "sizes-lie-everywhere", "child-type-differs", "schema1",
		"gzip", "slow-fetch", "slow-first-byte-4", "fails-503", "fails-cut-headers", "fails-cut-once", "redirect-blob-307", "redirect-relative",
		"redirect-once", "redirect-expires", "redirect-private", "redirect-chunked", "range-ignored", "range-416", "range-wrong", "range-untold",
		"limit-user", "limit-repository", "demand-401", "no-digest", "auth-basic", "auth-bearer-elsewhere", "empty-layer",
	}
	behaviours := slices.DeleteFunc(odd.Behaviours(), func(b odd.Behaviour) bool { return !slices.Contains(rows, b.Name) })
	for i := range behaviours {
		behaviours[i].Clients = []string{"containerd", "podman", "chunked", "stranger"}
	}
	testOdd(t, behaviours, cluster.Config{Seeds: 1, Nodes: 2})
}

// alone gives each behaviour that this run is about a registry of its own.
func alone(t *testing.T, behaviours []odd.Behaviour) (out [][]odd.Behaviour) {
	t.Helper()
	only, err := regexp.Compile(os.Getenv(envOdd))
	must(t, err)
	for _, b := range behaviours {
		if only.MatchString(b.Name) {
			out = append(out, []odd.Behaviour{b})
		}
	}
	return out
}

// testOdd judges each behaviour at a registry of its own.
func testOdd(t *testing.T, behaviours []odd.Behaviour, cfg cluster.Config) {
	t.Helper()
	registries := alone(t, behaviours)
	world := startOdd(t, registries, cfg)
	start := time.Now()
	found, err := odd.Judge(t.Context(), world.Server, world.faces[0], world.faces[len(world.faces)-1])
	must(t, err)
	t.Logf("%d behaviours in %.0f s", len(registries), time.Since(start).Seconds())
	judgeOdd(t, found)
}

// What may be by chance, as a share of all pulls: late, for others have the machine too,
// and read anew by the second pull, where the first found out what the content is. A
// registry that is slow and wrong about sizes at once is asked twice, and is late for good.
const (
	mayBeLate = 0.06
	mayBeAnew = 0.15
)

// judgeOdd fails where something is worse than directly, and where more is late or read
// anew than may be by chance.
func judgeOdd(t *testing.T, found []odd.Verdict) {
	t.Helper()
	var worse, late, anew int
	for _, v := range found {
		switch {
		case v.Late:
			late++
			t.Logf("%s %s is late:\n\t%s", v.Behaviour, v.Client, strings.Join(v.Worse, "\n\t"))
		case len(v.Worse) > 0:
			worse++
			t.Errorf("%s %s is worse than directly:\n\t%s", v.Behaviour, v.Client, strings.Join(v.Worse, "\n\t"))
		case v.Pulled && !v.Kept && v.Client != "probe": // a probe reads ranges
			anew++
			t.Logf("%s %s: the second pull read the registry's blobs anew", v.Behaviour, v.Client)
		}
	}
	t.Logf("of %d pulls: %d worse through the node, %d late, %d read anew", len(found), worse, late, anew)
	if most := 3 + mayBeLate*float64(len(found)); float64(late) > most {
		t.Errorf("%d are late, more than %.0f", late, most)
	}
	if most := 3 + mayBeAnew*float64(len(found)); float64(anew) > most {
		t.Errorf("%d are read anew, more than %.0f", anew, most)
	}
}
