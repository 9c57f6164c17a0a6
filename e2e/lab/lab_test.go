package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const mega = 1_000_000

func same(n int, up, down float64) []duplex { return slices.Repeat([]duplex{{up, down}}, n) }

func TestBound(t *testing.T) {
	const u = 10 * mega // bytes a second
	for _, c := range []struct {
		name  string
		lines lines
		want  time.Duration // for 100 MB
	}{
		{"equal links: what a node receives", lines{origin: duplex{u, u}, seeds: same(1, u, u), nodes: same(8, u, u)}, 10 * time.Second},
		{"one node alone", lines{origin: duplex{u, u}, seeds: same(1, u, u), nodes: same(1, u, u)}, 10 * time.Second},
		{"a slow origin", lines{origin: duplex{u / 4, u}, seeds: same(1, u, u), nodes: same(8, u, u)}, 40 * time.Second},
		{"a slow seed", lines{seeds: same(1, u/2, u), nodes: same(8, u, u)}, 20 * time.Second},
		{"two such seeds", lines{seeds: same(2, u/2, u), nodes: same(8, u, u)}, 10 * time.Second},
		{"nodes that receive fast and send slowly", lines{seeds: same(1, u, 0), nodes: same(9, u/10, 0)}, 9 * 100 * time.Second / 19},
		{"no seed: the origin feeds one node", lines{origin: duplex{u, u}, nodes: same(5, u, 0)}, 10 * time.Second},
		{"one slow node", lines{seeds: same(1, u, u), nodes: append(same(3, u, u), duplex{u / 10, u / 10})}, 100 * time.Second},
		{"a narrow uplink", lines{seeds: same(1, u, u), nodes: same(4, u, u), uplinks: same(2, u/5, u/5)}, 50 * time.Second},
		{"no limits", lines{seeds: same(1, 0, 0), nodes: same(4, 0, 0)}, 0},
	} {
		if got := c.lines.bound(100 * mega); (got - c.want).Abs() > time.Millisecond {
			t.Errorf("%s: bound %v, want %v", c.name, got, c.want)
		}
	}
}

func TestNodeBoundLeavesSlowerNodesOut(t *testing.T) {
	const u = 10 * mega
	l := lines{seeds: same(1, u, u), nodes: append(same(3, u, u), duplex{u / 10, u / 10})}
	if got := l.nodeBound(100*mega, 0); got != 10*time.Second {
		t.Errorf("bound of a fast node is %v, want 10s: it need not wait for the slow one", got)
	}
	if got := l.nodeBound(100*mega, 3); got != 100*time.Second {
		t.Errorf("bound of the slow node is %v, want 100s", got)
	}
}

func TestMedian(t *testing.T) {
	for want, d := range map[time.Duration][]time.Duration{0: nil, 1: {1}, 2: {9, 2, 1}, 3: {4, 3, 1, 8}} {
		if got := median(d); got != want {
			t.Errorf("median of %v is %d, want %d", d, got, want)
		}
	}
}

func TestOver(t *testing.T) {
	if over(3.0, 2.0) != 1.5 || over(3, 0) != 0 || over(3*time.Second, 2*time.Second) != 1.5 {
		t.Error("over does not divide")
	}
}

// TestResultKeys holds the keys that readers of the JSON rely on.
func TestResultKeys(t *testing.T) {
	var out bytes.Buffer
	r := Result{Scenario: "flash", Nodes: 8, Ratio: 1.23456, With: map[string]Side{"direct": {Ratio: 8.4444}}, Figures: map[string]float64{"late_ratio": 1.00049}}
	if err := r.print(&out, true); err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(&out)
	var got map[string]any
	if err := decoder.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if decoder.More() {
		t.Error("there is more than one JSON object")
	}
	want := []string{"nodes", "blob_bytes", "rate_bps", "seconds_max", "seconds_p50", "bound_seconds", "ratio", "origin_bytes",
		"origin_ratio", "origin_requests", "failed", "cpu_seconds_per_gb", "rss_max_bytes", "scenario", "seed", "wrong_bytes"}
	for _, key := range want {
		if _, ok := got[key]; !ok {
			t.Errorf("key %q is missing; there are %v", key, slices.Sorted(maps.Keys(got)))
		}
	}
	if got["ratio"] != 1.235 {
		t.Errorf("ratio is printed as %v, want 1.235", got["ratio"])
	}
	if r.With["direct"].Ratio != 8.4444 || r.Figures["late_ratio"] != 1.00049 {
		t.Error("printing changed the result")
	}
}

