package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// The rows.
const (
	rowSendfile = "raw TCP, sendfile to splice into a file"
	rowTLS      = "TLS 1.3 raw"
	rowHash     = "SHA-256 alone"
	rowWrite    = "write alone"
	rowExchange = "piece exchange: TLS + SHA-256 + write"
	rowHit      = "local hit: a node's mirror"
	rowFiles    = "net/http FileServer, same file"
	rowManifest = "manifest"
	rowMemory   = "memory"
)

// moving are the rows that need the other end.
func moving() []string {
	return []string{rowSendfile, rowTLS, rowHash, rowWrite, rowExchange, rowHit, rowFiles, rowManifest}
}

// report is all that was measured.
type report struct {
	Machine string `json:"machine"`
	// Others is how many cores other programs had meanwhile. Above about 0.2, figures
	// tell of them too.
	Others float64            `json:"other_cores"`
	Bytes  int64              `json:"bytes_per_row"`
	Rounds int                `json:"rounds"`
	Rows   []*row             `json:"rows"`
	Ratios map[string]float64 `json:"ratios"`
	// Allocs are mallocs per 4 MiB in the piece exchange, Allocated their bytes.
	Allocs    map[string]float64 `json:"allocs_per_4mib"`
	Allocated map[string]float64 `json:"allocated_bytes_per_4mib"`
	// Manifest is how soon the first byte of a manifest comes that a node has.
	Manifest map[string]latency `json:"manifest"`
	RSS      map[string]float64 `json:"rss_mib"`
	Bars     []bar              `json:"bars"`
}

// row is one way of moving bytes: medians of its rounds.
type row struct {
	Name    string  `json:"name"`
	MBs     float64 `json:"mb_per_s"`
	Client  float64 `json:"client_cpu_s_per_gb"`
	Server  float64 `json:"server_cpu_s_per_gb"`
	Sum     float64 `json:"cpu_s_per_gb"`
	Least   float64 `json:"cpu_s_per_gb_least"` // of all rounds
	Most    float64 `json:"cpu_s_per_gb_most"`
	samples []sample
}

// bar is what a figure must hold.
type bar struct {
	Name     string  `json:"name"`
	Most     float64 `json:"most,omitempty"`
	Least    float64 `json:"least,omitempty"`
	Measured float64 `json:"measured"`
	Holds    bool    `json:"holds"`
}

func newReport(o options) *report {
	return &report{Machine: process.Machine(), Bytes: o.bytes, Rounds: o.rounds, Ratios: map[string]float64{},
		Allocs: map[string]float64{}, Allocated: map[string]float64{}, Manifest: map[string]latency{}, RSS: map[string]float64{}}
}

func (r *report) row(name string) *row {
	for _, one := range r.Rows {
		if one.Name == name {
			return one
		}
	}
	return nil
}

// add keeps one round of a row.
func (r *report) add(name string, s sample) {
	one := r.row(name)
	if one == nil {
		one = &row{Name: name}
		r.Rows = append(r.Rows, one)
	}
	one.samples = append(one.samples, s)
	perGB := func(of func(sample) float64) float64 {
		return one.median(func(s sample) float64 { return of(s) / float64(s.bytes) * 1e9 })
	}
	one.MBs = one.median(sample.rate)
	one.Client = perGB(func(s sample) float64 { return s.client.Seconds() })
	one.Server = perGB(func(s sample) float64 { return s.server.Seconds() })
	one.Sum = one.median(sample.perGB)
	all := one.values(sample.perGB)
	one.Least, one.Most = all[0], all[len(all)-1]
}

// perGB is the CPU of both ends, in seconds a GB.
func (s sample) perGB() float64 { return (s.client + s.server).Seconds() / float64(s.bytes) * 1e9 }

// rate is in MB a second.
func (s sample) rate() float64 { return float64(s.bytes) / 1e6 / s.took.Seconds() }

// ratio is the median, over all rounds, of the sum of some rows over the sum of others:
// what else runs on the machine differs less within a round than between rounds.
func ratio(of func(sample) float64, over, under []*row) float64 {
	rounds := make([]float64, len(over[0].samples))
	for i := range rounds {
		var sums [2]float64
		for at, rows := range [][]*row{over, under} {
			for _, one := range rows {
				sums[at] += of(one.samples[i])
			}
		}
		rounds[i] = sums[0] / sums[1]
	}
	slices.Sort(rounds)
	return median(rounds)
}

