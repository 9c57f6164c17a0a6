package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
)

// memberFaults are those of schedulers, seeds, nodes and their links.
func memberFaults() []scenario {
	return []scenario{
		{name: "scheduler-killed", what: "the scheduler that the pulls are with is killed half way, and started again after 5 s", run: schedulerKilled},
		{name: "scheduler-hangs", what: "all schedulers are stopped (SIGSTOP) half way, until the pulls are over", before: reference, run: schedulerHangs},
		{name: "scheduler-pauses", what: "all schedulers are stopped half way for 3 s, as where their machine is moved", run: pausing(func(w *world) []*cluster.Member { return w.cluster.Schedulers })},
		{name: "all-pause", what: "every scheduler, seed and node is stopped half way for 3 s", run: pausing(func(w *world) []*cluster.Member { return w.cluster.Members() })},
		{name: "schedulers-gone", what: "all schedulers are killed before the pull, when one node has the image", prepare: patient, before: firstWhole, run: schedulersGone},
		{name: "seed-killed", what: "the seed that reads the origin is killed when that has sent half", run: seedKilled},
		{name: "nodes-killed", what: "30 % of the nodes are killed half way", run: nodesKilled},
		{name: "partition", what: "half of the nodes lose their links half way, for 10 s", run: partition},
	}
}

// schedulerKilled kills the one that the pulls are with: it owns what most wait for.
func schedulerKilled(ctx context.Context, w *world) error {
	const away = 5 * time.Second
	return w.during(ctx, w.cluster.Nodes, w.reachHalf, func(ctx context.Context) error {
		busiest, most := w.cluster.Schedulers[0], -1.0
		for _, m := range w.cluster.Schedulers {
			wants, err := m.Gauge(ctx, "damselfly_wants")
			if err != nil {
				return err
			}
			if wants > most {
				busiest, most = m, wants
			}
		}
		w.must(most > 0, "nobody waited for anything of the killed scheduler")
		w.kill(busiest)
		if !wait(ctx, away) {
			return ctx.Err()
		}
		return w.start(ctx, busiest)
	})
}

// reference measures a flash of another image of the same size, in which nothing
// breaks.
func reference(ctx context.Context, w *world) error {
	img, err := w.pushMore(ctx, "reference")
	if err != nil {
		return err
	}
	w.each(w.cluster.Nodes, func(_ int, m *cluster.Member) { w.pullImages(ctx, m, []image{img}) })
	w.figure("reference_seconds", w.slowest().Seconds())
	return ctx.Err()
}

// signalAll sends a signal to each of the members.
func signalAll(members []*cluster.Member, s syscall.Signal) error {
	for _, m := range members {
		if err := m.Signal(s); err != nil {
			return err
		}
	}
	return nil
}

// pausing stops some members half way and lets them go on 3 s later: longer than a lease
// of a fast link may take.
func pausing(who func(*world) []*cluster.Member) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		return w.during(ctx, w.cluster.Nodes, w.reachHalf, func(ctx context.Context) error {
			err := signalAll(who(w), syscall.SIGSTOP)
			wait(ctx, 3*time.Second)
			return errors.Join(err, signalAll(who(w), syscall.SIGCONT))
		})
	}
}

// schedulerHangs tells how much longer the slowest waited than in the reference.
func schedulerHangs(ctx context.Context, w *world) error {
	err := w.during(ctx, w.cluster.Nodes, w.reachHalf, func(context.Context) error {
		return signalAll(w.cluster.Schedulers, syscall.SIGSTOP)
	})
	if err := signalAll(w.cluster.Schedulers, syscall.SIGCONT); err != nil {
		return err
	}
	w.figure("longer_seconds", w.slowest().Seconds()-w.figures["reference_seconds"])
	return err
}

// patient lets every node read everything from the origin, one after another.
func patient(o *options) {
	if o.Timeout == 0 {
		alone := time.Duration(float64(o.size*8) / float64(o.rate) * float64(time.Second))
		o.Timeout = time.Duration(o.Nodes)*2*alone + time.Minute
	}
}