func TestVerdict(t *testing.T) {
	if err := (Result{Ratio: 9}).verdict(); err != nil {
		t.Errorf("a slow run fails: %v", err)
	}
	err := Result{Failed: 2, WrongBlobs: 1, Broken: []string{"no liar was found"}}.verdict()
	for _, want := range []string{"2 pulls failed", "1 blobs", "no liar was found"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("verdict is %v, want %q in it", err, want)
		}
	}
}

func TestChecker(t *testing.T) {
	for _, c := range []struct {
		name      string
		parts     []string
		at, wrong int64
	}{
		{"all of it, in parts", []string{"dam", "", "selfly"}, 9, 0},
		{"too little", []string{"dam"}, 3, 0},
		{"two bytes changed", []string{"dam", "SelfLy"}, 9, 2},
		{"too much", []string{"damselfly", "!!"}, 11, 2},
		{"too much at once", []string{"damselfly!"}, 10, 1},
	} {
		check := checker{want: []byte("damselfly")}
		for _, part := range c.parts {
			check.write([]byte(part))
		}
		if check.at != c.at || check.wrong != c.wrong {
			t.Errorf("%s: %d bytes, %d wrong; want %d and %d", c.name, check.at, check.wrong, c.at, c.wrong)
		}
	}
}

func TestParseProc(t *testing.T) {
	stat := "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 9 0 12345 1000 200 18446744073709551615 1 1"
	key, cpu, err := parseStat(42, []byte(stat))
	if err != nil || cpu != 2*time.Second || key != (procKey{42, 12345}) {
		t.Errorf("parseStat: %v, %v, %v; want 2s of process 42 started at 12345", key, cpu, err)
	}
	if _, _, err := parseStat(42, []byte("nonsense")); err == nil {
		t.Error("parseStat takes nonsense")
	}
	peak, err := parsePeak([]byte("Name:\tdfget\nVmPeak:\t  999 kB\nVmHWM:\t   2048 kB\n"))
	if err != nil || peak != 2<<20 {
		t.Errorf("parsePeak: %d, %v; want 2 MiB", peak, err)
	}
	busy, err := parseMachine([]byte("cpu  100 20 30 1000 50 7 8 50 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"))
	if err != nil || busy != 2150*time.Millisecond {
		t.Errorf("parseMachine: %v, %v; want 2.15s: all but idle and iowait", busy, err)
	}
}

// TestMeter measures this process: what it burns is seen, and what it had before is
// not.
func TestMeter(t *testing.T) {
	burn := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); {
			continue
		}
	}
	burn(100 * time.Millisecond)
	pids := []int{syscall.Getpid()}
	m := newMeter(func() []int { return pids })
	if err := m.start(); err != nil {
		t.Fatal(err)
	}
	burn(300 * time.Millisecond)
	m.sample()
	pids = nil // it has ended, as far as the meter can see
	got, err := m.read()
	if err != nil {
		t.Fatal(err)
	}
	// On a busy machine a process gets less of the CPU than time passes.
	if got.cpu < 50*time.Millisecond || got.cpu > 5*time.Second {
		t.Errorf("measured %v of CPU after burning for 0.3 s", got.cpu)
	}
	if got.rss < 1<<20 {
		t.Errorf("measured %d bytes of memory", got.rss)
	}
}

