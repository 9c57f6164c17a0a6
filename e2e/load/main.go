// Command load holds thousands of attending streams against a real scheduler and
// measures what its users feel: how long a decision takes, how many there are, and
// what it costs.
//
// It starts a scheduler of its own, joins every identity with a token as nodes do,
// and opens a connection for each, with its certificate. The nodes are simulated:
// they want blobs, carry out each lease by waiting for as long as it would take, and
// tell what real nodes tell, but move no bytes. The rate of leases is steered by
// how long a piece takes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() {
	// Collecting garbage here would take the CPU from the scheduler that is measured.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(4 << 30)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use: "load", Short: "Put load on a scheduler and measure it", SilenceUsage: true, SilenceErrors: true,
	}
	var (
		cfg    Config
		asJSON bool
	)
	c := &cobra.Command{
		Use: "run", Short: "Start a scheduler, attend with many streams, print what was measured", Args: cobra.NoArgs,
		Example: "  go run ./e2e/load run --streams 5000 --rate 20000 --json",
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := run(c.Context(), cfg, c.ErrOrStderr())
			if err != nil {
				return err
			}
			return r.print(c.OutOrStdout(), asJSON)
		},
	}
	f := c.Flags()
	f.IntVar(&cfg.Streams, "streams", 5000, "how many nodes and seeds attend, each with its own connection and certificate")
	f.IntVar(&cfg.Seeds, "seeds", 0, "how many of these are seeds; 0: one in fifty")
	f.IntVar(&cfg.Swarm, "swarm", 50, "how many nodes want the same blobs")
	f.IntVar(&cfg.Pulling, "pulling", 0, "how many nodes pull; the others attend and wait for work; 0: one in five, or all where there are fewer than 1,000")
	f.IntVar(&cfg.Rate, "rate", 20000, "leases per second to reach")
	f.IntVar(&cfg.Pieces, "pieces", 64, "pieces of each blob")
	f.IntVar(&cfg.Blobs, "blobs", 2, "blobs that a node wants at a time")
	f.IntVar(&cfg.Slots, "slots", 2, "upload and download slots of a node")
	f.DurationVar(&cfg.Warm, "warm", 20*time.Second, "time to reach the rate before anything is measured")
	f.DurationVar(&cfg.For, "for", 30*time.Second, "time that is measured")
	f.BoolVar(&cfg.Ending, "ending", false, "nodes say Ending before the end of each lease")
	f.IntVar(&cfg.Sample, "sample", 8, "ask for a pong behind one of so many Dones, to measure by")
	f.StringVar(&cfg.Scheduler, "scheduler", "", "the scheduler's program; it is built when empty")
	f.StringVar(&cfg.Dir, "dir", "", "directory for certificates and the scheduler's state and log, kept for the next run; a temporary one when empty")
	f.StringVar(&cfg.Trace, "trace", "", "file that the scheduler traces to")
	f.StringVar(&cfg.Profile, "profile", "", "file for a CPU profile of the scheduler")
	f.StringVar(&cfg.LoadProfile, "load-profile", "", "file for a CPU profile of the load program itself")
	f.StringVar(&cfg.LogLevel, "log-level", "warn", "log level of the scheduler")
	f.IntVar(&cfg.Procs, "procs", 0, "GOMAXPROCS of the scheduler; 0: all")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	root.AddCommand(c)
	return root
}
