package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/process"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// TestRestartWithoutScheduler restarts a node while no scheduler runs: it is ready, knows
// the seed that it had been told of, and has from there what the origin already sent.
func TestRestartWithoutScheduler(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 1, 2)
	img := push(t, o, "app/img", sample.Medium(), sample.OCI)
	pullAll(t, o, c.Nodes[:1], img, "app/img")
	node := c.Nodes[1]
	seed, err := c.Seeds[0].ID()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func(context.Context) error {
		kept, err := os.ReadFile(filepath.Join(node.DataDir, "cluster.json"))
		if err == nil && !strings.Contains(string(kept), seed) {
			err = fmt.Errorf("%s is not in %s", seed, kept)
		}
		return err
	})
	c.Scheduler.Kill()
	if err := node.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := node.Launch(); err != nil {
		t.Fatal(err)
	}
	ready := process.AnswersBy(node.Client(), "http://"+node.Ops+"/readyz")
	eventually(t, ready)
	pullAll(t, o, c.Nodes[1:], img, "app/img")
	checkOriginPaidOnce(t, o, img)
	if strict := process.AnswersBy(node.Client(), "http://"+node.Ops+"/readyz?strict"); strict(deadline(t)) == nil {
		t.Error("the node does not say that no scheduler answers it")
	}
}
