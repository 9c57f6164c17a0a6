package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
)

// run makes a world, lets the scenario happen in it, measures, and shows the result.
// It removes what it made, whatever happens.
func run(ctx context.Context, o options, say func(string, ...any), show func(Result) error) (err error) {
	s, err := o.validate()
	if err != nil {
		return err
	}
	p, err := build(ctx, o.Bin)
	if err != nil {
		return err
	}
	if err := o.prepareSides(ctx); err != nil {
		return err
	}
	removed, err := clean()
	for _, r := range removed {
		say("removed what a dead run left: %s", r)
	}
	if err != nil {
		return err
	}
	started := time.Now()
	w, err := newWorld(ctx, o, s, p, say)
	defer func() {
		if err != nil && w.cluster != nil && ctx.Err() == nil {
			say("%s", w.cluster.Logs(20))
			for _, g := range w.guestMembers() {
				say("--- %s\n%s", g.Name, g.Log(20))
			}
		}
		if closed := w.close(ctx.Err() != nil); closed != nil {
			err = errors.Join(err, closed)
		}
	}()
	if err != nil {
		return err
	}
	say("%d nodes, %d seeds, %d schedulers are ready after %.1f s; bound %.2f s", o.Nodes, o.Seeds, o.Schedulers,
		time.Since(started).Seconds(), w.bound().Seconds())
	result, err := w.measure(ctx)
	if err != nil {
		return err
	}
	seen := w.picture(ctx, *result)
	if result.With, err = w.others(ctx); err != nil {
		return err
	}
	seen.result.With = result.With
	if err := show(*result); err != nil {
		return err
	}
	if err := seen.write(w.Plot); err != nil {
		return err
	}
	if w.Keep {
		say("everything still runs; logs and configurations are in %s; Ctrl-C ends it", w.dir)
		<-ctx.Done()
	}
	return result.verdict()
}

// measure lets the scenario happen and returns what came of it.
func (w *world) measure(ctx context.Context) (*Result, error) {
	if err := w.prepareRun(ctx); err != nil {
		return nil, err
	}
	memory, err := newBallast(int64(w.Nodes+w.Seeds) * w.uniqueBytes())
	if err != nil {
		return nil, err
	}
	m := newMeter(w.pids)
	w.origin.Reset()
	if err := m.start(); err != nil {
		return nil, err
	}
	w.began = time.Now()
	sampling, stop := context.WithCancel(ctx)
	var sampler sync.WaitGroup
	sampler.Go(func() { m.run(sampling) })
	memory.release(w.bound())
	err = w.scenario.run(ctx, w)
	took := time.Since(w.began)
	stop()
	sampler.Wait()
	if err := errors.Join(err, memory.close()); err != nil {
		return nil, err
	}
	used, err := m.read()
	if err != nil {
		return nil, err
	}
	if err := w.readSources(ctx); err != nil {
		return nil, err
	}
	return w.result(used, took), nil
}

// prepareRun has the scenario make ready what it needs, and forgets what came of it.
func (w *world) prepareRun(ctx context.Context) error {
	if w.scenario.before == nil {
		return nil
	}
	w.began = time.Now()
	if err := w.scenario.before(ctx, w); err != nil {
		return err
	}
	for _, p := range w.begun() {
		if p.err != nil {
			return fmt.Errorf("before the scenario: %s: %w", p.node, p.err)
		}
	}
	w.had = w.readPulled(ctx, slices.Concat(w.cluster.Nodes, w.cluster.Seeds))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pulls, w.events = nil, nil
	return ctx.Err()
}

// readPulled is how much each running member has got from whom until now.
func (w *world) readPulled(ctx context.Context, members []*cluster.Member) map[string]map[string]int64 {
	out := map[string]map[string]int64{}
	for _, m := range members {
		if !m.Running() {
			continue
		}
		// Who does not answer counts as one that has nothing.
		out[m.Name], _ = m.Pulled(ctx)
	}
	return out
}

// lines are the links of all nodes and seeds at the payload rate.
func (w *world) lines() lines {
	payload := w.payload / float64(w.rate) // bytes of payload for each bit on the wire
	both := func(r float64) duplex { return duplex{r * payload, r * payload} }
	l := lines{origin: both(float64(w.originRate))}
	for range w.Seeds {
		l.seeds = append(l.seeds, both(float64(w.seedRate)))
	}
	for i := range w.Nodes {
		l.nodes = append(l.nodes, both(float64(w.link(i).Up)))
	}
	for range w.racks {
		l.uplinks = append(l.uplinks, both(float64(w.uplink)))
	}
	return l
}

// bound is the fluid bound of all nodes pulling everything.
func (w *world) bound() time.Duration { return w.lines().bound(w.uniqueBytes()) }

// nodeTime is how long a node took for all that it pulled, 0 when a pull of its failed
// or it had none.
func (w *world) nodeTime(node string) time.Duration {
	var first, last time.Duration
	seen := false
	for _, p := range w.begun() {
		if p.node != node {
			continue
		}
		if p.err != nil {
			return 0
		}
		if !seen {
			first = p.start
		}
		first, last, seen = min(first, p.start), max(last, p.end), true
	}
	return last - first
}

// readSources asks every node that runs how much it got from whom. A node counts a run
// of pieces when that is over, which may be after its client has them.
func (w *world) readSources(ctx context.Context) error {
	w.sources = map[string]map[string]int64{}
	w.each(w.cluster.Nodes, func(_ int, m *cluster.Member) {
		if !m.Running() {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		var got map[string]int64
		// What does not add up in time stays as it is: an aborted pull has less.
		_ = w.until(ctx, func() error {
			pulled, err := m.Pulled(ctx)
			if err != nil {
				return err
			}
			for kind, n := range w.had[m.Name] {
				pulled[kind] -= n
			}
			if got = pulled; cluster.Sum(pulled) < w.uniqueBytes() {
				return errors.New("not all bytes are counted yet")
			}
			return nil
		})
		w.mu.Lock()
		defer w.mu.Unlock()
		w.sources[m.Name] = got
	})
	return ctx.Err()
}

// repository is the folder of the Go module that the working directory is in.
func repository(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOMOD")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w; the lab builds what it tests and needs Go", err)
	}
	file := strings.TrimSpace(string(out))
	if file == "" || file == os.DevNull {
		return "", errors.New("the working directory is not in Damselfly's repository; start the lab there")
	}
	return filepath.Dir(file), nil
}
