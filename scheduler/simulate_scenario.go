package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
	"github.com/damselfly-p2p/damselfly/scheduler/sim"
)

// scenarioSettings is a sim.Scenario as flags and scenario files spell it: with
// units, and with its defaults written out, so that zero means none.
type scenarioSettings struct {
	Random         uint64          `yaml:"random" doc:"Seed of every random choice. Equal scenarios give equal results."`
	Nodes          int             `yaml:"nodes" doc:"Nodes that want the blobs."`
	Seeds          int             `yaml:"seeds" doc:"Seeds beside them; without any, a node reads the registry."`
	Warm           bool            `yaml:"warm" doc:"Seeds hold every layer from the start, as after an earlier pull."`
	Schedulers     int             `yaml:"schedulers" doc:"Schedulers that share the blobs."`
	Blobs          []blobSettings  `yaml:"blobs" doc:"Layers that every node wants. None: one of 256 pieces of 256KiB."`
	Parallel       int             `yaml:"parallel" doc:"Layers that a node pulls at a time, as containerd's max_concurrent_downloads, 0 for all at once."`
	Rate           rate            `yaml:"rate" doc:"The rate at which a node sends, and receives at the same time."`
	SeedRate       rate            `yaml:"seedRate" doc:"The rate of a seed, 0 for that of a node."`
	OriginRate     rate            `yaml:"originRate" doc:"The rate of the registry to all its readers together, 0 for ten times a seed's."`
	OriginLatency  config.Duration `yaml:"originLatency" doc:"Time until the registry's first byte."`
	Jitter         float64         `yaml:"jitter" doc:"Part by which the time of transfers varies, from 0 to 1."`
	Latency        config.Duration `yaml:"latency" doc:"Time of a message one way, between nodes and to the scheduler."`
	UploadSlots    int             `yaml:"uploadSlots" doc:"Leases that read from a node at a time. A seed has as many times more as its rate is higher."`
	DownloadSlots  int             `yaml:"downloadSlots" doc:"Leases that a node runs at a time."`
	NoEnding       bool            `yaml:"noEnding" flag:"-" doc:"Nodes do not say that a lease is about to end."`
	Arrivals       string          `yaml:"arrivals" doc:"How nodes come: flash (all at once), staggered (at random within the span) or poisson (the span is the mean time between two)."`
	Span           config.Duration `yaml:"span" doc:"Span of staggered arrivals, or the mean time between two of poisson."`
	Slow           float64         `yaml:"slow" doc:"Fraction of nodes with slow links, from 0 to 1."`
	SlowFactor     float64         `yaml:"slowFactor" doc:"What part of the rate slow links have."`
	Racks          int             `yaml:"racks" doc:"Racks that nodes and seeds stand in, 0 for one."`
	Oversubscribed float64         `yaml:"oversubscribed" doc:"How many times more the links of a rack carry together than its line to the others."`
	NoPlaces       bool            `yaml:"noPlaces" flag:"-" doc:"The scheduler is not told who stands where."`
	Faults         faultSettings   `yaml:"faults" doc:"What goes wrong. Fractions are of the nodes, at random; a point of progress is a fraction of the bytes that all nodes want, and 0 means never."`
	Core           coreSettings    `yaml:"core" doc:"The rules of the scheduler's core. The defaults are those of a live scheduler; 0 means the default."`
	Limit          config.Duration `yaml:"limit" doc:"Simulated time after which whoever waits counts as stuck, 0 for 20 times the bound and two minutes."`
}

type blobSettings struct {
	Size   config.Bytes `yaml:"size" doc:"Size of the layer, such as 8GB or 512MiB."`
	Pieces int          `yaml:"pieces" doc:"Instead of a size: how many pieces it has."`
	Count  int          `yaml:"count" doc:"How many such layers. 0 means one."`
}

type faultSettings struct {
	Die            float64         `yaml:"die" flag:"die" doc:"Fraction of nodes that die on the way."`
	Lie            float64         `yaml:"lie" flag:"lie" doc:"Fraction of nodes that send bad bytes."`
	Hang           float64         `yaml:"hang" flag:"hang" doc:"Fraction of nodes that take requests and never answer."`
	Trickle        float64         `yaml:"trickle" flag:"trickle" doc:"Fraction of nodes that send a byte a second."`
	Evict          float64         `yaml:"evict" flag:"evict" doc:"Fraction of nodes that drop a layer soon after it came."`
	SeedDies       float64         `yaml:"seedDies" flag:"seed-dies" doc:"Point of progress at which the seed that reads dies, such as 0.5."`
	SchedulerDies  float64         `yaml:"schedulerDies" flag:"scheduler-dies" doc:"Point of progress at which a scheduler dies. The only one is replaced by one that knows nothing."`
	SchedulerJoins float64         `yaml:"schedulerJoins" flag:"scheduler-joins" doc:"Point of progress at which one more scheduler joins."`
	Detect         config.Duration `yaml:"detect" flag:"detect" doc:"Time until a death is known."`
	OriginBusy     int             `yaml:"originBusy" flag:"origin-busy" doc:"Reads that the registry first answers with 429."`
	RetryAfter     config.Duration `yaml:"retryAfter" flag:"-" doc:"What those answers say to wait."`
	OriginFails    float64         `yaml:"originFails" flag:"origin-fails" doc:"Probability that a read of the registry breaks off."`
}

