package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/scheduler/sim"
)

// simulator is sim.Run.
type simulator func(sim.Scenario, func() int64) (*sim.Result, error)

// simulation is what the command line asks for, besides the scenario.
type simulation struct {
	file, plot    string
	size          config.Bytes
	pieces        int
	layers, slots int
	runs          int
	json          bool
}

func newSimCommand(run simulator) *cobra.Command {
	var ask simulation
	c := &cobra.Command{
		Use:   "sim",
		Short: "Simulate a cluster: how long will so many nodes take for this image?",
		Long: `sim lets nodes of a simulated cluster pull an image, scheduled by the very code that
a live scheduler runs, and tells how long that takes: against the bound, which is
what the links carry at best, and against every node pulling from the registry.

It needs no cluster and moves no bytes. Equal scenarios give equal results; --random
and --runs try other luck. Faults are settings as everything else. The exit code is 1
when a node that lives did not get everything.`,
		Example: `  # How long will 2,000 nodes on 10 Gbit take for this 8 GB image?
  scheduler sim --nodes 2000 --rate 10gbit --size 8gb

  # And from a registry that sends 5 Gbit/s, at most, to all together?
  scheduler sim --nodes 2000 --rate 10gbit --size 8gb --origin-rate 5gbit

  # The same as 12 layers, three at a time, with 2 seeds, drawn as a picture
  scheduler sim --nodes 2000 --rate 10gbit --size 680mb --layers 12 --parallel 3 --seeds 2 --plot image.svg

  # 20 racks whose lines to the others are oversubscribed 5:1
  scheduler sim --nodes 1000 --size 1gb --racks 20 --oversubscribed 5

  # What if a tenth of the nodes die and the seed dies half way? Ten times, with other luck
  scheduler sim --nodes 500 --size 1gb --die 0.1 --seed-dies 0.5 --runs 10

  # Everything in a file; flags come on top
  scheduler sim defaults > scenario.yaml
  scheduler sim --scenario scenario.yaml --nodes 5000 --json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return simulate(c, ask, run) },
	}
	flags := c.Flags()
	defaults := defaultScenario()
	if err := config.Bind(flags, &defaults); err != nil {
		panic(err) // the struct tags of scenarioSettings are wrong
	}
	flags.VisitAll(plainUsage)
	flags.Var(&sizeFlag{&ask.size}, "size", "`size` of a layer, such as 8gb or 512MiB (default 64MiB)")
	flags.IntVar(&ask.pieces, "pieces", 0, "instead of --size: how many pieces a layer has")
	flags.IntVar(&ask.layers, "layers", 0, "how many such layers every node wants (default 1)")
	flags.IntVar(&ask.slots, "slots", 0, "both --upload-slots and --download-slots")
	flags.IntVar(&ask.runs, "runs", 1, "simulate so many times, each with another random seed, and show median and worst")
	flags.StringVar(&ask.file, "scenario", "", "YAML `file` with the scenario; flags come on top. See 'scheduler sim defaults'")
	flags.BoolVar(&ask.json, "json", false, "print one JSON object")
	flags.StringVar(&ask.plot, "plot", "", "draw completed nodes over time into this `file`, as SVG")
	c.AddCommand(newReplayCommand(), newDefaultsCommand())
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if strings.HasSuffix(err.Error(), "unknown flag: --seed") {
			return fmt.Errorf("%w; --random is the seed of random choices, --seeds is how many seed nodes there are", err)
		}
		return err
	})
	c.SetUsageTemplate(withoutGlobalFlags(c.UsageTemplate()))
	return c
}

func newDefaultsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "defaults",
		Short: "Print a complete scenario file with every setting explained",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var b bytes.Buffer
			d := defaultScenario()
			if err := config.WriteDefaults(&b, &d); err != nil {
				return err
			}
			// A scenario is no configuration: no variables set it.
			text := regexp.MustCompile(`(?m)^( *# )DAMSELFLY_\w+ --`).ReplaceAll(b.Bytes(), []byte("${1}Flag: --"))
			text = regexp.MustCompile(`(?m)^ *# DAMSELFLY_\w+ *\n`).ReplaceAll(text, nil)
			_, err := c.OutOrStdout().Write(text)
			return err
		},
	}
}

// plainUsage leaves from a setting's flag the variable that it would have if a
// scenario were configuration, and names what follows it.
func plainUsage(f *pflag.Flag) {
	f.Usage = regexp.MustCompile(` ?\(DAMSELFLY_\w+\)`).ReplaceAllString(f.Usage, "")
	f.Usage = strings.ToLower(f.Usage[:1]) + f.Usage[1:]
	if strings.HasSuffix(f.Name, "rate") && f.Value.Type() == "string" {
		f.Usage = strings.Replace(f.Usage, "rate", "`rate`", 1)
	}
}