func (r *row) values(of func(sample) float64) []float64 {
	out := make([]float64, len(r.samples))
	for i, s := range r.samples {
		out[i] = of(s)
	}
	slices.Sort(out)
	return out
}

func (r *row) median(of func(sample) float64) float64 { return median(r.values(of)) }

// median of sorted values.
func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// judge makes ratios and bars of the rows.
func (r *report) judge() {
	memory := r.Bars
	r.Bars = nil
	if x := r.row(rowExchange); x != nil {
		r.judgeExchange(x)
	}
	if hit, files := r.row(rowHit), r.row(rowFiles); hit != nil && files != nil {
		r.Ratios["local_hit"] = ratio(sample.rate, []*row{hit}, []*row{files})
		r.Bars = append(r.Bars, bar{Name: "local hit: throughput / FileServer's", Least: 0.95,
			Measured: r.Ratios["local_hit"], Holds: r.Ratios["local_hit"] >= 0.95})
	}
	if m, ok := r.Manifest[byDigest]; ok {
		r.most("first byte of a warm manifest, 100 clients, p50 in ms", m.P50, 1)
		r.most("first byte of a warm manifest, 100 clients, p99 in ms", m.P99, 5)
	}
	r.Bars = append(r.Bars, memory...)
}

func (r *report) judgeExchange(x *row) {
	if t, h, w := r.row(rowTLS), r.row(rowHash), r.row(rowWrite); t != nil && h != nil && w != nil {
		r.Ratios["piece_exchange"] = ratio(sample.perGB, []*row{x}, []*row{t, h, w})
		r.most("piece exchange: CPU / (TLS raw + SHA-256 + write)", r.Ratios["piece_exchange"], 1.25)
	}
	per := func(of func(sample) uint64) float64 {
		return x.median(func(s sample) float64 { return float64(of(s)) / float64(s.bytes) * (4 << 20) })
	}
	r.Allocs["client"] = per(func(s sample) uint64 { return s.clientHeap.Mallocs })
	r.Allocs["server"] = per(func(s sample) uint64 { return s.farsHeap.Mallocs })
	r.Allocated["client"] = per(func(s sample) uint64 { return s.clientHeap.Bytes })
	r.Allocated["server"] = per(func(s sample) uint64 { return s.farsHeap.Bytes })
	r.most("allocations per 4 MiB, client", r.Allocs["client"], 50)
	r.most("allocations per 4 MiB, server", r.Allocs["server"], 50)
}

func (r *report) most(name string, measured, most float64) {
	r.Bars = append(r.Bars, bar{Name: name, Most: most, Measured: measured, Holds: measured <= most})
}

func (r *report) print(out io.Writer, asJSON bool) error {
	r.judge()
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "row\tMB/s\tclient CPU s/GB\tserver CPU s/GB\tboth\tleast - most")
	for _, one := range r.Rows {
		fmt.Fprintf(w, "%s\t%.0f\t%.3f\t%.3f\t%.3f\t%.3f - %.3f\n", one.Name, one.MBs, one.Client, one.Server, one.Sum, one.Least, one.Most)
	}
	if len(r.Manifest) > 0 {
		fmt.Fprintln(w, "\nfirst byte of a manifest\tp50 ms\tp99 ms\trequests/s")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Manifest)) {
		m := r.Manifest[name]
		fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.0f\n", strings.ReplaceAll(name, "_", " "), m.P50, m.P99, m.Rate)
	}
	fmt.Fprintln(w, "\nfigure\tmeasured\tbar\tverdict")
	for _, b := range r.Bars {
		fmt.Fprintln(w, b)
	}
	fmt.Fprintf(w, "\n%s; other programs had %.2f cores\n", r.Machine, r.Others)
	return w.Flush()
}

// String is a line of the table.
func (b bar) String() string {
	demand, verdict := fmt.Sprintf("<= %g", b.Most), "FAILS"
	if b.Least > 0 {
		demand = fmt.Sprintf(">= %g", b.Least)
	}
	if b.Holds {
		verdict = "ok"
	}
	return fmt.Sprintf("%s\t%.3g\t%s\t%s", b.Name, b.Measured, demand, verdict)
}

// failed errs when a bar does not hold.
func (r *report) failed() error {
	n := 0
	for _, b := range r.Bars {
		if !b.Holds {
			n++
		}
	}
	if n > 0 {
		return fmt.Errorf("%d of %d bars do not hold", n, len(r.Bars))
	}
	return nil
}
