package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
	"github.com/damselfly-p2p/damselfly/scheduler/sim"
)

// pretended runs the sim command with a simulator that only takes down what it was
// asked for; the makespan grows with the random seed.
func pretended(t *testing.T, stuck int, args ...string) (out string, asked []sim.Scenario, err error) {
	t.Helper()
	run := func(s sim.Scenario, clock func() int64) (*sim.Result, error) {
		asked = append(asked, s)
		if clock() < 0 {
			return nil, errors.New("the clock runs backwards")
		}
		makespan := 6 + float64(s.Random)/10
		return &sim.Result{Nodes: s.Nodes, Random: s.Random, Policy: "rarest", BlobBytes: 8e9, Pieces: 1000, Stuck: stuck, Whole: s.Nodes - stuck, BoundSeconds: 6,
			Makespan: makespan, MakespanRatio: makespan / 6, OriginBytes: 8e9, OriginRatio: 1, Decisions: 100, NsPerDecision: 900,
			Progress: []sim.Point{{Seconds: 6, Whole: 1}, {Seconds: makespan, Whole: s.Nodes}}}, nil
	}
	c := newSimCommand(run)
	c.SilenceUsage, c.SilenceErrors = true, true
	var b bytes.Buffer
	c.SetArgs(args)
	c.SetOut(&b)
	c.SetErr(&b)
	err = c.ExecuteContext(t.Context())
	return b.String(), asked, err
}

func scenarioFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "scenario.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestScenarioFromFlags(t *testing.T) {
	_, asked, err := pretended(t, 0, "--nodes", "2000", "--seeds", "0", "--schedulers", "3", "--size", "8gb", "--layers", "4", "--parallel", "2",
		"--rate", "10gbit", "--seed-rate", "25gbit", "--origin-rate", "1gbit", "--origin-latency", "20ms", "--latency", "0", "--jitter", "0",
		"--slots", "3", "--arrivals", "poisson", "--span", "10ms", "--slow", "0.1", "--slow-factor", "0.5", "--racks", "20", "--oversubscribed", "5",
		"--die", "0.1", "--lie", "0.05", "--hang", "0.02", "--seed-dies", "0.5", "--scheduler-dies", "0.4", "--policy", "random", "--lease-rate", "1000",
		"--random", "7", "--limit", "1h")
	if err != nil {
		t.Fatal(err)
	}
	want := sim.Scenario{Random: 7, Nodes: 2000, Seeds: -1, Schedulers: 3, Blobs: []sim.Blob{{Size: 8e9, Count: 4}}, Parallel: 2,
		Rate: 1.25e9, SeedRate: 3.125e9, OriginRate: 125e6, OriginLatency: 20 * core.Millisecond, Latency: -1, Jitter: -1, UploadSlots: 3, DownloadSlots: 3,
		Arrivals: "poisson", Span: 10 * core.Millisecond, Slow: 0.1, SlowFactor: 0.5, Racks: 20, Oversubscribed: 5,
		Faults: sim.Faults{Die: 0.1, Lie: 0.05, Hang: 0.02, SeedDies: 0.5, SchedulerDies: 0.4, Detect: 2 * core.Second},
		Core:   core.DefaultConfig(), Limit: 3600 * core.Second}
	want.Core.Policy, want.Core.LeaseRate = "random", 1000
	if !reflect.DeepEqual(asked[0], want) {
		t.Errorf("got  %+v\nwant %+v", asked[0], want)
	}
}

