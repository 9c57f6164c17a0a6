// Command bench is the yardstick of the data plane: what one node moves, at what cost
// of CPU and memory, beside what the same machine can do at all.
//
// It runs as two processes on loopback, itself and itself started again as the other
// end, and beside them a real node. Every measurement is made in short rounds that
// take turns, and of these the median counts: what else runs on the machine then hits
// all of them alike. It needs no root, writes below one directory, and removes that
// when it ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-p2p/damselfly/pkg/config"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	if ctx.Err() != nil && err != nil {
		err = errors.New("ended by a signal")
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// options say what is measured.
type options struct {
	bytes  int64 // that each row moves, in all rounds together
	rounds int
	dir    string // for all files; "" is a temporary directory
	// only is what the names of rows must match; ratios and bars need all of theirs.
	only string
	// profile is a directory for CPU profiles of both ends; "" makes none.
	profile string
	bin     string // directory of Damselfly's programs; "" builds them
	big     bool   // measure memory with a large layer, too
}

func newRoot() *cobra.Command {
	o := options{bytes: 4e9, rounds: 32}
	var asJSON bool
	c := &cobra.Command{
		Use: "bench", Short: "Measure how near the data plane is to what the machine can do; fails when a bar does not hold",
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		Example: "  go run ./e2e/bench --json\n  go run ./e2e/bench --bytes 1GB --big=false",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			r, err := run(c.Context(), o, sayTo(c.ErrOrStderr()))
			if err != nil {
				return err
			}
			if err := r.print(c.OutOrStdout(), asJSON); err != nil {
				return err
			}
			return r.failed()
		},
	}
	f := c.Flags()
	f.TextVar((*config.Bytes)(&o.bytes), "bytes", config.Bytes(o.bytes), "how much each row moves, in all rounds together; less is quicker and less exact")
	f.IntVar(&o.rounds, "rounds", o.rounds, "how many rounds there are, of which the median counts")
	f.StringVar(&o.dir, "dir", "", "directory for all files, on the disk that is measured; a temporary one when empty")
	f.StringVar(&o.only, "only", "", "measure only rows whose name fits this regular expression; figures that need others are left out")
	f.StringVar(&o.bin, "bin", "", "directory of the programs scheduler, seed and dfget (default: build them)")
	f.BoolVar(&o.big, "big", true, "measure the memory of a node during one layer of 12.5 times --bytes, too")
	f.StringVar(&o.profile, "profile", "", "directory for CPU profiles of both ends, near.pprof and far.pprof")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	c.AddCommand(newFar())
	return c
}

func (o options) validate() error {
	if o.rounds < 1 {
		return errors.New("--rounds must be 1 or more")
	}
	if o.bytes < int64(o.rounds)*leastSlice {
		return fmt.Errorf("--bytes %s is too little for %d rounds of %s each", config.Bytes(o.bytes), o.rounds, config.Bytes(leastSlice))
	}
	return nil
}

// sayTo writes lines for people with the time since now.
func sayTo(w io.Writer) func(string, ...any) {
	start := time.Now()
	return func(format string, args ...any) {
		fmt.Fprintf(w, "%6.2f  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
}