func TestNumber(t *testing.T) {
	for name, want := range map[string]int{"node12": 12, "seed1": 1, "scheduler": 0, "n0de": 0, "": 0} {
		if got := number(name); got != want {
			t.Errorf("number of %q is %d, want %d", name, got, want)
		}
	}
}

func TestExitCode(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	if got := exitCode(ctx, nil); got != 0 {
		t.Errorf("exit code %d, want 0", got)
	}
	if got := exitCode(ctx, errors.New("bad")); got != 1 {
		t.Errorf("exit code %d of an error, want 1", got)
	}
	cancel(interrupted{syscall.SIGINT})
	if got := exitCode(ctx, ctx.Err()); got != 130 {
		t.Errorf("exit code %d after SIGINT, want 130", got)
	}
}

// TestOptions holds what a mistaken flag is answered.
func TestOptions(t *testing.T) {
	good := func() options {
		return options{Nodes: 8, Seeds: 1, Schedulers: 1, Rate: "100mbit", Blob: "64MiB", Scenario: "flash"}
	}
	for want, change := range map[string]func(*options){
		"--scenario":  func(o *options) { o.Scenario = "nonsense" },
		"--rate":      func(o *options) { o.Rate = "fast" },
		"--seed-rate": func(o *options) { o.SeedRate = "faster" },
		"--blob":      func(o *options) { o.Blob = "large" },
		"--nodes":     func(o *options) { o.Nodes = 0 },
		"--with":      func(o *options) { o.With = []string{"magic"} },
	} {
		o := good()
		change(&o)
		if _, err := o.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one about %s", err, want)
		}
	}
	o := good()
	if _, err := o.validate(); err != nil || len(o.layers) != 1 || o.layers[0] != 64<<20 || o.originRate != o.rate {
		t.Errorf("options %+v, error %v", o, err)
	}
}

// TestEveryRowCanRun holds that each row of the table is a command that is understood.
func TestEveryRowCanRun(t *testing.T) {
	names := map[string]bool{}
	for _, r := range rows() {
		c := newRun()
		if err := c.ParseFlags(r.args()); err != nil {
			t.Errorf("%s: %v", r.name, err)
		}
		if names[r.name] || len(r.bars) == 0 {
			t.Errorf("row %q: twice, or without bars", r.name)
		}
		names[r.name] = true
	}
}

func TestRowVerdict(t *testing.T) {
	r := row{name: "x", scenario: "flash", nodes: 8, bars: []bar{nobodyFails(), ratio(1.15)}}
	if l := (line{row: r, result: Result{Nodes: 8, Ratio: 1.15}}); !l.ok() {
		t.Error("a row at its bar fails")
	}
	if l := (line{row: r, result: Result{Nodes: 8, Ratio: 1.16}}); l.ok() || l.verdict() != "FAILS" {
		t.Error("a row above its bar holds")
	}
	if l := (line{row: r, result: Result{Nodes: 8}, err: errors.New("killed")}); l.ok() {
		t.Error("a row whose run failed holds")
	}
}

func TestMixedLayers(t *testing.T) {
	o := options{size: 256 << 20}
	mixed(&o)
	var sum int64
	for _, l := range o.layers {
		sum += l
	}
	if len(o.layers) != 40 || (sum-o.size) > 1<<20 || (o.size-sum) > 1<<20 {
		t.Errorf("%d layers of %d bytes, want 40 of about %d", len(o.layers), sum, o.size)
	}
}

// A bar on a figure does not hold where the scenario has not set it.
func TestFigureThatIsNotThere(t *testing.T) {
	b := figure("waits", 3)
	if b.holds(Result{}) || !b.holds(Result{Figures: map[string]float64{"waits": 3}}) || b.holds(Result{Figures: map[string]float64{"waits": 3.1}}) {
		t.Error("a missing figure holds, or one at the bar does not, or one above it does")
	}
}
