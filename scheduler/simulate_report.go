package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/damselfly-p2p/damselfly/scheduler/sim"
)

// report is what came of one run or several.
type report struct {
	settings scenarioSettings
	runs     []*sim.Result
	median   *sim.Result // by makespan
}

// measure is a figure of a result. label is how the table names it; without one it
// stands in the JSON only.
type measure struct {
	key, label string
	value      func(*sim.Result) float64
	text       func(float64) string
	note       func(*sim.Result) string
	lowIsWorst bool
	times      bool // it is of the nodes that have everything
}

func measures() []measure {
	count := func(v float64) string { return grouped(int64(v)) }
	times := func(v float64) string { return fmt.Sprintf("%.3f", v) }
	percent := func(v float64) string { return figure(v*100) + " %" }
	nanos := func(v float64) string { return figure(v) + " ns" }
	bound := func(ratio func(*sim.Result) float64) func(*sim.Result) string {
		return func(r *sim.Result) string { return fmt.Sprintf("%.3f x the bound", ratio(r)) }
	}
	makespan := func(r *sim.Result) float64 { return r.MakespanRatio }
	mean := func(r *sim.Result) float64 { return r.MeanRatio }
	return []measure{
		{key: "makespan_seconds", times: true, label: "last node whole", value: func(r *sim.Result) float64 { return r.Makespan }, text: humanSeconds, note: bound(makespan)},
		{key: "makespan_ratio", value: makespan, text: times},
		{key: "mean_seconds", times: true, label: "mean of a node", value: func(r *sim.Result) float64 { return r.Mean }, text: humanSeconds, note: bound(mean)},
		{key: "mean_ratio", value: mean, text: times},
		{key: "p50_seconds", times: true, label: "half of the nodes", value: func(r *sim.Result) float64 { return r.P50 }, text: humanSeconds},
		{key: "p99_seconds", times: true, label: "99 % of the nodes", value: func(r *sim.Result) float64 { return r.P99 }, text: humanSeconds},
		{key: "fast_ratio", times: true, label: "last fast node", value: func(r *sim.Result) float64 { return r.FastRatio }, text: times,
			note: func(*sim.Result) string { return "x the bound of those that are not slow" }},
		{key: "origin_bytes", label: "registry sent", value: func(r *sim.Result) float64 { return float64(r.OriginBytes) }, text: humanBytes, note: func(r *sim.Result) string {
			return fmt.Sprintf("%.3f x the image, in %s", r.OriginRatio, several(r.OriginRequests, "request"))
		}},
		{key: "origin_ratio", value: func(r *sim.Result) float64 { return r.OriginRatio }, text: times},
		{key: "origin_requests", value: func(r *sim.Result) float64 { return float64(r.OriginRequests) }, text: count},
		{key: "seed_ratio", label: "seeds sent", value: func(r *sim.Result) float64 { return r.SeedRatio }, text: times, note: func(*sim.Result) string { return "x the image" }},
		{key: "cross_ratio", label: "between racks", value: func(r *sim.Result) float64 { return r.CrossRatio }, text: times, note: func(*sim.Result) string { return "x the image in each rack" }},
		{key: "waste_ratio", label: "sent in vain", value: func(r *sim.Result) float64 { return r.WasteRatio }, text: percent},
		{key: "utilisation", times: true, label: "uplinks in use", value: func(r *sim.Result) float64 { return r.Utilisation }, text: percent, lowIsWorst: true},
		{key: "stuck", label: "stuck nodes", value: func(r *sim.Result) float64 { return float64(r.Stuck) }, text: count},
		{key: "over_limit", value: func(r *sim.Result) float64 { return float64(r.OverLimit) }, text: count},
		{key: "busy", value: func(r *sim.Result) float64 { return float64(r.Busy) }, text: count},
		{key: "events", label: "scheduler: events", value: func(r *sim.Result) float64 { return float64(r.Events) }, text: count},
		{key: "decisions", label: "scheduler: decisions", value: func(r *sim.Result) float64 { return float64(r.Decisions) }, text: count, note: perSecond},
		{key: "cancels", value: func(r *sim.Result) float64 { return float64(r.Cancels) }, text: count},
		{key: "ns_per_decision", label: "scheduler: a decision", value: func(r *sim.Result) float64 { return r.NsPerDecision }, text: nanos},
		{key: "ns_per_event", value: func(r *sim.Result) float64 { return r.NsPerEvent }, text: nanos},
		{key: "wall_seconds", label: "simulated in", value: func(r *sim.Result) float64 { return r.WallSeconds }, text: humanSeconds},
	}
}

func perSecond(r *sim.Result) string {
	if r.Makespan <= 0 {
		return ""
	}
	return fmt.Sprintf("%s a second, %s of them leases", figure(float64(r.Decisions)/r.Makespan), figure(float64(r.Leases)/r.Makespan))
}

// worst is the worst that a run had of a measure, median the one in the middle.
func (r report) worst(m measure) float64  { return r.ranked(m)[len(r.runs)-1] }
func (r report) middle(m measure) float64 { return r.ranked(m)[len(r.runs)/2] }

func (r report) ranked(m measure) []float64 {
	var values []float64
	for _, result := range r.runs {
		values = append(values, m.value(result))
	}
	slices.Sort(values)
	if m.lowIsWorst {
		slices.Reverse(values)
	}
	return values
}

