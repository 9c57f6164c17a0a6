// Command lab runs Damselfly's own programs as a cluster on one machine, each in a
// network namespace of its own behind a shaped link, lets clients pull through it,
// breaks things on purpose, and measures. The origin's own byte counter is the judge.
//
// It needs root. It touches only namespaces, links and processes that it made, and
// removes them when it ends, after Ctrl-C too; what a crash left, its next run or
// `lab clean` removes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := withSignals(context.Background())
	err := newRoot().ExecuteContext(ctx)
	if ctx.Err() != nil {
		if err == ctx.Err() { //nolint:errorlint // wrapped, it tells more than the cause does
			err = nil
		}
		err = errors.Join(context.Cause(ctx), err)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
	}
	os.Exit(exitCode(ctx, err))
}

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ signal syscall.Signal }

// Error names the signal.
func (i interrupted) Error() string { return "ended by signal: " + i.signal.String() }

// withSignals returns a context that SIGINT or SIGTERM ends. A second signal ends the
// program at once.
func withSignals(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(interrupted{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// exitCode is 128 and the number of the signal that ended the program, as shells have
// it, 1 for an error.
func exitCode(ctx context.Context, err error) int {
	var by interrupted
	switch {
	case errors.As(context.Cause(ctx), &by):
		return 128 + int(by.signal)
	case err != nil:
		return 1
	default:
		return 0
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use: "lab", Short: "Run a whole cluster on shaped links, break things, measure", SilenceUsage: true, SilenceErrors: true,
	}
	for _, c := range []*cobra.Command{newRun(), newTable(), newClean()} {
		c.PreRunE = func(*cobra.Command, []string) error { return needRoot() }
		root.AddCommand(c)
	}
	root.AddCommand(newList())
	return root
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root: every node gets a network namespace with a shaped link of its own; run it as root or in a privileged container")
	}
	return nil
}

func newRun() *cobra.Command {
	var (
		o      options
		asJSON bool
	)
	c := &cobra.Command{
		Use: "run", Short: "Run one scenario and print what was measured; fails when a pull does", Args: cobra.NoArgs,
		Example: "  go run ./e2e/lab run --nodes 16 --rate 100mbit --blob 256MiB --scenario flash --json\n" +
			"  go run ./e2e/lab run --scenario seed-killed --with direct,cache --plot run.svg",
		RunE: func(c *cobra.Command, _ []string) error {
			return run(c.Context(), o, sayTo(c.ErrOrStderr()), func(r Result) error { return r.print(c.OutOrStdout(), asJSON) })
		},
	}
	o.addFlags(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return c
}

func newList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the scenarios and the other ways of pulling", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, s := range scenarios() {
				fmt.Fprintf(w, "%s\t%s\n", s.name, s.what)
			}
			for _, s := range sides() {
				fmt.Fprintf(w, "--with %s\t%s\n", s.name, s.what)
			}
			return w.Flush()
		},
	}
}

func newClean() *cobra.Command {
	return &cobra.Command{
		Use: "clean", Short: "Remove what runs left that did not end well", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			removed, err := clean()
			for _, r := range removed {
				fmt.Fprintln(c.OutOrStdout(), "removed", r)
			}
			return err
		},
	}
}

// sayTo writes lines for people with the time since now.
func sayTo(w io.Writer) func(string, ...any) {
	start := time.Now()
	return func(format string, args ...any) {
		fmt.Fprintf(w, "%6.2f  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
}
