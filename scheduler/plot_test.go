package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/scheduler/sim"
)

// curve is a run in which nodes complete from the bound to a tenth after it.
func curve(nodes int, bound, late float64) *sim.Result {
	r := &sim.Result{Nodes: nodes, BoundSeconds: bound, Makespan: bound * late}
	for i := range nodes {
		part := float64(i+1) / float64(nodes)
		r.Progress = append(r.Progress, sim.Point{Seconds: bound*0.97 + bound*(late-0.97)*math.Pow(part, 0.6), Whole: i + 1})
	}
	return r
}

// elements counts the elements of an SVG by name, and checks that it is XML.
func elements(t *testing.T, text string) map[string]int {
	t.Helper()
	found := map[string]int{}
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatalf("not XML: %v\n%s", err, text)
		}
		if e, ok := token.(xml.StartElement); ok {
			found[e.Name.Local]++
		}
	}
}

func TestPlotDrawsEveryRun(t *testing.T) {
	a, b, c := curve(200, 6.4, 1.06), curve(200, 6.4, 1.09), curve(200, 6.4, 1.2)
	var out strings.Builder
	if err := (plot{title: "200 nodes & <more>", subtitle: "x", nodes: 200, runs: []*sim.Result{a, b, c}, median: b}).write(&out); err != nil {
		t.Fatal(err)
	}
	found := elements(t, out.String())
	if found["path"] != 3 || found["svg"] != 1 || strings.Count(out.String(), plotBound) != 2 {
		t.Errorf("found %v", found)
	}
	for _, want := range []string{"200 nodes &amp; &lt;more&gt;", "bound: 6.4 s", "median of 3 runs (others thin)", "(seconds)", ">200<", "nodes that have everything"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("lacks %q", want)
		}
	}
}

func TestPlotOfOddRuns(t *testing.T) {
	for name, r := range map[string]*sim.Result{
		"nobody was whole": {Nodes: 3, BoundSeconds: 5},
		"nothing at all":   {},
		"one node":         curve(1, 0.01, 1.1),
		"hours":            curve(7, 50000, 1.5),
	} {
		var out strings.Builder
		if err := (plot{nodes: r.Nodes, runs: []*sim.Result{r}, median: r}).write(&out); err != nil {
			t.Fatal(err)
		}
		elements(t, out.String())
		if strings.Contains(out.String(), "NaN") || strings.Contains(out.String(), "Inf") || out.Len() > 10000 {
			t.Errorf("%s: %s", name, &out)
		}
	}
}

// A title that is longer than the picture is wide stands in two lines, all of it.
func TestLongTitleIsNotCut(t *testing.T) {
	title := "2,000 nodes, 680 MB at 10 Gbit/s: the last node is whole after 12.34 s, 1.29 x the bound of 6.53 s, and so on"
	r := curve(3, 5, 1.1)
	var out strings.Builder
	if err := (plot{title: title, subtitle: strings.Repeat("x ", 90), nodes: 3, runs: []*sim.Result{r}, median: r}).write(&out); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, m := range regexp.MustCompile(`<text x="22.0" y="(\d+)[^>]*font-size="([\d.]+)"[^>]*>([^<]*)</text>`).FindAllStringSubmatch(out.String(), -1) {
		size, err := strconv.ParseFloat(m[2], 64)
		if err != nil || size*0.5*float64(len(m[3])) > plotWidth-plotMargin || size < 8 {
			t.Errorf("%q is %g wide in letters of %g, %v", m[3], size*0.5*float64(len(m[3])), size, err)
		}
		lines = append(lines, m[3])
	}
	if len(lines) != 3 || lines[0]+" "+lines[1] != title || !strings.HasSuffix(lines[0], ",") {
		t.Errorf("the heading is %q", lines)
	}
	elements(t, out.String())
}

func TestTicksAreRound(t *testing.T) {
	for _, c := range []struct{ span, want float64 }{{7, 1}, {8.1, 2}, {41, 10}, {0.5, 0.1}, {100, 20}, {1, 0.2}} {
		if got := niceStep(c.span, 8); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%g: %g, want %g", c.span, got, c.want)
		}
	}
	for _, n := range []int{0, 1, 3, 99, 1000, 12345} {
		ticks := nodeTicks(n)
		if len(ticks) > 9 || ticks[len(ticks)-1] != float64(n) {
			t.Errorf("%d: %v", n, ticks)
		}
	}
}