func TestScenarioFromFile(t *testing.T) {
	file := scenarioFile(t, `
nodes: 50
rate: 2.5gbit
latency: 2ms
noPlaces: true
blobs:
- size: 512MiB
  count: 3
- pieces: 10
faults: {trickle: 0.1, retryAfter: 3s, originBusy: 2}
core: {window: 32, leaseTime: 4s, leaseBytes: 4MiB}
`)
	_, asked, err := pretended(t, 0, "--scenario", file, "--nodes", "70")
	if err != nil {
		t.Fatal(err)
	}
	s := asked[0]
	if s.Nodes != 70 || s.Rate != 312.5e6 || s.Latency != 2*core.Millisecond || !s.NoPlaces || s.Jitter != 0.2 ||
		!reflect.DeepEqual(s.Blobs, []sim.Blob{{Size: 512 << 20, Count: 3}, {Pieces: 10}}) || s.Faults.Trickle != 0.1 ||
		s.Faults.RetryAfter != 3*core.Second || s.Faults.OriginBusy != 2 || s.Core.Window != 32 || s.Core.LeaseTime != 4*core.Second ||
		s.Core.LeaseBytes != 4<<20 || s.Core.RareCopies != 3 {
		t.Errorf("got %+v", s)
	}
	_, asked, err = pretended(t, 0, "--scenario", file, "--size", "1gb")
	if err != nil || !reflect.DeepEqual(asked[0].Blobs, []sim.Blob{{Size: 1e9}}) {
		t.Errorf("--size over the file's blobs: %+v, %v", asked, err)
	}
	one := scenarioFile(t, "blobs: [{size: 3GB, count: 2}]")
	_, asked, err = pretended(t, 0, "--scenario", one, "--layers", "5")
	if err != nil || !reflect.DeepEqual(asked[0].Blobs, []sim.Blob{{Size: 3e9, Count: 5}}) {
		t.Errorf("--layers over the file's blob: %+v, %v", asked, err)
	}
}

func TestBadScenarios(t *testing.T) {
	file := scenarioFile(t, "nodes: 5\nrates: 1gbit\n")
	two := scenarioFile(t, "blobs: [{size: 1GB}, {size: 2GB}]\n")
	ambiguous := scenarioFile(t, "nodes: 5\nfaults:\n  detect: 3\n")
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"unknown key":          {[]string{"--scenario", file}, []string{file + ":2", "rates", `"rate"`}},
		"no unit":              {[]string{"--scenario", ambiguous}, []string{ambiguous + ":3", "500ms"}},
		"no such file":         {[]string{"--scenario", "/no/such.yaml"}, []string{"/no/such.yaml", "sim defaults"}},
		"bits or bytes":        {[]string{"--rate", "10gb"}, []string{"--rate", "10gbit"}},
		"no size":              {[]string{"--size", "huge"}, []string{"--size", "huge"}},
		"size and pieces":      {[]string{"--size", "1gb", "--pieces", "3"}, []string{"--size", "--pieces", "one of them"}},
		"layers of several":    {[]string{"--scenario", two, "--layers", "3"}, []string{"--layers", "several"}},
		"no layers":            {[]string{"--layers", "0"}, []string{"--layers is 0"}},
		"no nodes":             {[]string{"--nodes", "0"}, []string{"nodes is 0", "for instance"}},
		"no slots":             {[]string{"--slots", "0"}, []string{"--slots is 0"}},
		"seeds below zero":     {[]string{"--seeds", "-1"}, []string{"seeds", "say 0"}},
		"no runs":              {[]string{"--runs", "0"}, []string{"--runs is 0"}},
		"no such flag":         {[]string{"--seeed", "3"}, []string{"seeed"}},
		"an argument":          {[]string{"2000"}, []string{"2000"}},
		"plot cannot be there": {[]string{"--plot", "/no/such/dir/a.svg"}, []string{"/no/such/dir/a.svg", "name a file"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := pretended(t, 0, c.args...)
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v lacks %q", err, want)
				}
			}
		})
	}
}

func TestReportAnswersThePlanner(t *testing.T) {
	picture := filepath.Join(t.TempDir(), "a.svg")
	out, _, err := pretended(t, 0, "--nodes", "2000", "--rate", "10gbit", "--origin-rate", "2.5gbit", "--plot", picture)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2,000 nodes, 8 GB at 10 Gbit/s: the last node is whole after 6.1 s, 1.02 x the bound of 6 s",
		"registry: 8 GB, 1.00 x the image; without Damselfly 16 TB = 14.2 h at its 2.5 Gbit/s", "stuck nodes", "1,000 pieces, flash arrivals, 1 seed, 1 scheduler"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	svg, err := os.ReadFile(picture)
	if err != nil || elements(t, string(svg))["path"] != 1 || !strings.Contains(string(svg), "2,000 nodes, 8 GB") {
		t.Errorf("the picture is %v\n%s", err, svg)
	}
}

