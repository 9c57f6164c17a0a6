package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/damselfly-p2p/damselfly/e2e/fabric"
	"github.com/damselfly-p2p/damselfly/pkg/config"
)

// options say what a run is. The flags set the first part; a scenario's prepare may
// change all of it.
type options struct {
	Nodes, Seeds, Schedulers int
	// Rate is what each link carries, each way; OriginRate and SeedRate those of the
	// origin and the seeds, "" for the same.
	Rate, OriginRate, SeedRate string
	// Blob is the size of the image's one layer where the scenario does not say other
	// layers.
	Blob     string
	Scenario string
	// With are other ways of pulling to measure beside Damselfly.
	With []string
	// Plot is the file for a picture of the run, "" for none.
	Plot string
	// Seed makes the bytes of all blobs and every random choice.
	Seed uint64
	// Keep leaves everything running until a signal, and the files after it.
	Keep     bool
	LogLevel string
	// Bin has Damselfly's programs; "" builds them.
	Bin string
	// Timeout ends pulls that take too long; 0 takes ten times the bound and a minute.
	Timeout time.Duration

	// rate, originRate and seedRate are parsed by validate, and size is Blob's.
	rate, originRate, seedRate fabric.Rate
	size                       int64
	// layers are the sizes of the layers of each image; validate makes it one of size.
	layers []int64
	// images is how many images there are.
	images int
	// slow are the nodes, counted from 0, whose links have a tenth of the rate.
	slow []int
	// liars are how many of the nodes misbehave towards others. validate's Nodes are
	// without them.
	liars int
	// racks spreads the nodes over so many racks, 0 for none. Their uplinks carry
	// uplink. Seeds, schedulers and the origin stand outside of them.
	racks  int
	uplink fabric.Rate
	// alter changes the configuration of a member before it first starts: what it
	// returns is added to its file as YAML. nil and "" add nothing.
	alter func(member string) string
	// dataDir puts a member's data somewhere else; "" leaves it where it would be. nil
	// leaves all.
	dataDir func(member string) string
}

// addFlags adds a run's flags.
func (o *options) addFlags(f *pflag.FlagSet) {
	f.IntVar(&o.Nodes, "nodes", 8, "how many nodes pull")
	f.IntVar(&o.Seeds, "seeds", 1, "how many seeds there are")
	f.IntVar(&o.Schedulers, "schedulers", 1, "how many schedulers there are")
	f.StringVar(&o.Rate, "rate", "100mbit", "what each link carries, each way")
	f.StringVar(&o.OriginRate, "origin-rate", "", "what the origin's link carries (default: the same)")
	f.StringVar(&o.SeedRate, "seed-rate", "", "what a seed's link carries (default: the same)")
	f.StringVar(&o.Blob, "blob", "64MiB", "size of the image's layer, where the scenario does not say which layers")
	f.StringVar(&o.Scenario, "scenario", "flash", "what happens; 'list' lists all")
	f.StringSliceVar(&o.With, "with", nil, "other ways of pulling to measure over the same links after the scenario: direct, cache (nginx, installed if it is missing); 'list' lists all")
	f.StringVar(&o.Plot, "plot", "", "write a picture to this file, such as run.svg: each node's progress, the bound, what broke when, and who fed whom")
	f.Uint64Var(&o.Seed, "seed", 1, "makes all bytes and every random choice; the same number repeats a run")
	f.BoolVar(&o.Keep, "keep", false, "leave everything running until Ctrl-C, and the files after it")
	f.StringVar(&o.LogLevel, "log-level", "warn", "log level of Damselfly's processes")
	f.StringVar(&o.Bin, "bin", "", "directory of the programs scheduler, seed and dfget (default: build them)")
	f.DurationVar(&o.Timeout, "timeout", 0, "give up pulls after this long (default: ten times the bound and a minute)")
}

// validate reads what flags say in words, fills in what was left open and says what
// cannot be. It finds the scenario and lets it prepare the options.
func (o *options) validate() (scenario, error) {
	s, ok := findScenario(o.Scenario)
	if !ok {
		return s, fmt.Errorf("--scenario %q: there is none of that name; 'list' lists all", o.Scenario)
	}
	var err error
	if o.rate, err = fabric.ParseRate(o.Rate); err != nil {
		return s, fmt.Errorf("--rate: %w", err)
	}
	if o.rate <= 0 {
		return s, fmt.Errorf("--rate %s: must be above zero", o.Rate)
	}
	for _, r := range []struct {
		flag, text string
		to         *fabric.Rate
	}{{"--origin-rate", o.OriginRate, &o.originRate}, {"--seed-rate", o.SeedRate, &o.seedRate}} {
		*r.to = o.rate
		if r.text == "" {
			continue
		}
		if *r.to, err = fabric.ParseRate(r.text); err != nil {
			return s, fmt.Errorf("%s: %w", r.flag, err)
		}
	}
	size, err := config.ParseBytes(o.Blob)
	if err != nil {
		return s, fmt.Errorf("--blob: %w", err)
	}
	o.size, o.images = int64(size), 1
	if o.size < 1<<10 {
		return s, fmt.Errorf("--blob %s: want 1KiB at least", o.Blob)
	}
	if s.prepare != nil {
		s.prepare(o)
	}
	if o.layers == nil {
		o.layers = []int64{o.size}
	}
	if o.Nodes < 1 || o.Seeds < 0 || o.Schedulers < 1 {
		return s, fmt.Errorf("--nodes %d, --seeds %d, --schedulers %d: want a node and a scheduler at least", o.Nodes, o.Seeds, o.Schedulers)
	}
	if o.Plot != "" {
		if dir, err := os.Stat(filepath.Dir(o.Plot)); err != nil || !dir.IsDir() || filepath.Ext(o.Plot) != ".svg" {
			return s, fmt.Errorf("--plot %s: want a name that ends in .svg, in a directory that is there", o.Plot)
		}
	}
	for i, w := range o.With {
		if _, ok := findSide(w); !ok {
			return s, fmt.Errorf("--with %q: there is none of that name; 'list' lists all", w)
		}
		if slices.Contains(o.With[:i], w) {
			return s, fmt.Errorf("--with %s: named twice", w)
		}
	}
	return s, nil
}

// link is that of node i, counted from 0.
func (o options) link(i int) fabric.Link {
	r := o.rate
	if slices.Contains(o.slow, i) {
		r /= 10
	}
	return fabric.Link{Up: r, Down: r}
}
