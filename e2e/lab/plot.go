package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
)

// event is something that happened to a run, as its picture shows it.
type event struct {
	at   time.Duration // since the run's start
	what string
}

// event records that something happened now. It is shown by --plot.
func (w *world) event(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, event{time.Since(w.began), fmt.Sprintf(format, args...)})
}

// picture is what --plot draws of a run. The same picture is always drawn by the same
// bytes.
type picture struct {
	result Result
	nodes  []drawnNode
	seeds  []drawnNode
	events []event
}

// drawnNode is a node or seed of a picture.
type drawnNode struct {
	name     string
	progress []point // of all its pulls together, by time; none for a seed
	failed   bool
	excused  bool // the scenario ended it
	// from is how much it got by kind of source, nil when it could not be asked in the
	// end.
	from map[string]int64
}

// picture is that of the world's pulls until now, an empty one when the options ask for
// none. The result is shown with it; what other ways of pulling brought may be added to
// it later.
func (w *world) picture(ctx context.Context, r Result) picture {
	p := picture{result: r}
	if w.Plot == "" {
		return p
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	pulls := w.begun()
	seeds := w.fed(ctx, w.cluster.Seeds)
	w.mu.Lock()
	defer w.mu.Unlock()
	p.events = slices.Clone(w.events)
	for _, m := range w.cluster.Nodes {
		n := drawnNode{name: m.Name, excused: w.excused[m.Name], from: w.sources[m.Name]}
		var own []*pull
		for _, p := range pulls {
			if p.node == m.Name {
				own = append(own, p)
				n.failed = n.failed || p.err != nil
			}
		}
		n.progress = together(own)
		p.nodes = append(p.nodes, n)
	}
	for _, m := range w.cluster.Seeds {
		p.seeds = append(p.seeds, drawnNode{name: m.Name, from: seeds[m.Name]})
	}
	return p
}

// write draws the picture into a file, "" for none.
func (p picture) write(file string) error {
	if file == "" {
		return nil
	}
	if err := os.WriteFile(file, []byte(p.svg()), 0o644); err != nil {
		return fmt.Errorf("--plot: %w", err)
	}
	return nil
}

// fed is how much each running member has got from whom since the run began.
func (w *world) fed(ctx context.Context, members []*cluster.Member) map[string]map[string]int64 {
	out := w.readPulled(ctx, members)
	for name, from := range out {
		if from == nil {
			continue
		}
		for kind, n := range w.had[name] {
			from[kind] -= n
		}
	}
	return out
}

// together is the progress of pulls added up.
func together(pulls []*pull) []point {
	type step struct {
		at   time.Duration
		more int64
	}
	var steps []step
	for _, p := range pulls {
		had := int64(0)
		steps = append(steps, step{p.start, 0})
		for _, point := range p.progress {
			steps = append(steps, step{point.at, point.bytes - had})
			had = point.bytes
		}
	}
	slices.SortStableFunc(steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	var out []point
	sum := int64(0)
	for _, s := range steps {
		sum += s.more
		out = append(out, point{s.at, sum})
	}
	return out
}

// end is when a node's last pull was over.
func (n drawnNode) end() time.Duration {
	if len(n.progress) == 0 {
		return 0
	}
	return n.progress[len(n.progress)-1].at
}

// slowest is the index of the node whose pulls took longest and ended well, -1 for none.
func (p picture) slowest() int {
	slowest, most := -1, time.Duration(0)
	for i, n := range p.nodes {
		if n.failed || n.excused || len(n.progress) == 0 {
			continue
		}
		if took := n.end() - n.progress[0].at; took > most {
			slowest, most = i, took
		}
	}
	return slowest
}

// title is the picture in one line.
func (p picture) title() string {
	r := p.result
	if p.slowest() < 0 {
		return fmt.Sprintf("%s: %d nodes, %s each: no node is whole", r.Scenario, r.Nodes, humanBytes(r.BlobBytes))
	}
	return fmt.Sprintf("%s: %d nodes, %s each: the slowest took %.2f s, %.2f x the bound of %.2f s",
		r.Scenario, r.Nodes, humanBytes(r.BlobBytes), r.SecondsMax, r.Ratio, r.BoundSeconds)
}

// subtitle is what a reader compares it with.
func (p picture) subtitle() string {
	r := p.result
	parts := []string{
		fmt.Sprintf("links of %.0f Mbit/s", float64(r.RateBPS)/1e6),
		fmt.Sprintf("origin: %.2f x the image, %d requests", r.OriginRatio, r.OriginRequests),
		fmt.Sprintf("failed: %d", r.Failed),
	}
	for _, name := range slices.Sorted(maps.Keys(r.With)) {
		parts = append(parts, fmt.Sprintf("%s: %.2f x the bound", name, r.With[name].Ratio))
	}
	return strings.Join(parts, "; ")
}

// moments are events told together that are not apart by more than near. The first
// tells when.
func moments(events []event, near time.Duration) []event {
	events = slices.Clone(events)
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(a.at, b.at) })
	var out []event
	for _, e := range events {
		if last := len(out) - 1; last >= 0 && e.at-out[last].at <= near {
			out[last].what += ", " + e.what
			continue
		}
		out = append(out, e)
	}
	return out
}

// kinds are the kinds of source that bytes came from, in the order that they are drawn
// in.
func (p picture) kinds() []string {
	found := map[string]bool{}
	for _, n := range slices.Concat(p.seeds, p.nodes) {
		for kind, bytes := range n.from {
			found[kind] = found[kind] || bytes > 0
		}
	}
	var out []string
	for _, kind := range []string{cluster.FromOrigin, cluster.FromSeed, cluster.FromPeer} {
		out = append(out, kind)
		delete(found, kind)
	}
	for _, kind := range slices.Sorted(maps.Keys(found)) {
		if found[kind] {
			out = append(out, kind)
		}
	}
	return out
}

// humanBytes is a size in a unit that keeps it short.
func humanBytes(n int64) string {
	unit, name := byteUnit(n)
	return fmt.Sprintf("%.4g %s", float64(n)/unit, name)
}

// byteUnit is the largest unit of which n has two.
func byteUnit(n int64) (unit float64, name string) {
	switch {
	case n >= 2<<30:
		return 1 << 30, "GiB"
	case n >= 2<<20:
		return 1 << 20, "MiB"
	default:
		return 1 << 10, "KiB"
	}
}
