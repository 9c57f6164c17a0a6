package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-p2p/damselfly/e2e/process"
)

func newTable() *cobra.Command {
	var (
		quick   bool
		bin     string
		only    string
		file    string
		verbose bool
	)
	c := &cobra.Command{
		Use: "table", Short: "Run the table: each row a run with bars; fails when a row does", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			pattern, err := regexp.Compile(only)
			if err != nil {
				return fmt.Errorf("--only: %w", err)
			}
			p, err := build(c.Context(), bin)
			if err != nil {
				return err
			}
			t := table{bin: p.bin, say: sayTo(c.ErrOrStderr()), began: time.Now()}
			if verbose {
				t.log = c.ErrOrStderr()
			}
			failed := 0
			for _, r := range rows() {
				if r.short != quick || !pattern.MatchString(r.name) {
					continue
				}
				if !t.run(c.Context(), r) {
					failed++
				}
				if err := c.Context().Err(); err != nil {
					return err
				}
			}
			return t.finish(c.OutOrStdout(), file, failed)
		},
	}
	f := c.Flags()
	f.BoolVar(&quick, "short", false, "the short table, in under four minutes")
	f.StringVar(&bin, "bin", "", "directory of the programs scheduler, seed and dfget (default: build them)")
	f.StringVar(&only, "only", "", "run only rows whose name fits this regular expression")
	f.StringVar(&file, "write", "", "write the table as Markdown to this file, with the machine it comes from")
	f.BoolVarP(&verbose, "verbose", "v", false, "show what each run says")
	return c
}

// table runs rows, one after another, each in a process of its own: exactly what its
// command does.
type table struct {
	bin   string
	say   func(string, ...any)
	log   io.Writer // of what runs say; nil keeps it for those that fail
	began time.Time
	lines []line
}

// line is a row with what came of it.
type line struct {
	row    row
	result Result
	err    error // of a run that gave no result, or whose result is bad by itself
	took   time.Duration
}

// ok tells whether the row holds.
func (l line) ok() bool {
	if l.err != nil {
		return false
	}
	for _, b := range l.row.bars {
		if !b.holds(l.result) {
			return false
		}
	}
	return true
}

// cells are bars and measured values of the row, for people.
func (l line) cells() (bars, measured string) {
	var demanded, got []string
	for _, b := range l.row.bars {
		name, _, _ := strings.Cut(b.what, "=")
		demanded = append(demanded, b.what)
		got = append(got, fmt.Sprintf("%s %.4g", strings.TrimRight(name, " <"), b.measured(l.result)))
	}
	if l.err != nil && l.result.Nodes == 0 {
		return strings.Join(demanded, ", "), "no result"
	}
	return strings.Join(demanded, ", "), strings.Join(append(got, l.result.Broken...), ", ")
}

func (l line) verdict() string {
	if l.ok() {
		return "ok"
	}
	return "FAILS"
}

// command repeats the row.
func (l line) command() string { return "go run ./e2e/lab run " + strings.Join(l.row.args(), " ") }

// run runs a row and tells whether it holds.
func (t *table) run(ctx context.Context, r row) bool {
	start := time.Now()
	l := line{row: r}
	l.result, l.err = t.start(ctx, r)
	if ctx.Err() != nil {
		return false
	}
	l.took = time.Since(start)
	t.lines = append(t.lines, l)
	bars, measured := l.cells()
	t.say("%-5s  %s: %s (%s), %.0f s", l.verdict(), r.name, measured, bars, l.took.Seconds())
	if l.err != nil {
		t.say("%v", l.err)
	}
	return l.ok()
}

// start runs a row's command. The result may be there with an error.
func (t *table) start(ctx context.Context, r row) (Result, error) {
	self, err := os.Executable()
	if err != nil {
		return Result{}, err
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, self, append([]string{"run", "--bin", t.bin}, r.args()...)...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if t.log != nil {
		cmd.Stderr = t.log
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	// Ctrl-C is for this process, which hands it on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	failed := cmd.Run()
	var result Result
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		return Result{}, fmt.Errorf("%w: no result: %w\n%s", failed, err, said.Bytes())
	}
	if failed != nil {
		return result, fmt.Errorf("%w\n%s", failed, said.Bytes())
	}
	return result, nil
}

// finish prints the table, writes it to a file if one is named, and errs when rows
// failed.
func (t *table) finish(out io.Writer, file string, failed int) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "row\tbar\tmeasured\tverdict\tcommand")
	for _, l := range t.lines {
		bars, measured := l.cells()
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.row.name, bars, measured, l.verdict(), l.command())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if file != "" {
		if err := os.WriteFile(file, []byte(t.markdown("Machine: "+process.Machine()+".")), 0o644); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d rows failed", failed, len(t.lines))
	}
	return nil
}

// markdown is the table with all figures, for a file.
func (t *table) markdown(machine string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Results of the swarm lab\n\nWritten by `go run ./e2e/lab table --write`, on %s, in %.0f minutes.\n\n%s\n\n",
		t.began.UTC().Format("2006-01-02"), time.Since(t.began).Minutes(), machine)
	b.WriteString("Links of 100 Mbit/s both ways unless said, cold, every node in its own network namespace. Times are over the fluid bound at the\n" +
		"payload rate that one plain TCP flow over such a link had in the same run.\n\n")
	b.WriteString("| scenario | bar | measured | verdict |\n|---|---|---|---|\n")
	for _, l := range t.lines {
		bars, measured := l.cells()
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", l.row.name, bars, measured, l.verdict())
	}
	b.WriteString("\n| scenario | seconds max | p50 | bound | ratio | origin ratio | origin requests | failed | CPU s/GB | RSS max MiB | others' cores | command |\n" +
		"|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, l := range t.lines {
		r := l.result
		fmt.Fprintf(&b, "| %s | %.2f | %.2f | %.2f | %.3f | %.3f | %d | %d | %.2f | %.0f | %.2f | `%s` |\n",
			l.row.name, r.SecondsMax, r.SecondsP50, r.BoundSeconds, r.Ratio, r.OriginRatio, r.OriginRequests, r.Failed,
			r.CPUSecondsPerGB, float64(r.RSSMaxBytes)/(1<<20), r.OtherCores, l.command())
	}
	return b.String()
}
