package e2e

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// TestColdNodes pulls one image through four cold nodes at once: the origin pays
// once, and every node gets it whole.
func TestColdNodes(t *testing.T) {
	for _, row := range []struct {
		name   string
		seeds  int
		bucket bool
	}{
		{name: "one seed", seeds: 1},
		{name: "three seeds", seeds: 3},
		{name: "no seed"},
		{name: "blobs in a bucket", seeds: 1, bucket: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			o := startOrigin(t, origin.Token, row.bucket)
			img := push(t, o, "app/cold", sample.Large(), sample.OCI)
			c := startCluster(t, o, row.seeds, 4)
			pullAll(t, o, c.Nodes, img, "app/cold")
			checkOriginPaidOnce(t, o, img)
			if redirects := o.Counts().Status[http.StatusTemporaryRedirect]; row.bucket && redirects == 0 {
				t.Error("the registry redirected nothing to its bucket, so nothing was tested")
			}
			if row.seeds > 0 {
				checkNodesReadNoOrigin(t, c, img)
			}
		})
	}
}

// checkNodesReadNoOrigin checks by the nodes' own numbers that layers came to
// them from seeds and from each other, every byte of them.
func checkNodesReadNoOrigin(t *testing.T, c *cluster.Cluster, img *sample.Image) {
	t.Helper()
	var peers int64
	for _, n := range c.Nodes {
		var pulled map[string]int64
		// A node counts a run of pieces when the run is over, after the client has it.
		eventually(t, func(ctx context.Context) (err error) {
			if pulled, err = n.Pulled(ctx); err != nil {
				return err
			}
			if sum, want := cluster.Sum(pulled), img.Native.LayerBytes(); sum < want {
				return fmt.Errorf("%s says that it pulled %d bytes, want the layers' %d at least", n.Name, sum, want)
			}
			return nil
		})
		t.Logf("%s pulled %v", n.Name, pulled)
		if pulled[cluster.FromOrigin] > 64<<10 {
			t.Errorf("%s read %d bytes from the origin although there is a seed", n.Name, pulled[cluster.FromOrigin])
		}
		peers += pulled[cluster.FromPeer]
	}
	if peers == 0 {
		t.Error("no node had a byte from another node")
	}
}

// TestPrivateSwarm pulls a private image through a swarm: each node may because
// its client may, the origin pays once, and a node whose client has no right gets
// nothing although its neighbours have it all.
func TestPrivateSwarm(t *testing.T) {
	for _, kind := range []origin.Kind{origin.Basic, origin.Token} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			const repository = "app/private"
			o := startOrigin(t, kind, false)
			img := push(t, o, repository, sample.Medium(), sample.OCI)
			c := startCluster(t, o, 1, 3)
			for _, n := range c.Nodes[:2] {
				if _, err := through(o, n).Pull(deadline(t), repository, "v1"); err != nil {
					t.Fatal(err)
				}
			}
			checkOriginPaidOnce(t, o, img)
			for _, n := range c.Nodes {
				for _, user := range []string{origin.Stranger, ""} {
					checkRefused(t, o, n.Mirror, img, repository, user)
				}
			}
			checkOriginPaidOnce(t, o, img)
		})
	}
}
