package e2e

import (
	"fmt"
	"os"
	"path/filepath"
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
	// envOddWrite has the tests write the list of what is worse anew.
	envOddWrite = "DAMSELFLY_ODD_WRITE"
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
	testOdd(t, odd.Behaviours(), cluster.Config{Nodes: 1, Alone: true}, "odd.txt")
}

// TestOddSlow waits for registries as long as their clients do.
func TestOddSlow(t *testing.T) {
	testOdd(t, odd.Slow(), cluster.Config{Nodes: 1, Alone: true}, "odd-slow.txt")
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
	testOdd(t, behaviours, cluster.Config{Seeds: 1, Nodes: 2}, "odd-cluster.txt")
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

// testOdd judges each behaviour at a registry of its own, and compares with the list of
// what is known to be worse: file below testdata, of behaviour and client. It can only
// shrink.
func testOdd(t *testing.T, behaviours []odd.Behaviour, cfg cluster.Config, file string) {
	t.Helper()
	registries := alone(t, behaviours)
	file = filepath.Join("testdata", file)
	known := knownWorse(t, file)
	world := startOdd(t, registries, cfg)
	start := time.Now()
	found, err := odd.Judge(t.Context(), world.Server, world.faces[0], world.faces[len(world.faces)-1])
	must(t, err)
	t.Logf("%d behaviours in %.0f s", len(registries), time.Since(start).Seconds())
	writeWorse(t, found, file)
	for _, r := range registries {
		t.Run(r[0].Name, func(t *testing.T) {
			for _, v := range found {
				if v.Behaviour == r[0].Name {
					judgeOdd(t, v, known)
				}
			}
		})
	}
}

// judgeOdd fails where something is worse that is not known to be, and where
// something that is known to be is not. What is only late, or read anew, is so by
// chance: it may also not be.
func judgeOdd(t *testing.T, v odd.Verdict, known map[string]bool) {
	t.Helper()
	key, chance := keyOf(v)
	if len(v.Worse) > 0 {
		t.Logf("%s is worse than directly:\n\t%s", key, strings.Join(v.Worse, "\n\t"))
	}
	was := v.Behaviour + " " + v.Client
	switch {
	case os.Getenv(envOddWrite) != "":
	case key != "" && !known[key] && (!chance || !known[was]):
		t.Errorf("%s: worse than directly; %s", key, strings.Join(v.Worse, "; "))
	case key != was && known[was] && !v.Late:
		t.Errorf("%s: not worse any more: strike it from the list in testdata", was)
	}
}

// keyOf names a verdict in the lists; one that is good has no name. chance tells that
// it may be good the next time.
func keyOf(v odd.Verdict) (key string, chance bool) {
	name := v.Behaviour + " " + v.Client
	switch {
	case v.Late:
		return name + " late", true
	case len(v.Worse) > 0:
		return name, false
	case v.Pulled && !v.Kept && v.Client != "probe": // a probe reads ranges
		return name + " read-anew", true
	default:
		return "", false
	}
}

func knownWorse(t *testing.T, file string) map[string]bool {
	t.Helper()
	content, err := os.ReadFile(file)
	must(t, err)
	out := map[string]bool{}
	for line := range strings.Lines(string(content)) {
		out[strings.TrimSpace(line)] = true
	}
	return out
}

// writeWorse sums up what was found, and writes the list where that is wanted.
func writeWorse(t *testing.T, found []odd.Verdict, file string) {
	t.Helper()
	var keys []string
	counts := map[string]int{}
	for _, v := range found {
		if key, _ := keyOf(v); key != "" {
			keys = append(keys, key)
			counts[strings.TrimPrefix(key, v.Behaviour+" "+v.Client)]++
		}
	}
	slices.Sort(keys)
	t.Logf("of %d: %d are worse through the node, %d late, and the second pull of %d read the registry's blobs anew",
		len(found), counts[""], counts[" late"], counts[" read-anew"])
	if os.Getenv(envOddWrite) != "" {
		must(t, os.WriteFile(file, fmt.Appendln(nil, strings.Join(keys, "\n")), 0o644))
	}
}
