package e2e

import (
	"context"
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// TestOriginFaults pulls through two nodes while the origin misbehaves once on
// the largest layer: the image arrives all the same.
func TestOriginFaults(t *testing.T) {
	const half = 10 << 20
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 1, 2)
	for _, row := range []struct {
		name   string
		faults []origin.Fault // one a request
		// extra is how many bytes of the layer the origin may send beyond its size.
		extra int64
	}{
		{"cut half way", []origin.Fault{origin.Cut(half)}, 1 << 20},
		{"cut twice", []origin.Fault{origin.Cut(half), origin.Cut(half / 2)}, 2 << 20},
		{"cut and then ignores the range", []origin.Fault{origin.Cut(half), origin.IgnoreRange}, half + 1<<20},
		{"429 with Retry-After", []origin.Fault{origin.Status(http.StatusTooManyRequests, "Retry-After", "1")}, 0},
		{"500", []origin.Fault{origin.Status(http.StatusInternalServerError)}, 0},
		{"503 twice", []origin.Fault{origin.Status(http.StatusServiceUnavailable), origin.Status(http.StatusServiceUnavailable)}, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			repository := "app/" + name(t)
			img := push(t, o, repository, sample.Medium(), sample.OCI)
			layer := largest(img)
			for _, f := range row.faults {
				o.Inject(origin.Rule{Match: origin.Blob(layer.Digest), Times: 1, Fault: f})
			}
			start := time.Now()
			pullAll(t, o, c.Nodes, img, repository)
			sent := o.Counts().BlobBytes[layer.Digest]
			t.Logf("%.1f s, the origin sent %.2f times the layer", time.Since(start).Seconds(), float64(sent)/float64(layer.Size()))
			if sent > layer.Size()+row.extra {
				t.Errorf("the origin sent %d bytes of a layer of %d, want at most %d more", sent, layer.Size(), row.extra)
			}
		})
	}
}

// TestWrongBytes lets the origin send one wrong bit in a layer of many pieces: no
// client completes the layer with it, nothing of it is kept, and the next pull
// gets the layer right.
func TestWrongBytes(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 1, 2)
	img := push(t, o, "app/img", sample.Medium(), sample.OCI)
	layer := largest(img)
	o.Inject(origin.Rule{Match: origin.Blob(layer.Digest), Times: 1, Fault: origin.Flip(layer.Size() / 2)})
	pullRightOrCutOff(t, o, c.Nodes, "app/img", layer)
	eventually(t, func(ctx context.Context) error { return pullNodes(ctx, o, c.Nodes, img, "app/img") })
	if sent := o.Counts().BlobBytes[layer.Digest]; sent < layer.Size()*3/2 {
		t.Errorf("the origin sent %d bytes of the layer: the wrong ones were kept", sent)
	}
}

// TestOriginRefusals checks that a client is told what the origin says, and that
// the next pull works when the origin does.
func TestOriginRefusals(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 1, 1)
	for _, code := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound} {
		t.Run(http.StatusText(code), func(t *testing.T) {
			repository := "app/" + name(t)
			img := push(t, o, repository, sample.Small(), sample.OCI)
			header := []string{}
			if code == http.StatusUnauthorized {
				header = []string{"WWW-Authenticate", `Basic realm="test"`}
			}
			remove := o.Inject(origin.Rule{Match: origin.Repository(repository), Fault: origin.Status(code, header...)})
			_, err := through(o, c.Nodes[0]).Get(deadline(t), "/v2/"+repository+"/manifests/v1")
			if status := statusOf(err); status != code {
				t.Errorf("the client was answered %v, want the origin's %d", err, code)
			}
			remove()
			eventually(t, func(ctx context.Context) error {
				_, err := through(o, c.Nodes[0]).Pull(ctx, repository, "v1")
				return err
			})
			checkOriginPaidOnce(t, o, img)
		})
	}
}

