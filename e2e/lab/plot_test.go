package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func at(seconds float64, bytes int64) point {
	return point{time.Duration(seconds * float64(time.Second)), bytes}
}

// drawn is a picture with all that can be in one.
func drawn() picture {
	const mib = 1 << 20
	return picture{
		result: Result{
			Scenario: "nodes-killed <&>", Nodes: 3, BlobBytes: 64 * mib, RateBPS: 100e6, SecondsMax: 6, BoundSeconds: 5, Ratio: 1.2,
			OriginRatio: 1, OriginRequests: 5, With: map[string]Side{"direct": {Ratio: 3.1}, "cache": {Ratio: 3.25}},
		},
		seeds: []drawnNode{{name: "seed1", from: map[string]int64{"origin": 64 * mib}}},
		nodes: []drawnNode{
			{name: "node1", progress: []point{at(0, 0), at(1, 10*mib), at(5.5, 64*mib)}, from: map[string]int64{"seed": 16 * mib, "peer": 48 * mib}},
			{name: "node2", progress: []point{at(0, 0), at(6, 64*mib)}, from: map[string]int64{"seed": 64 * mib, "local": 1}},
			{name: "node3", progress: []point{at(0, 0), at(2, 3*mib)}, failed: true, excused: true},
			{name: "node4", progress: []point{at(0, 0), at(2, 3*mib)}, failed: true, from: map[string]int64{}},
			{name: "node5"},
		},
		events: []event{{2 * time.Second, "node3 killed"}},
	}
}

// texts are the texts of an SVG, which must be well-formed.
func texts(t *testing.T, svg string) []string {
	t.Helper()
	var out []string
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("not XML: %v", err)
		}
		if text, ok := token.(xml.CharData); ok && strings.TrimSpace(string(text)) != "" {
			out = append(out, string(text))
		}
	}
}

func TestPictureSays(t *testing.T) {
	svg := drawn().svg()
	got := texts(t, svg)
	for _, want := range []string{
		"nodes-killed <&>: 3 nodes, 64 MiB each: the slowest took 6.00 s, 1.20 x the bound of 5.00 s",
		"links of 100 Mbit/s; origin: 1.00 x the image, 5 requests; failed: 0; cache: 3.25 x the bound; direct: 3.10 x the bound",
		"bound from a start at 0: 5.00 s", "node2, the slowest", "failed", "ended on purpose", "1: 2.00 s, node3 killed",
		"from the origin", "from seeds", "from other nodes", "from local", "all: 64 MiB",
		"64.0 + 0.0 + 0.0 + 0.0", "0.0 + 16.0 + 48.0 + 0.0", "not known: it had ended",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("the picture does not say %q", want)
		}
	}
	if svg != drawn().svg() {
		t.Error("the same picture is drawn by other bytes")
	}
	if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
		t.Error("the picture has places that are none")
	}
}

// TestPictureDraws holds where things are: a node's line begins at the origin of the
// frame and ends at its top, and shares of a bar are shares of the bytes.
func TestPictureDraws(t *testing.T) {
	svg := drawn().svg()
	for _, want := range []string{
		`d="M84.0 406.0L822.5 106.0"><title>node2</title>`, // 6 of 6.24 s
		`<line class="bound" x1="699.4" y1="106.0" x2="699.4" y2="406.0"`,
		`<line class="event" x1="330.2"`,
		`width="154.5" height="14.0" fill="#0b69c7"`, // a quarter from seeds
		`width="463.5" height="14.0" fill="#009e73"`, // the rest from nodes
		`<path class="excused" fill="none" stroke="#7b8794"`, `<path class="failed" fill="none" stroke="#b42318"`,
	} {
		if !strings.Contains(svg, want) {
			t.Errorf("the picture has no %s", want)
		}
	}
	if n := strings.Count(svg, "<path "); n != 4 {
		t.Errorf("%d lines, want 4: node5 pulled nothing", n)
	}
}