// defaultScenario is what is simulated where nothing is said: the zero
// sim.Scenario, written out.
func defaultScenario() scenarioSettings {
	return scenarioSettings{
		Random: 1, Nodes: 100, Seeds: 1, Schedulers: 1, Rate: 12.5e6, Jitter: 0.2,
		Latency: 100 * time.Microsecond, UploadSlots: 2, DownloadSlots: 2, Arrivals: "flash",
		SlowFactor: 0.1, Oversubscribed: 1, Faults: faultSettings{Detect: 2 * time.Second}, Core: liveCore(),
	}
}

// loadScenario reads the scenario file, if one is named, and puts the flags over it.
func loadScenario(file string, flags *pflag.FlagSet) (scenarioSettings, error) {
	s := defaultScenario()
	if _, err := os.Stat(file); file != "" && errors.Is(err, os.ErrNotExist) {
		return s, fmt.Errorf("scenario file %s: %w; 'scheduler sim defaults' prints a complete one to start from", file, os.ErrNotExist)
	}
	_, err := config.Load(&s, config.Options{File: file, Flags: flags})
	return s, err
}

// scenario is the sim.Scenario that s spells, or what it lacks.
func (s scenarioSettings) scenario() (sim.Scenario, error) {
	sc := sim.Scenario{
		Random: s.Random, Nodes: s.Nodes, Seeds: s.Seeds, Warm: s.Warm, Schedulers: s.Schedulers, Parallel: s.Parallel,
		Rate: float64(s.Rate), SeedRate: float64(s.SeedRate), OriginRate: float64(s.OriginRate), OriginLatency: core.Time(s.OriginLatency),
		Jitter: s.Jitter, Latency: core.Time(s.Latency), UploadSlots: s.UploadSlots, DownloadSlots: s.DownloadSlots, NoEnding: s.NoEnding,
		Arrivals: s.Arrivals, Span: core.Time(s.Span), Slow: s.Slow, SlowFactor: s.SlowFactor, Racks: s.Racks, Oversubscribed: s.Oversubscribed,
		NoPlaces: s.NoPlaces, Core: s.Core.config(), Limit: core.Time(s.Limit),
		Faults: sim.Faults{
			Die: s.Faults.Die, Lie: s.Faults.Lie, Hang: s.Faults.Hang, Trickle: s.Faults.Trickle, Evict: s.Faults.Evict,
			SeedDies: s.Faults.SeedDies, SchedulerDies: s.Faults.SchedulerDies, SchedulerJoins: s.Faults.SchedulerJoins,
			Detect: core.Time(s.Faults.Detect), OriginBusy: s.Faults.OriginBusy, RetryAfter: core.Time(s.Faults.RetryAfter), OriginFails: s.Faults.OriginFails,
		},
	}
	for _, b := range s.Blobs {
		sc.Blobs = append(sc.Blobs, sim.Blob{Size: int64(b.Size), Pieces: b.Pieces, Count: b.Count})
	}
	if s.Seeds == 0 {
		sc.Seeds = -1
	}
	if s.Jitter == 0 {
		sc.Jitter = -1
	}
	if s.Latency == 0 {
		sc.Latency = -1
	}
	return sc, s.missing()
}

// missing errs on what must not be zero; a sim.Scenario would take its default.
// It also refuses what is below zero, which there means none.
func (s scenarioSettings) missing() error {
	var errs []error
	for _, n := range []struct {
		name           string
		v              float64
		least, example string
	}{
		{"random", float64(s.Random), "1", "1"}, {"nodes", float64(s.Nodes), "1", "1000"}, {"schedulers", float64(s.Schedulers), "1", "1"},
		{"rate", float64(s.Rate), "some bytes a second", "10gbit"}, {"uploadSlots", float64(s.UploadSlots), "1", "2"},
		{"downloadSlots", float64(s.DownloadSlots), "1", "2"}, {"slowFactor", s.SlowFactor, "more than 0", "0.1"},
		{"oversubscribed", s.Oversubscribed, "1", "5"}, {"faults.detect", float64(s.Faults.Detect), "some time", "1ms"},
	} {
		if n.v <= 0 {
			errs = append(errs, fmt.Errorf("%s is %v: must be %s at least; say for instance %s", n.name, n.v, n.least, n.example))
		}
	}
	for _, n := range []struct {
		name string
		v    float64
	}{{"seeds", float64(s.Seeds)}, {"jitter", s.Jitter}, {"latency", float64(s.Latency)}} {
		if n.v < 0 {
			errs = append(errs, fmt.Errorf("%s is below zero: say 0 for none", n.name))
		}
	}
	return errors.Join(errs...)
}

// originRate is what the registry sends, where it is not said.
func (s scenarioSettings) originRate() float64 {
	switch {
	case s.OriginRate > 0:
		return float64(s.OriginRate)
	case s.SeedRate > 0:
		return float64(s.SeedRate) * 10
	}
	return float64(s.Rate) * 10
}