// withoutGlobalFlags is a usage template that leaves out the flags of serve.
func withoutGlobalFlags(template string) string {
	return regexp.MustCompile(`(?s)\{\{if \.HasAvailableInheritedFlags\}\}.*?\{\{end\}\}`).ReplaceAllString(template, "")
}

// sizeFlag is a config.Bytes as a flag.
type sizeFlag struct{ *config.Bytes }

func (s *sizeFlag) Set(text string) error { return s.UnmarshalText([]byte(text)) }
func (s *sizeFlag) Type() string          { return "size" }
func (s *sizeFlag) String() string {
	if s.Bytes == nil || *s.Bytes == 0 {
		return ""
	}
	return s.Bytes.String()
}

// simulate runs what was asked for and shows it.
func simulate(c *cobra.Command, ask simulation, run simulator) error {
	settings, err := loadScenario(ask.file, c.Flags())
	if err != nil {
		return err
	}
	if err := ask.putOver(&settings, c.Flags()); err != nil {
		return err
	}
	if ask.runs < 1 {
		return fmt.Errorf("--runs is %d: must be 1 at least", ask.runs)
	}
	scenario, err := settings.scenario()
	if err != nil {
		return err
	}
	results := make([]*sim.Result, 0, min(ask.runs, 1000))
	epoch := time.Now()
	for i := range ask.runs {
		scenario.Random = settings.Random + uint64(i)
		result, err := run(scenario, func() int64 { return int64(time.Since(epoch)) })
		if err != nil {
			return err
		}
		results = append(results, result)
	}
	out := report{settings: settings, runs: results, median: medianOf(results)}
	write := out.write
	if ask.json {
		write = out.writeJSON
	}
	if err := write(c.OutOrStdout()); err != nil {
		return err
	}
	if ask.plot != "" {
		if err := out.draw(ask.plot); err != nil {
			return err
		}
	}
	return out.stuck()
}

// putOver sets what the flags say that are no settings.
func (ask simulation) putOver(s *scenarioSettings, flags *pflag.FlagSet) error {
	size, pieces, layers := flags.Changed("size"), flags.Changed("pieces"), flags.Changed("layers")
	if size && pieces {
		return errors.New("--size and --pieces say the same in two ways: give one of them")
	}
	for _, n := range []struct {
		name string
		v    int64
	}{{"size", int64(ask.size)}, {"pieces", int64(ask.pieces)}, {"layers", int64(ask.layers)}, {"slots", int64(ask.slots)}} {
		if flags.Changed(n.name) && n.v < 1 {
			return fmt.Errorf("--%s is %d: must be 1 at least", n.name, n.v)
		}
	}
	if size || pieces || layers {
		one := blobSettings{Pieces: 256}
		if len(s.Blobs) == 1 {
			one = s.Blobs[0]
		}
		if len(s.Blobs) > 1 && !size && !pieces {
			return errors.New("--layers multiplies one layer, and the scenario file has several: say their count there, or give --size too")
		}
		if size || pieces {
			one.Size, one.Pieces = ask.size, ask.pieces
		}
		if layers {
			one.Count = ask.layers
		}
		s.Blobs = []blobSettings{one}
	}
	if flags.Changed("slots") {
		s.UploadSlots, s.DownloadSlots = ask.slots, ask.slots
	}
	return nil
}

// medianOf is the run in the middle by its makespan; of an even number the later.
func medianOf(runs []*sim.Result) *sim.Result {
	sorted := slices.Clone(runs)
	slices.SortStableFunc(sorted, func(a, b *sim.Result) int {
		switch {
		case a.Makespan < b.Makespan:
			return -1
		case a.Makespan > b.Makespan:
			return 1
		}
		return 0
	})
	return sorted[len(sorted)/2]
}

// draw writes the picture to a file.
func (r report) draw(name string) error {
	var b bytes.Buffer
	err := plot{title: r.title(), subtitle: r.subtitle(), nodes: r.settings.Nodes, runs: r.runs, median: r.median}.write(&b)
	if err == nil {
		err = os.WriteFile(name, b.Bytes(), 0o644)
	}
	if err != nil {
		return fmt.Errorf("plot: %w; name a file that this user may write", err)
	}
	return nil
}

// nobody errs when no node lived to get everything: then there is nothing to tell.
func (r report) nobody() error {
	for _, result := range r.runs {
		if result.Whole > 0 || result.Stuck > 0 {
			return nil
		}
	}
	return errors.New("nobody is alive at the end, so nobody got everything: --die and --lie leave too few nodes")
}

// stuck errs when nodes that live did not get everything.
func (r report) stuck() error {
	worst, runs := 0, 0
	for _, result := range r.runs {
		worst = max(worst, result.Stuck)
		runs += min(result.Stuck, 1)
	}
	if worst == 0 {
		return r.nobody()
	}
	return fmt.Errorf("%s of %s nodes did not get everything (in %d of %d runs): --limit gives them more time, and with fewer faults they need less",
		grouped(int64(worst)), grouped(int64(r.settings.Nodes)), runs, len(r.runs))
}
