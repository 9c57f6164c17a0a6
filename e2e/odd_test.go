package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/odd"
)

// worseFile lists what is known to be worse through a node: behaviour and client. It
// can only shrink.
const worseFile = "testdata/odd-worse.txt"

// envOddWrite has TestOdd write what it found to worseFile.
const envOddWrite = "DAMSELFLY_ODD_WRITE"

// envOdd is a regular expression for the rows of TestOdd.
const envOdd = "DAMSELFLY_ODD"

// oddWorld is odd registries and a node in front of them.
type oddWorld struct {
	*odd.Server
	faces odd.Faces
}

// startOdd starts registries with these behaviours, and a node without a scheduler.
func startOdd(t *testing.T, behaviours [][]odd.Behaviour, cfg cluster.Config) oddWorld {
	t.Helper()
	server, err := odd.Start(odd.Config{Dir: directory(t), Registries: behaviours})
	must(t, err)
	t.Cleanup(server.Close)
	registries, storages := server.Hosts()
	cfg.Intercept = registries
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
	node := c.Nodes[0]
	faces, err := odd.NewFaces(node.Mirror, node.Proxy, server.CAFile, node.CAFile)
	must(t, err)
	return oddWorld{server, faces}
}

// alone gives each behaviour a registry of its own.
func alone(behaviours []odd.Behaviour) (out [][]odd.Behaviour) {
	for _, b := range behaviours {
		out = append(out, []odd.Behaviour{b})
	}
	return out
}

// TestOdd pulls from every odd registry as clients do, directly and twice through a
// node: nothing is worse through the node, and what is kept is told.
func TestOdd(t *testing.T) {
	known := knownWorse(t)
	only, err := regexp.Compile(os.Getenv(envOdd))
	must(t, err)
	rows := slices.DeleteFunc(odd.Behaviours(), func(b odd.Behaviour) bool { return !only.MatchString(b.Name) })
	world := startOdd(t, alone(rows), cluster.Config{Nodes: 1, Alone: true})
	start := time.Now()
	found, err := odd.Judge(t.Context(), world.Server, world.faces)
	must(t, err)
	t.Logf("%d behaviours in %.0f s", len(rows), time.Since(start).Seconds())
	for _, b := range rows {
		t.Run(b.Name, func(t *testing.T) {
			for _, v := range found {
				if v.Behaviour == b.Name {
					judgeOdd(t, v, known)
				}
			}
		})
	}
	reportOdd(t, found)
}

// judgeOdd fails where something is worse that is not known to be, and where
// something that is known to be is not.
func judgeOdd(t *testing.T, v odd.Verdict, known map[string]bool) {
	t.Helper()
	key := v.Behaviour + " " + v.Client
	if v.Late {
		key += " late"
	}
	switch worse := len(v.Worse) > 0; {
	case os.Getenv(envOddWrite) != "":
	case worse && !known[key]:
		t.Errorf("%s: worse than directly:\n\t%s", key, strings.Join(v.Worse, "\n\t"))
	case !worse && known[key]: // one that was late may be in time by chance
		t.Errorf("%s: not worse any more: strike it from %s", key, worseFile)
	}
}

func knownWorse(t *testing.T) map[string]bool {
	t.Helper()
	content, err := os.ReadFile(worseFile)
	must(t, err)
	out := map[string]bool{}
	for line := range strings.Lines(string(content)) {
		out[strings.TrimSpace(line)] = true
	}
	return out
}

// reportOdd logs everything that is worse or not kept.
func reportOdd(t *testing.T, found []odd.Verdict) {
	t.Helper()
	slices.SortFunc(found, func(a, b odd.Verdict) int {
		return strings.Compare(a.Behaviour+" "+a.Client, b.Behaviour+" "+b.Client)
	})
	var keys, lost strings.Builder
	var worse int
	for _, v := range found {
		if len(v.Worse) > 0 {
			worse++
			fmt.Fprintf(&keys, "%s %s%s\n", v.Behaviour, v.Client, map[bool]string{true: " late"}[v.Late])
			t.Logf("%s %s:\n\t%s", v.Behaviour, v.Client, strings.Join(v.Worse, "\n\t"))
		} else if v.Pulled && !v.Kept {
			fmt.Fprintf(&lost, " %s/%s", v.Behaviour, v.Client)
		}
	}
	t.Logf("%d of %d are worse through the node", worse, len(found))
	t.Logf("a second pull read blobs from the registry anew:%s", &lost)
	if os.Getenv(envOddWrite) != "" {
		must(t, os.WriteFile(worseFile, []byte(keys.String()), 0o644))
	}
}
