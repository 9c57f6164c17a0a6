package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
)

// shapes are the scenarios in which nothing breaks: who wants what, and when.
func shapes() []scenario {
	return []scenario{
		{name: "flash", what: "all nodes pull one image at once", run: flash},
		{name: "no-seed", what: "all nodes pull one image at once, and there is no seed: one of them reads the origin for all", prepare: func(o *options) { o.Seeds = 0 }, run: flash},
		{name: "staggered", what: "nodes come one after another, evenly over the time that one link needs", run: staggered},
		{name: "small", what: "all nodes pull an image of 20 layers of 1 MiB at once", prepare: small, run: flash},
		{name: "mixed", what: "all nodes pull an image of 40 layers of very different sizes at once, of --blob bytes together", prepare: mixed, run: flash},
		{name: "late", what: "all nodes but one pull at once; the last comes when they are done", run: late},
		{name: "two", what: "all nodes pull two images at once, each of half of --blob", prepare: two, run: flash},
		{name: "slow", what: "a quarter of the nodes have a tenth of the rate", prepare: slow, run: slowNodes},
		{name: "racks", what: "nodes stand in racks of four, whose uplinks carry half of what their nodes do", prepare: inRacks, run: racks},
	}
}

func flash(ctx context.Context, w *world) error {
	w.flash(ctx, w.cluster.Nodes)
	return ctx.Err()
}

// staggered spreads the nodes evenly over F/u, the first at once.
func staggered(ctx context.Context, w *world) error {
	alone := time.Duration(float64(w.uniqueBytes()) / w.payload * float64(time.Second))
	step := alone / time.Duration(len(w.cluster.Nodes))
	w.each(w.cluster.Nodes, func(i int, m *cluster.Member) {
		if wait(ctx, time.Duration(i)*step) {
			w.pullImages(ctx, m, w.images)
		}
	})
	return ctx.Err()
}

func small(o *options) { o.layers = slices.Repeat([]int64{1 << 20}, 20) }

// mixed makes 40 layers whose sizes are spread as those of real images are: most of
// them small, and a few with most of the bytes.
func mixed(o *options) {
	const layers, spread = 40, 1.2 // each is 1.2 times the one before
	sum, weight := 0.0, 1.0
	weights := make([]float64, layers)
	for i := range weights {
		weights[i] = weight
		sum += weight
		weight *= spread
	}
	for _, w := range weights {
		o.layers = append(o.layers, max(int64(w/sum*float64(o.size)), 1<<10))
	}
}

// late has the last node pull alone when all others have everything.
func late(ctx context.Context, w *world) error {
	nodes := w.cluster.Nodes
	if len(nodes) < 2 {
		return fmt.Errorf("scenario late needs two nodes")
	}
	w.flash(ctx, nodes[:len(nodes)-1])
	w.pullImages(ctx, nodes[len(nodes)-1], w.images)
	last := slices.MaxFunc(w.begun(), func(a, b *pull) int { return cmp.Compare(a.start, b.start) })
	alone := float64(w.uniqueBytes()) / w.payload
	w.figure("late_ratio", last.took().Seconds()/alone)
	return ctx.Err()
}

func two(o *options) { o.images, o.layers = 2, []int64{o.size / 2} }

// slow chooses the last quarter of the nodes: which they are makes no difference.
func slow(o *options) {
	for i := o.Nodes - o.Nodes/4; i < o.Nodes; i++ {
		o.slow = append(o.slow, i)
	}
}

// slowNodes tells apart what the fast nodes needed, whom the slow ones must not hold up.
func slowNodes(ctx context.Context, w *world) error {
	w.flash(ctx, w.cluster.Nodes)
	lines := w.lines()
	size := w.uniqueBytes()
	var fast, bound time.Duration
	for i, m := range w.cluster.Nodes {
		if !slices.Contains(w.slow, i) {
			fast, bound = max(fast, w.nodeTime(m.Name)), lines.nodeBound(size, i)
		}
	}
	w.figure("fast_ratio", over(fast, bound))
	return ctx.Err()
}

func inRacks(o *options) {
	const size, oversubscribed = 4, 2
	o.racks = max(o.Nodes/size, 1)
	o.uplink = o.rate * size / oversubscribed
}

// racks counts how often each rack got the bytes through its uplink.
func racks(ctx context.Context, w *world) error {
	w.flash(ctx, w.cluster.Nodes)
	most := 0.0
	for _, r := range w.racks {
		c, err := r.Counters()
		if err != nil {
			return err
		}
		most = max(most, float64(c.Received))
	}
	// The wire carries headers beside the payload.
	payload := w.payload * 8 / float64(w.rate)
	w.figure("uplink_ratio", most*payload/float64(w.uniqueBytes()))
	return ctx.Err()
}
