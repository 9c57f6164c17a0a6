package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
)

// scenario is something that happens in a world, to be seen what comes of it. A new one
// is an entry in the list of its file, and a function.
type scenario struct {
	name string
	// what is one line for people.
	what string
	// prepare changes the options before anything starts; nil changes nothing.
	prepare func(*options)
	// before makes ready what run needs, when all members run. Nothing of it is
	// measured: its pulls are forgotten, and time counts from its end. nil needs none.
	before func(ctx context.Context, w *world) error
	// run has clients pull, and breaks what is to be broken. Time counts from its
	// call. It returns when every pull that it began is over. Its error is that of a
	// scenario that could not happen; what must hold and does not, it tells by must.
	run func(ctx context.Context, w *world) error
}

func findScenario(name string) (scenario, bool) {
	all := scenarios()
	i := slices.IndexFunc(all, func(s scenario) bool { return s.name == name })
	if i < 0 {
		return scenario{}, false
	}
	return all[i], true
}

// flash has nodes pull every image, all at once, and returns when all are done.
func (w *world) flash(ctx context.Context, nodes []*cluster.Member) {
	w.each(nodes, func(_ int, m *cluster.Member) { w.pullImages(ctx, m, w.images) })
}

// each does something for all nodes at once and waits.
func (w *world) each(nodes []*cluster.Member, do func(i int, m *cluster.Member)) {
	var wait sync.WaitGroup
	for i, m := range nodes {
		wait.Go(func() { do(i, m) })
	}
	wait.Wait()
}

// pullImages has a node's client pull images at once through the node's mirror.
func (w *world) pullImages(ctx context.Context, m *cluster.Member, images []image) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout())
	defer cancel()
	var wait sync.WaitGroup
	for _, img := range images {
		wait.Go(func() { w.pull(ctx, w.client(m.Name, w.port(m.Name), m.Mirror, registryName), img) })
	}
	wait.Wait()
}

// timeout bounds one pull.
func (w *world) timeout() time.Duration {
	if w.Timeout > 0 {
		return w.Timeout
	}
	return 10*w.bound() + time.Minute
}

// newPull records that a node begins a pull.
func (w *world) newPull(node string, img image) *pull {
	p := &pull{node: node, image: img, began: w.began, start: time.Since(w.began)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pulls = append(w.pulls, p)
	return p
}

// begun are all pulls that began until now.
func (w *world) begun() []*pull {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.pulls)
}

// uniqueBytes are those of all different layers that a node wants.
func (w *world) uniqueBytes() int64 {
	var n int64
	for _, img := range w.images {
		n += img.Native.LayerBytes()
	}
	return n
}

// excuse leaves a node's pulls out of all figures: the scenario ends that node itself.
func (w *world) excuse(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.excused[node] = true
}

// must records what the scenario demands where it does not hold.
func (w *world) must(holds bool, format string, args ...any) {
	if holds {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, fmt.Sprintf(format, args...))
}

// note records what a reader of the figures should know.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, fmt.Sprintf(format, args...))
}

// figure records a figure of this scenario alone.
func (w *world) figure(name string, value float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.figures[strings.ReplaceAll(name, " ", "_")] = value
}

// kill ends a member by SIGKILL. Scenarios end and start members by these methods alone:
// the world looks at their processes meanwhile.
func (w *world) kill(m *cluster.Member) {
	w.lives.Lock()
	defer w.lives.Unlock()
	w.event("%s killed", m.Name)
	m.Kill()
}

// start starts a member that was killed and waits until it is ready.
func (w *world) start(ctx context.Context, m *cluster.Member) error {
	w.lives.Lock()
	err := m.Launch()
	w.lives.Unlock()
	w.event("%s started", m.Name)
	if err != nil {
		return err
	}
	return m.Ready(ctx)
}

// pids are the processes of all members that run.
func (w *world) pids() []int {
	w.lives.Lock()
	defer w.lives.Unlock()
	var out []int
	for _, m := range w.cluster.Members() {
		if m.Running() {
			out = append(out, m.ProcessID())
		}
	}
	for _, g := range w.guests {
		out = append(out, g.process.ID())
	}
	return out
}

// wait waits; false when ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