// title answers the planner's question.
func (r report) title() string {
	m := r.median
	s := r.settings
	text := fmt.Sprintf("%s, %s at %s: ", several(s.Nodes, "node"), humanBytes(float64(m.BlobBytes)), s.Rate.human())
	if r.nobody() != nil {
		return text + "nobody is alive at the end"
	}
	if r.stuck() != nil {
		return text + "not everybody gets everything"
	}
	text += "the last node is whole after " + humanSeconds(m.Makespan)
	return text + fmt.Sprintf(", %.2f x the bound of %s", m.MakespanRatio, humanSeconds(m.BoundSeconds))
}

// subtitle is what the registry has of it.
func (r report) subtitle() string {
	m := r.median
	crowd := float64(r.settings.Nodes) * float64(m.BlobBytes)
	link := float64(r.settings.Rate)
	if r.settings.Slow > 0 {
		link *= min(r.settings.SlowFactor, 1)
	}
	alone := max(crowd/r.settings.originRate(), float64(m.BlobBytes)/link)
	whose := "its"
	if r.settings.OriginRate == 0 {
		whose = "an assumed"
	}
	return fmt.Sprintf("registry: %s, %.2f x the image; without Damselfly %s = %s at %s %s",
		humanBytes(float64(m.OriginBytes)), m.OriginRatio, humanBytes(crowd), humanSeconds(alone), whose, rate(r.settings.originRate()).human())
}

// write is for people.
func (r report) write(out io.Writer) error {
	var errs []error
	say := func(w io.Writer, format string, args ...any) {
		_, err := fmt.Fprintf(w, format, args...)
		errs = append(errs, err)
	}
	say(out, "%s\n%s\n", r.title(), r.subtitle())
	if len(r.runs) > 1 {
		say(out, "(median of %d runs, with random seeds %d to %d)\n", len(r.runs), r.runs[0].Random, r.runs[len(r.runs)-1].Random)
	}
	say(out, "\n")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(r.runs) > 1 {
		say(w, "\tMEDIAN\tWORST\n")
	}
	for _, m := range measures() {
		if m.times && r.median.Whole == 0 {
			continue
		}
		if m.label == "" || m.key == "cross_ratio" && r.settings.Racks < 2 || m.key == "fast_ratio" && r.settings.Slow == 0 {
			continue
		}
		line := m.label + "\t" + m.text(r.middle(m))
		switch {
		case len(r.runs) > 1:
			line += "\t" + m.text(r.worst(m))
		case m.note != nil:
			line += "  " + m.note(r.median)
		}
		say(w, "%s\n", line)
	}
	if len(r.runs) > 1 {
		r.ratios(func(line string) { say(w, "%s\n", line) })
	}
	errs = append(errs, w.Flush())
	say(out, "\n%s\n%s", r.setup(), r.paced())
	return errors.Join(errs...)
}

// ratios are the rows that a single run has as notes.
func (r report) ratios(say func(string)) {
	for _, m := range measures() {
		if name, ok := strings.CutSuffix(m.key, "_ratio"); ok && m.label == "" && name != "fast" {
			say(name + " ratio\t" + m.text(r.middle(m)) + "\t" + m.text(r.worst(m)))
		}
	}
}

// setup is the small print: what was simulated.
func (r report) setup() string {
	s := r.settings
	parts := []string{several(r.median.Pieces, "piece"), s.Arrivals + " arrivals", several(s.Seeds, "seed"), several(s.Schedulers, "scheduler")}
	if s.Racks > 1 {
		parts = append(parts, fmt.Sprintf("%s %s:1 oversubscribed", several(s.Racks, "rack"), figure(s.Oversubscribed)))
	}
	if s.Slow > 0 {
		parts = append(parts, fmt.Sprintf("%s %% slow nodes", figure(s.Slow*100)))
	}
	if s.Faults != defaultScenario().Faults {
		parts = append(parts, "faults")
	}
	parts = append(parts, "latency "+s.Latency.String(), fmt.Sprintf("jitter %s %%", figure(s.Jitter*100)),
		"policy "+r.median.Policy, fmt.Sprintf("random %d", s.Random))
	return "Simulated: " + strings.Join(parts, ", ") + "."
}

// paced says that the scheduler, not the links, was what made it last. A layer has
// one scheduler, however many there are.
func (r report) paced() string {
	layers := 0
	for _, b := range r.settings.Blobs {
		layers += max(b.Count, 1)
	}
	deciding := max(min(r.settings.Schedulers, layers), 1)
	most := float64(r.settings.Core.LeaseRate * deciding)
	if r.median.Makespan <= 0 || float64(r.median.Leases)/r.median.Makespan < 0.6*most {
		return ""
	}
	return fmt.Sprintf("The scheduler gave %s leases a second. It makes them longer to stay near %s (--lease-rate), and longer leases\n"+
		"spread later. A higher --lease-rate shows what the links allow.\n", figure(float64(r.median.Leases)/r.median.Makespan), grouped(int64(most)))
}

func several(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return grouped(int64(n)) + " " + what
}

// writeJSON is for programs: the Result of one run; of several all of them, and of
// each figure the median and the worst.
func (r report) writeJSON(out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	if len(r.runs) == 1 {
		return enc.Encode(r.runs[0])
	}
	middle, worst := map[string]float64{}, map[string]float64{}
	for _, m := range measures() {
		middle[m.key], worst[m.key] = r.middle(m), r.worst(m)
	}
	return enc.Encode(struct {
		Stuck  int                `json:"stuck"` // in the worst run
		Median map[string]float64 `json:"median"`
		Worst  map[string]float64 `json:"worst"`
		Runs   []*sim.Result      `json:"runs"`
	}{int(worst["stuck"]), middle, worst, r.runs})
}