func TestRunsShowMedianAndWorst(t *testing.T) {
	out, asked, err := pretended(t, 0, "--runs", "5", "--random", "3")
	if err != nil || len(asked) != 5 || asked[4].Random != 7 {
		t.Fatalf("%d runs, %v", len(asked), err)
	}
	for _, want := range []string{"after 6.5 s", "median of 5 runs, with random seeds 3 to 7", "MEDIAN  WORST", "last node whole        6.5 s   6.7 s", "makespan ratio         1.083   1.117"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	out, _, err = pretended(t, 0, "--runs", "5", "--json")
	var object struct {
		Runs          []sim.Result
		Median, Worst map[string]float64
		Stuck         *int
	}
	if err != nil || json.Unmarshal([]byte(out), &object) != nil || len(object.Runs) != 5 || object.Stuck == nil ||
		object.Median["makespan_seconds"] != 6.3 || object.Worst["makespan_seconds"] != 6.5 || object.Worst["ns_per_decision"] != 900 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestResultAsJSON(t *testing.T) {
	out, _, err := pretended(t, 0, "--json")
	var object map[string]any
	if err != nil || json.Unmarshal([]byte(out), &object) != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, key := range []string{"makespan_ratio", "mean_ratio", "origin_ratio", "decisions", "ns_per_decision", "stuck"} {
		if _, ok := object[key]; !ok {
			t.Errorf("lacks %s:\n%s", key, out)
		}
	}
}

// Who scripts this asks the exit code; the figures are printed all the same.
func TestStuckNodesAreAnError(t *testing.T) {
	out, _, err := pretended(t, 4, "--json")
	if err == nil || !strings.Contains(err.Error(), "4 of 100 nodes") || !strings.Contains(out, `"stuck": 4`) {
		t.Errorf("got %v\n%s", err, out)
	}
	out, _, err = pretended(t, 4)
	if err == nil || !strings.Contains(out, "not everybody") {
		t.Errorf("got %v\n%s", err, out)
	}
}

// A scenario file spells whatever a sim.Scenario has, and nothing else.
func TestEverySettingOfAScenarioHasItsKey(t *testing.T) {
	d := defaultScenario()
	if missing, err := config.Undocumented(&d); err != nil || len(missing) > 0 {
		t.Errorf("settings without documentation: %v %v", missing, err)
	}
	var compare func(path string, want, got reflect.Type)
	compare = func(path string, want, got reflect.Type) {
		if want.NumField() != got.NumField() {
			t.Errorf("%s has %d fields, its settings %d", path, want.NumField(), got.NumField())
		}
		for i := range want.NumField() {
			w := want.Field(i)
			g, ok := got.FieldByName(w.Name)
			if !ok || g.Tag.Get("yaml") != w.Tag.Get("yaml") && w.Name != "Core" {
				t.Errorf("%s.%s has no setting of its name and key", path, w.Name)
				continue
			}
			if w.Type.Kind() == reflect.Slice {
				w.Type, g.Type = w.Type.Elem(), g.Type.Elem()
			}
			if w.Type.Kind() == reflect.Struct {
				compare(path+"."+w.Name, w.Type, g.Type)
			}
		}
	}
	compare("Scenario", reflect.TypeFor[sim.Scenario](), reflect.TypeFor[scenarioSettings]())
	if got := d.Core.config(); got != core.DefaultConfig() {
		t.Errorf("the core is %+v", got)
	}
}

func TestDefaultsCanBeReadBack(t *testing.T) {
	out, _, err := pretended(t, 0, "defaults")
	if err != nil || !strings.Contains(out, "rate: 100mbit") || strings.Contains(out, "DAMSELFLY") || !strings.Contains(out, "# Flag: --seed-dies") {
		t.Fatalf("%v\n%s", err, out)
	}
	_, asked, err := pretended(t, 0, "--scenario", scenarioFile(t, out))
	if err != nil {
		t.Fatal(err)
	}
	_, want, _ := pretended(t, 0)
	if !reflect.DeepEqual(asked, want) {
		t.Errorf("got  %+v\nwant %+v", asked, want)
	}
}

func TestHelpIsAboutTheSimulation(t *testing.T) {
	out, _, err := pretended(t, 0, "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"How long will 2,000 nodes", "--rate rate", "--size size", "--scenario file", "--plot file", "replay", `(default "100mbit")`} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	for _, wrong := range []string{"DAMSELFLY_", "Global Flags", "--faults", "--core", time.Second.String() + "0"} {
		if strings.Contains(out, wrong) {
			t.Errorf("has %q:\n%s", wrong, out)
		}
	}
}
