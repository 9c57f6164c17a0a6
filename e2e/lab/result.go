package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// Result is what a run measured. Its JSON keys are a contract with those who read
// them.
type Result struct {
	Scenario string `json:"scenario"`
	// Seed repeats the run's bytes and random choices.
	Seed  uint64 `json:"seed"`
	Nodes int    `json:"nodes"`
	// BlobBytes are the bytes of all different layers that a node pulled.
	BlobBytes int64 `json:"blob_bytes"`
	// RateBPS is what the wire of a link carries, PayloadBPS what one plain TCP flow
	// over one such link brought in this run; bits per second.
	RateBPS    int64 `json:"rate_bps"`
	PayloadBPS int64 `json:"payload_bps"`
	// SecondsMax is the longest pull, from its own start to its last checked byte;
	// SecondsP50 the median.
	SecondsMax float64 `json:"seconds_max"`
	SecondsP50 float64 `json:"seconds_p50"`
	// BoundSeconds is the fluid bound at the payload rate; Ratio is SecondsMax over it,
	// NodeRatio the largest of each node's time over its own bound: these differ where
	// links do.
	BoundSeconds float64 `json:"bound_seconds"`
	Ratio        float64 `json:"ratio"`
	NodeRatio    float64 `json:"node_ratio"`
	// OriginBytes are bytes of blobs that the origin sent, OriginRatio these over
	// BlobBytes, OriginRequests all requests that reached it.
	OriginBytes    int64   `json:"origin_bytes"`
	OriginRatio    float64 `json:"origin_ratio"`
	OriginRequests int     `json:"origin_requests"`
	// Failed are pulls that did not end well, of nodes that the scenario did not end
	// itself.
	Failed int `json:"failed"`
	// WrongBytes were given to clients and are not those of the blob; WrongBlobs were
	// ended as if they were whole and had such bytes.
	WrongBytes int64 `json:"wrong_bytes"`
	WrongBlobs int   `json:"wrong_blobs"`
	// CPUSecondsPerGB is the CPU time of all Damselfly's processes during the run, for
	// each 1e9 bytes that clients got; RSSMaxBytes the most memory that one of them
	// ever had.
	CPUSecondsPerGB float64 `json:"cpu_seconds_per_gb"`
	RSSMaxBytes     int64   `json:"rss_max_bytes"`
	// OtherCores is the CPU that everything else on the machine took meanwhile, in
	// cores. Times are not to be trusted where it is large.
	OtherCores float64 `json:"other_cores"`
	// From are the bytes that nodes got by kind of source: seed, peer, origin.
	From map[string]int64 `json:"from"`
	// Figures are what only this scenario measures.
	Figures map[string]float64 `json:"figures,omitempty"`
	// Broken says what the scenario demands and did not find.
	Broken []string `json:"broken,omitempty"`
	// Notes tell what a reader of the figures should know.
	Notes []string `json:"notes,omitempty"`
	// With are the same pulls by other means, by name.
	With map[string]Side `json:"with,omitempty"`
}

// Side is what another way of pulling measured over the same links.
type Side struct {
	SecondsMax     float64 `json:"seconds_max"`
	SecondsP50     float64 `json:"seconds_p50"`
	Ratio          float64 `json:"ratio"`
	OriginBytes    int64   `json:"origin_bytes"`
	OriginRatio    float64 `json:"origin_ratio"`
	OriginRequests int     `json:"origin_requests"`
	Failed         int     `json:"failed"`
}

// verdict is nil when everybody got the right bytes and the scenario found all it
// demands. Times are judged by the table, not here.
func (r Result) verdict() error {
	var errs []error
	if r.Failed > 0 {
		errs = append(errs, fmt.Errorf("%d pulls failed", r.Failed))
	}
	if r.WrongBlobs > 0 {
		errs = append(errs, fmt.Errorf("%d blobs were given to clients as whole with wrong bytes", r.WrongBlobs))
	}
	for _, b := range r.Broken {
		errs = append(errs, errors.New(b))
	}
	return errors.Join(errs...)
}

// rounded has no digits that mean nothing.
func (r Result) rounded() Result {
	for _, f := range []*float64{&r.SecondsMax, &r.SecondsP50, &r.BoundSeconds, &r.Ratio, &r.NodeRatio, &r.OriginRatio, &r.CPUSecondsPerGB, &r.OtherCores} {
		*f = round(*f)
	}
	r.Figures = maps.Clone(r.Figures)
	for k, v := range r.Figures {
		r.Figures[k] = round(v)
	}
	r.With = maps.Clone(r.With)
	for k, s := range r.With {
		s.SecondsMax, s.SecondsP50, s.Ratio, s.OriginRatio = round(s.SecondsMax), round(s.SecondsP50), round(s.Ratio), round(s.OriginRatio)
		r.With[k] = s
	}
	return r
}

func round(f float64) float64 { return math.Round(f*1000) / 1000 }

// print writes the result, as one JSON object or for people.
func (r Result) print(w io.Writer, asJSON bool) error {
	r = r.rounded()
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	return r.printTable(w)
}

func (r Result) printTable(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("scenario", "%s, %d nodes, %.1f MiB, links of %.0f Mbit/s (%.1f of payload), --seed %d",
		r.Scenario, r.Nodes, float64(r.BlobBytes)/(1<<20), float64(r.RateBPS)/1e6, float64(r.PayloadBPS)/1e6, r.Seed)
	row("seconds", "max %.2f, p50 %.2f", r.SecondsMax, r.SecondsP50)
	row("bound", "%.2f s", r.BoundSeconds)
	row("ratio", "%.3f (each to its own bound: %.3f)", r.Ratio, r.NodeRatio)
	row("origin", "%.1f MiB, ratio %.3f, %d requests", float64(r.OriginBytes)/(1<<20), r.OriginRatio, r.OriginRequests)
	row("failed", "%d, wrong bytes %d", r.Failed, r.WrongBytes)
	var from []string
	for _, kind := range slices.Sorted(maps.Keys(r.From)) {
		from = append(from, fmt.Sprintf("%s %.1f MiB", kind, float64(r.From[kind])/(1<<20)))
	}
	row("from", "%s", strings.Join(from, ", "))
	row("CPU", "%.2f s/GB; everything else on this machine %.2f cores", r.CPUSecondsPerGB, r.OtherCores)
	row("memory", "%.1f MiB at most in one process", float64(r.RSSMaxBytes)/(1<<20))
	for _, name := range slices.Sorted(maps.Keys(r.Figures)) {
		row(name, "%.3f", r.Figures[name])
	}
	for _, n := range r.Notes {
		row("note", "%s", n)
	}
	for _, b := range r.Broken {
		row("BROKEN", "%s", b)
	}
	r.printSides(w)
	return w.Flush()
}
