package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/process"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// TestDeniedNode denies a node: seconds later nobody gives it anything, also without a
// scheduler, and after a restart of everybody. Its own clients are served from the origin,
// as without a cluster. Once it is allowed, it has its part again.
func TestDeniedNode(t *testing.T) {
	const within = 3 * time.Second
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 1, 3)
	outcast, others := c.Nodes[2], c.Nodes[:2]
	pull := func(repository string, fromOthers bool) {
		t.Helper()
		img := push(t, o, repository, sample.Medium(), sample.OCI)
		pullAll(t, o, others, img, repository)
		before := fromNodes(t, outcast)
		pullAll(t, o, []*cluster.Member{outcast}, img, repository)
		if got := fromNodes(t, outcast) - before; (got > 0) != fromOthers {
			t.Errorf("%s: the node got %d bytes from other nodes", repository, got)
		}
	}
	pull("app/before", true) // so it knows the others, and has connections to them

	id, err := outcast.ID()
	must(t, err)
	node := func(word string) {
		t.Helper()
		_, err := process.Run(deadline(t), process.Spec{
			Name: word, Path: c.Scheduler.Program(), Args: []string{"node", word, id, "--config", c.Scheduler.File}, Dir: c.Scheduler.Dir,
		})
		must(t, err)
	}
	holders := append([]*cluster.Member{c.Seeds[0]}, others...)
	said := func(word string) time.Duration {
		t.Helper()
		begun := time.Now()
		for _, m := range holders {
			eventually(t, func(context.Context) error {
				heard, err := os.ReadFile(filepath.Join(m.DataDir, "identity", "denied.txt"))
				if err == nil && !strings.Contains(string(heard), id+" "+word+" ") {
					err = fmt.Errorf("%s has not heard that: %q", m.Name, heard)
				}
				return err
			})
		}
		return time.Since(begun)
	}
	node("deny")
	took := said("denied")
	t.Logf("everybody knows after %s", took)
	if took > within {
		t.Errorf("a denial reached everybody after %s, want at most %s", took, within)
	}
	pull("app/denied", false)

	// A scheduler that is away undoes nothing, nor do restarts.
	c.Scheduler.Kill()
	for _, m := range holders {
		must(t, m.Stop())
		must(t, m.Launch())
	}
	for _, m := range holders {
		eventually(t, process.AnswersBy(m.Client(), "http://"+m.Ops+"/healthz"))
	}
	pull("app/away", false)
	must(t, outcast.Stop())
	must(t, outcast.Launch())
	eventually(t, process.AnswersBy(outcast.Client(), "http://"+outcast.Ops+"/readyz"))
	pull("app/restarted", false)
	must(t, c.Scheduler.Start(deadline(t)))
	pull("app/back", false)

	node("allow")
	t.Logf("everybody knows that it is allowed after %s", said("allowed"))
	eventually(t, func(ctx context.Context) error {
		joined, err := outcast.Gauge(ctx, "damselfly_scheduler_joined")
		if err == nil && joined != 1 {
			err = fmt.Errorf("it does not attend")
		}
		return err
	})
	pull("app/allowed", true)
}

// fromNodes is how many bytes a node has from other nodes.
func fromNodes(t *testing.T, m *cluster.Member) int64 {
	t.Helper()
	pulled, err := m.Pulled(deadline(t))
	must(t, err)
	return pulled[cluster.FromSeed] + pulled[cluster.FromPeer]
}