// TestSchedulerKilled kills the scheduler while two nodes pull: they finish, and
// when it is back the next image is pulled once again.
func TestSchedulerKilled(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 1, 2)
	first := push(t, o, "app/first", sample.Large(), sample.OCI)
	layer := largest(first)
	release := make(chan struct{})
	remove := o.Inject(origin.Rule{Match: origin.Blob(layer.Digest), Times: 1, Fault: origin.Hold(layer.Size()/2, release)})
	defer remove()
	done := make(chan error, 1)
	go func() { done <- pullNodes(deadline(t), o, c.Nodes, first, "app/first") }()
	if err := o.WaitBytes(deadline(t), layer.Digest, layer.Size()/2); err != nil {
		t.Fatal(err)
	}
	c.Scheduler.Kill()
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ratio := float64(o.Counts().BlobBytes[layer.Digest]) / float64(layer.Size())
	t.Logf("the origin sent %.2f times the layer that was under way", ratio)
	if ratio > 3 {
		t.Error("more than the seed and the two nodes read the whole layer from the origin")
	}

	second := push(t, o, "app/second", sample.Medium(), sample.OCI)
	pullAll(t, o, c.Nodes, second, "app/second")

	if err := c.Scheduler.Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Members() {
		if err := m.Ready(deadline(t)); err != nil {
			t.Fatal(err)
		}
	}
	third := push(t, o, "app/third", sample.Medium(), sample.OCI)
	pullAll(t, o, c.Nodes, third, "app/third")
	checkOriginPaidOnce(t, o, third)
}

// TestSchedulerHangs stops the scheduler without closing its connections: a pull
// goes on without it after a moment, and with it when it is back.
func TestSchedulerHangs(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 1, 2)
	first := push(t, o, "app/first", sample.Small(), sample.OCI)
	second := push(t, o, "app/second", sample.Small(), sample.OCI)
	if err := c.Scheduler.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	pullAll(t, o, c.Nodes[:1], first, "app/first")
	took := time.Since(start)
	t.Logf("pull of 2.4 MB with a hanging scheduler: %.2f s", took.Seconds())
	if took > 5*time.Second {
		t.Errorf("a hanging scheduler held a small pull up for %s", took)
	}
	if err := c.Scheduler.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Members() {
		if err := m.Ready(deadline(t)); err != nil {
			t.Fatal(err)
		}
	}
	pullAll(t, o, c.Nodes, second, "app/second")
	checkOriginPaidOnce(t, o, second)
}

// TestSeedKilled kills the seed that reads the origin half way through a layer:
// another seed goes on where the nodes' pieces end.
func TestSeedKilled(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 2, 2)
	img := push(t, o, "app/img", []int64{48 << 20}, sample.OCI)
	layer := largest(img)
	release := make(chan struct{})
	defer close(release)
	// The second reader of the layer is not held up.
	o.Inject(origin.Rule{Match: origin.Blob(layer.Digest), Times: 1, Fault: origin.Hold(layer.Size()/2, release)})
	ctx := deadline(t)
	done := make(chan error, 1)
	go func() { done <- pullNodes(ctx, o, c.Nodes, img, "app/img") }()
	if err := o.WaitBytes(ctx, layer.Digest, layer.Size()/2); err != nil {
		t.Fatal(err)
	}
	// What the seed has read has come to a node, too.
	eventually(t, func(ctx context.Context) error {
		pulled, err := c.Nodes[0].Pulled(ctx)
		if got := pulled[cluster.FromSeed] + pulled[cluster.FromPeer]; err == nil && got < layer.Size()/2-2<<20 {
			err = fmt.Errorf("%s has %d bytes", c.Nodes[0].Name, got)
		}
		return err
	})
	var reader int
	for i, seed := range c.Seeds {
		if pulled, err := seed.Pulled(ctx); err != nil {
			t.Fatal(err)
		} else if pulled[cluster.FromOrigin] >= layer.Size()/4 {
			reader = i
		}
	}
	c.Seeds[reader].Kill()
	killed := time.Now()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ratio, took := float64(o.Counts().BlobBytes[layer.Digest])/float64(layer.Size()), time.Since(killed)
	t.Logf("the origin sent %.2f times the layer; %.1f s after the seed's death all had it", ratio, took.Seconds())
	if took > 15*time.Second {
		t.Errorf("the seed's death held the nodes up for %s", took)
	}
	if ratio > 1.10 {
		t.Errorf("the origin sent %.2f times the layer after the seed died half way, want at most 1.10", ratio)
	}
}