func TestPictureOfNothing(t *testing.T) {
	got := texts(t, picture{result: Result{Scenario: "flash", Nodes: 1}, nodes: []drawnNode{{name: "node1"}}}.svg())
	if !slices.Contains(got, "flash: 1 nodes, 0 KiB each: no node is whole") {
		t.Errorf("texts are %q", got)
	}
}

// TestLinesStaySmall holds that a long run does not draw what nobody can see, and keeps
// the end.
func TestLinesStaySmall(t *testing.T) {
	n := drawnNode{name: "node1"}
	for i := range 100_000 {
		n.progress = append(n.progress, at(float64(i)/10, int64(i)))
	}
	p := picture{result: Result{BlobBytes: 100_000, BoundSeconds: 1}, nodes: []drawnNode{n}}
	svg := p.svg()
	if len(svg) > 20_000 {
		t.Errorf("%d bytes for one line", len(svg))
	}
	if want := `L822.5 106.0"><title>node1`; !strings.Contains(svg, want) {
		t.Errorf("the line does not end with %s", want)
	}
}

func TestTogether(t *testing.T) {
	a := &pull{progress: []point{at(0.1, 0), at(1, 10), at(3, 30)}}
	b := &pull{start: time.Second, progress: []point{at(1.5, 5), at(2, 7)}}
	got := together([]*pull{a, b})
	want := []point{at(0, 0), at(0.1, 0), at(1, 10), at(1, 10), at(1.5, 15), at(2, 17), at(3, 37)}
	if !slices.Equal(got, want) {
		t.Errorf("together they are %v, want %v", got, want)
	}
	if got := together(nil); got != nil {
		t.Errorf("nothing together is %v", got)
	}
}

func TestMoments(t *testing.T) {
	events := []event{{3 * time.Second, "c"}, {time.Second, "a"}, {1050 * time.Millisecond, "b"}}
	want := []event{{time.Second, "a, b"}, {3 * time.Second, "c"}}
	if got := moments(events, 100*time.Millisecond); !slices.Equal(got, want) {
		t.Errorf("moments are %v, want %v", got, want)
	}
	if events[0].what != "c" {
		t.Error("the events were changed")
	}
}

func TestByteTicks(t *testing.T) {
	for whole, want := range map[float64][]float64{
		64: {0, 20, 40, 64}, 256: {0, 50, 100, 150, 200, 256}, 20: {0, 5, 10, 15, 20}, 2.5: {0, 0.5, 1, 1.5, 2, 2.5},
	} {
		if got := byteTicks(whole); !slices.Equal(got, want) {
			t.Errorf("ticks up to %v are %v, want %v", whole, got, want)
		}
	}
}

func TestPictureIsWritten(t *testing.T) {
	p := drawn()
	if err := p.write(""); err != nil {
		t.Errorf("no picture: %v", err)
	}
	file := filepath.Join(t.TempDir(), "run.svg")
	if err := p.write(file); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != p.svg() {
		t.Errorf("the file has something else, error %v", err)
	}
	if err := p.write(filepath.Join(file, "run.svg")); err == nil || !strings.Contains(err.Error(), "--plot") {
		t.Errorf("a file where none can be: %v", err)
	}
}

// TestPlotOption holds that a picture that could not be written is known at once.
func TestPlotOption(t *testing.T) {
	dir := t.TempDir()
	for file, ok := range map[string]bool{
		"": true, filepath.Join(dir, "run.svg"): true, filepath.Join(dir, "run.png"): false, filepath.Join(dir, "none", "run.svg"): false,
	} {
		o := options{Nodes: 1, Schedulers: 1, Rate: "100mbit", Blob: "64MiB", Scenario: "flash", Plot: file}
		if _, err := o.validate(); (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "--plot") {
			t.Errorf("--plot %q: %v", file, err)
		}
	}
}
