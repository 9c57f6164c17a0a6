package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/process"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// buildRogue builds the rogue beside the other programs once.
var buildRogue = sync.OnceValues(func() (string, error) {
	root, err := filepath.Abs("..")
	if err != nil {
		return "", err
	}
	bin, flags := cache("bin"), []string(nil)
	if os.Getenv(envRace) != "" {
		bin, flags = cache("bin-race"), []string{"-race"}
	}
	return filepath.Join(bin, "rogue"), build(context.Background(), root, bin, flags, "./e2e/rogue")
})

// startRogue starts a rogue of a role in a cluster and waits until it attends. When
// the test ends it must end well.
func startRogue(t *testing.T, c *cluster.Cluster, role cluster.Role, args ...string) *cluster.Member {
	t.Helper()
	program, err := buildRogue()
	must(t, err)
	m, err := c.New(cluster.Member{Name: "rogue", Role: role})
	must(t, err)
	if role == cluster.Seed {
		args = append(args, "--seed")
	}
	p, err := process.Start(process.Spec{Name: m.Name, Path: program, Args: append([]string{"--config", m.File}, args...), Dir: m.Dir})
	must(t, err)
	t.Cleanup(func() {
		if err := p.Stop(15 * time.Second); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of the rogue:\n%s", m.Log(60))
		}
	})
	must(t, p.Ready(deadline(t), process.Answers("http://"+m.Ops+"/readyz?strict")))
	return m
}

// subject is how a rogue is told of a blob.
func subject(b sample.Blob, repository string) string {
	return fmt.Sprintf("%s,%d,%s,%s", b.Digest, b.Size(), registry, repository)
}

// TestRogue has four nodes pull an image while a fifth member of their cluster
// misbehaves with its largest layer: every node gets every byte right, in time, the
// origin pays once, and the lie was told.
func TestRogue(t *testing.T) {
	for _, row := range []struct {
		name string
		args []string
		// pulls: the rogue has pulled the layer before the others begin.
		pulls bool
		// quarantined: who lies so is shut out.
		quarantined bool
	}{
		{"wrong bytes", []string{"--lie", "wrong-bytes"}, true, true},
		{"wrong bytes once it is whole", []string{"--lie", "wrong-bytes", "--begin", "whole"}, true, true},
		{"invented bytes", []string{"--lie", "wrong-bytes", "--claim", "sealed"}, false, true},
		{"has not what it says", []string{"--lie", "missing", "--claim", "pieces"}, false, false},
		{"has not what it says is whole", []string{"--lie", "missing", "--claim", "sealed"}, false, false},
		{"a byte a second", []string{"--lie", "trickle"}, true, true}, // no honest node sends crumbs
		{"hangs", []string{"--lie", "hang"}, true, false},
		{"hangs and has nothing", []string{"--lie", "hang", "--claim", "sealed"}, false, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			o := startOrigin(t, origin.Public, false)
			// Who lies to one node is avoided by that node; three of them shut it out. The
			// crowd of one image may be over before three have met the rogue.
			images := 1
			if row.quarantined {
				images = 5
			}
			repository := func(i int) string { return fmt.Sprintf("app/img%d", i) }
			args, all := row.args, make([]*sample.Image, images)
			for i := range all {
				all[i] = push(t, o, repository(i), sample.Large(), sample.OCI)
				if !row.pulls {
					args = append(args, "--blob", subject(largest(all[i]), repository(i)))
				}
			}
			c := startCluster(t, o, 1, 4)
			rogue := startRogue(t, c, cluster.Node, args...)
			for i, img := range all {
				layer := largest(img)
				if row.pulls {
					must(t, through(o, rogue).Blob(deadline(t), repository(i), layer.Digest, layer.Size()))
				}
				start := time.Now()
				pullAll(t, o, c.Nodes, img, repository(i))
				if took := time.Since(start); took > 10*time.Second {
					t.Errorf("the pulls took %v", took)
				}
				ratio := float64(o.Counts().BlobBytes[layer.Digest]) / float64(layer.Size())
				if ratio > 1.05 {
					t.Errorf("the origin sent %.2f times the layer", ratio)
				}
				t.Logf("%v, the origin sent %.2f times the layer", time.Since(start), ratio)
				if quarantined(t, c) {
					break
				}
			}
			checkLies(t, rogue, true)
			if got := quarantined(t, c); got != row.quarantined {
				t.Errorf("the rogue is quarantined: %v, want %v", got, row.quarantined)
			}
		})
	}
}

// checkLies checks whether a rogue has lied to anybody.
func checkLies(t *testing.T, rogue *cluster.Member, want bool) {
	t.Helper()
	lies, err := rogue.Gauge(deadline(t), "rogue_lies_total")
	must(t, err)
	if (lies > 0) != want {
		t.Errorf("the rogue has lied %v times, want any: %v", lies, want)
	}
}

// quarantined tells whether the scheduler has shut anybody out.
func quarantined(t *testing.T, c *cluster.Cluster) bool {
	t.Helper()
	n, err := c.Scheduler.Gauge(deadline(t), "damselfly_peers", "state", "quarantined")
	must(t, err)
	return n > 0
}

// TestRogueBegins has a rogue begin to lie in the midst of its life: before that it is
// a node like any other.
func TestRogueBegins(t *testing.T) {
	o := startOrigin(t, origin.Public, false)
	c := startCluster(t, o, 1, 4)
	rogue := startRogue(t, c, cluster.Node, "--lie", "wrong-bytes", "--begin", "told")
	crowd := func(repository string) {
		img := push(t, o, repository, sample.Large(), sample.OCI)
		pullAll(t, o, []*cluster.Member{rogue}, img, repository)
		pullAll(t, o, c.Nodes, img, repository)
		checkOriginPaidOnce(t, o, img)
	}
	crowd("app/honest")
	checkLies(t, rogue, false)
	if quarantined(t, c) {
		t.Fatal("the rogue is quarantined before it lied")
	}
	resp, err := http.Post("http://"+rogue.Ops+"/begin", "", nil)
	must(t, err)
	must(t, resp.Body.Close())
	for i := range 5 {
		crowd(fmt.Sprintf("app/lies%d", i))
		checkLies(t, rogue, true)
		if quarantined(t, c) {
			return
		}
	}
	t.Error("five crowds were lied to, and the rogue is not quarantined")
}

// TestForgedChain has a node claim a blob with a hash chain of its own making, before
// anybody wants the blob. No client completes it with wrong bytes: who has got some
// already is cut off before the end, the next pull is right, and the node is shut out.
func TestForgedChain(t *testing.T) {
	for _, claim := range []string{"pieces", "sealed"} {
		t.Run(claim, func(t *testing.T) {
			o := startOrigin(t, origin.Public, false)
			img := push(t, o, "app/img", sample.Large(), sample.OCI)
			layer := largest(img)
			c := startCluster(t, o, 1, 4)
			rogue := startRogue(t, c, cluster.Node, "--lie", "forged-chain", "--claim", claim, "--blob", subject(layer, "app/img"))
			errs := pullRightOrCutOff(t, o, c.Nodes, "app/img", layer)
			checkLies(t, rogue, true)
			start := time.Now()
			pullAll(t, o, c.Nodes, img, "app/img")
			if !quarantined(t, c) {
				t.Error("the rogue is not quarantined")
			}
			t.Logf("first pulls: %v; the next: %v", errs, time.Since(start))
			if ratio := float64(o.Counts().BlobBytes[layer.Digest]) / float64(layer.Size()); ratio > 1.5 {
				t.Errorf("the origin sent %.2f times the layer", ratio)
			}
		})
	}
}