// TestNodeKilled kills a node by SIGKILL while it pulls and starts it again: the
// next pull goes on where it was.
func TestNodeKilled(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startAlone(t, o)
	img := push(t, o, "app/img", sample.Large(), sample.OCI)
	layer := largest(img)
	node := c.Nodes[0]
	// Slow enough for what has come to be on disk before the node dies.
	remove := o.Inject(origin.Rule{Match: origin.Blob(layer.Digest), Fault: origin.Slow(origin.Rate(16 << 20))})
	pull := make(chan error, 1)
	go func() {
		pull <- through(o, node).Blob(context.WithoutCancel(t.Context()), "app/img", layer.Digest, layer.Size())
	}()
	if err := o.WaitBytes(deadline(t), layer.Digest, layer.Size()*3/4); err != nil {
		t.Fatal(err)
	}
	node.Kill()
	if err := <-pull; err == nil {
		t.Fatal("the pull ended well although the node was killed in the midst of it")
	}
	remove()
	if err := node.Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	pullAll(t, o, c.Nodes, img, "app/img")
	ratio := float64(o.Counts().BlobBytes[layer.Digest]) / float64(layer.Size())
	t.Logf("the origin sent %.2f times the layer", ratio)
	if ratio > 1.30 {
		t.Errorf("the origin sent %.2f times the layer; starting over sends 1.75 times", ratio)
	}
}

// TestRestartKeepsBlobs stops a node well and starts it again: what it held it
// still holds.
func TestRestartKeepsBlobs(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startAlone(t, o)
	img := push(t, o, "app/img", sample.Medium(), sample.OCI)
	pullAll(t, o, c.Nodes, img, "app/img")
	if err := c.Nodes[0].Stop(); err != nil {
		t.Fatal(err)
	}
	before := o.Counts().Bytes(layerDigests(img)...)
	if err := c.Nodes[0].Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	pullAll(t, o, c.Nodes, img, "app/img")
	if after := o.Counts().Bytes(layerDigests(img)...); after != before {
		t.Errorf("the restarted node read %d bytes of layers from the origin again", after-before)
	}
}

// TestFullDisk gives one of two nodes a disk on which the image has no room: its
// client gets the image all the same, and the other node is not harmed.
func TestFullDisk(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 1, 1)
	small, err := c.New(cluster.Member{Name: "small", Role: cluster.Node, DataDir: directory(t)})
	must(t, err)
	must(t, syscall.Mount("tmpfs", small.DataDir, "tmpfs", 0, "size=16m"))
	t.Cleanup(func() { must(t, syscall.Unmount(small.DataDir, 0)) })
	must(t, small.Start(deadline(t)))
	t.Cleanup(func() { must(t, small.Stop()) })
	img := push(t, o, "app/img", sample.Large(), sample.OCI)
	nodes := append([]*cluster.Member{small}, c.Nodes...)
	start := time.Now()
	pullAll(t, o, nodes, img, "app/img")
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("the pulls took %s", took)
	}
	pullAll(t, o, nodes, img, "app/img") // and again, with the disk full from the start
	layer := largest(img)
	ratio := float64(o.Counts().BlobBytes[layer.Digest]) / float64(layer.Size())
	t.Logf("the origin sent %.2f times the largest layer", ratio)
	if ratio > 3.05 { // once for the cluster, and what found no room at each pull
		t.Errorf("the origin sent %.2f times the largest layer", ratio)
	}
}

// TestNodeStopsWhilePulling stops a node by SIGTERM while a client pulls a layer
// from it: the client gets the whole layer before the node is gone.
func TestNodeStopsWhilePulling(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startAlone(t, o)
	img := push(t, o, "app/img", sample.Medium(), sample.OCI)
	layer := largest(img)
	o.Inject(origin.Rule{Match: origin.Blob(layer.Digest), Fault: origin.Slow(origin.Rate(20 << 20))})
	pull := make(chan error, 1)
	go func() {
		pull <- through(o, c.Nodes[0]).Blob(context.WithoutCancel(t.Context()), "app/img", layer.Digest, layer.Size())
	}()
	if err := o.WaitBytes(deadline(t), layer.Digest, layer.Size()/4); err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes[0].Stop(); err != nil {
		t.Error(err)
	}
	if err := <-pull; err != nil {
		t.Errorf("the client's download did not survive the node's orderly end: %v", err)
	}
}
