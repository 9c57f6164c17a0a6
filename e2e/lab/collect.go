package main

import (
	"fmt"
	"slices"
	"time"
)

// busy is from how many cores used by others on a run's figures are not to be trusted.
const busy = 0.3

// result puts together what a run of a time measured.
func (w *world) result(used usage, took time.Duration) *Result {
	counts := w.origin.Counts()
	w.mu.Lock()
	excused, broken, notes, figures := w.excused, w.broken, w.notes, w.figures
	w.mu.Unlock()
	r := &Result{
		Scenario: w.scenario.name, Seed: w.Seed, Nodes: w.Nodes, BlobBytes: w.uniqueBytes(),
		RateBPS: int64(w.rate), PayloadBPS: int64(w.payload * 8),
		BoundSeconds: w.bound().Seconds(), OriginRequests: counts.Requests, RSSMaxBytes: used.rss,
		OtherCores: over(used.others, took), Figures: figures, Broken: broken, Notes: notes,
		From: map[string]int64{},
	}
	for _, n := range counts.BlobBytes {
		r.OriginBytes += n
	}
	r.OriginRatio = over(r.OriginBytes, r.BlobBytes)
	delivered := int64(0)
	for _, p := range w.begun() {
		delivered += p.bytes()
		r.WrongBytes += p.wrongBytes
		r.WrongBlobs += p.wrongBlobs
		if p.err != nil && !excused[p.node] {
			r.Failed++
			r.Notes = append(r.Notes, fmt.Sprintf("%s failed after %.2f s: %v", p.node, p.took().Seconds(), p.err))
		}
	}
	for _, kinds := range w.sources {
		for kind, n := range kinds {
			r.From[kind] += n
		}
	}
	r.CPUSecondsPerGB = over(used.cpu.Seconds(), float64(delivered)/1e9)
	w.times(r, excused)
	if r.OtherCores > busy {
		r.Notes = append(r.Notes, fmt.Sprintf("everything else on this machine took %.2f cores: times may be too long", r.OtherCores))
	}
	if share := w.payload * 8 / float64(w.rate); share < 0.85 || share > 1 {
		r.Notes = append(r.Notes, fmt.Sprintf("one TCP flow brought %.0f %% of the link's rate, where about 94 is usual: the bound may be wrong", 100*share))
	}
	return r
}

// times adds how long nodes took whose pulls all ended well.
func (w *world) times(r *Result, excused map[string]bool) {
	lines := w.lines()
	var all []time.Duration
	for i, m := range w.cluster.Nodes {
		took := w.nodeTime(m.Name)
		if took == 0 || excused[m.Name] || i >= len(lines.nodes) {
			continue
		}
		all = append(all, took)
		r.NodeRatio = max(r.NodeRatio, over(took, lines.nodeBound(r.BlobBytes, i)))
	}
	if len(all) == 0 {
		return
	}
	r.SecondsMax, r.SecondsP50 = slices.Max(all).Seconds(), median(all).Seconds()
	r.Ratio = over(r.SecondsMax, r.BoundSeconds)
}