// firstWhole has the first node pull, and then kills the schedulers.
func firstWhole(ctx context.Context, w *world) error {
	first := w.cluster.Nodes[0]
	w.pullImages(ctx, first, w.images)
	for _, m := range w.cluster.Schedulers {
		w.kill(m)
	}
	return nil
}

// schedulersGone has all but the whole node pull. Nodes are to be told apart from
// those that had a scheduler by what the origin sent.
func schedulersGone(ctx context.Context, w *world) error {
	w.must(running(w.cluster.Schedulers) == 0, "a scheduler lives")
	w.flash(ctx, w.cluster.Nodes[1:])
	return ctx.Err()
}

// seedKilled leaves the nodes with what seeds are left: none, where there was one.
func seedKilled(ctx context.Context, w *world) error {
	if len(w.cluster.Seeds) == 0 {
		return fmt.Errorf("scenario seed-killed needs a seed")
	}
	return w.during(ctx, w.cluster.Nodes, w.sentHalf, func(ctx context.Context) error {
		reader, most := w.cluster.Seeds[0], int64(-1)
		for _, m := range w.cluster.Seeds {
			pulled, err := m.Pulled(ctx)
			if err != nil {
				return err
			}
			if n := pulled[cluster.FromOrigin]; n > most {
				reader, most = m, n
			}
		}
		w.must(w.originBytes() < w.uniqueBytes(), "the origin had sent everything when the seed was killed")
		w.kill(reader)
		return nil
	})
}

func nodesKilled(ctx context.Context, w *world) error {
	nodes := w.cluster.Nodes
	if len(nodes) < 2 {
		return fmt.Errorf("scenario nodes-killed needs two nodes")
	}
	doomed := w.some(max(1, len(nodes)*3/10))
	err := w.during(ctx, nodes, w.reachHalf, func(context.Context) error {
		for _, m := range doomed {
			w.excuse(m.Name)
			w.kill(m)
		}
		return nil
	})
	cut := 0
	for _, p := range w.begun() {
		if p.err != nil && slices.ContainsFunc(doomed, func(m *cluster.Member) bool { return m.Name == p.node }) {
			cut++
		}
	}
	w.must(cut > 0 || ctx.Err() != nil, "none of the killed nodes was pulling")
	return err
}

// some are n of the nodes, chosen by the run's seed.
func (w *world) some(n int) []*cluster.Member {
	var out []*cluster.Member
	for _, i := range w.random.Perm(len(w.cluster.Nodes))[:n] {
		out = append(out, w.cluster.Nodes[i])
	}
	return out
}

// partition pulls the plugs of half of the nodes: they reach nobody, and nobody is
// told. Their clients are on the nodes themselves, and wait.
func partition(ctx context.Context, w *world) error {
	const lasts = 10 * time.Second
	cut := w.some(max(1, len(w.cluster.Nodes)/2))
	plugs := func(up bool) error {
		for _, m := range cut {
			if err := w.port(m.Name).SetUp(up); err != nil {
				return err
			}
		}
		return nil
	}
	received := func() (n int64, err error) {
		for _, m := range cut {
			c, err := w.port(m.Name).Counters()
			if err != nil {
				return 0, err
			}
			n += c.Received
		}
		return n, nil
	}
	var healed time.Duration
	err := w.during(ctx, w.cluster.Nodes, w.reachHalf, func(ctx context.Context) error {
		if err := plugs(false); err != nil {
			return err
		}
		before, err := received()
		if err != nil {
			return err
		}
		if !wait(ctx, lasts) {
			return ctx.Err()
		}
		after, err := received()
		if err != nil {
			return err
		}
		w.must(before == after, "%d bytes came to nodes without a link", after-before)
		healed = time.Since(w.began)
		return plugs(true)
	})
	if err != nil {
		return err
	}
	w.figure("connected_seconds", w.slowestBut(cut).Seconds())
	// All pulls began with the run.
	w.figure("after_heal_seconds", (w.slowest() - healed).Seconds())
	return nil
}

// slowestBut is the longest that a node took which is none of those.
func (w *world) slowestBut(those []*cluster.Member) time.Duration {
	var most time.Duration
	for _, m := range w.cluster.Nodes {
		if !slices.Contains(those, m) {
			most = max(most, w.nodeTime(m.Name))
		}
	}
	return most
}
