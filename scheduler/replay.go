package main

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
	"github.com/damselfly-p2p/damselfly/scheduler/sim"
)

// maxTraceLine bounds a line of a trace, in bytes. An event comes in a message of at
// most maxMessage; its text is a few times as long.
const maxTraceLine = 8 * maxMessage

func newReplayCommand() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "replay TRACE",
		Short: "Decide a live scheduler's trace again and find where it differs",
		Long: `replay reads a file that 'scheduler serve --trace FILE' wrote, gives its events to
the scheduler's core again, and compares what it decides with what stands in the
trace. The same release decides the same, byte for byte; the first difference is
shown and makes the exit code 1. A later release may rightly decide otherwise.

TRACE may be of any size. A name that ends in .gz is unpacked; - is standard input.
Events without decisions, as older releases wrote them, are counted only.`,
		Example: `  # What did the scheduler decide, and does this release decide the same?
  scheduler serve --trace /var/tmp/scheduler.trace
  scheduler sim replay /var/tmp/scheduler.trace

  # A trace from another machine
  ssh sched.example.com zstdcat scheduler.trace.zst | scheduler sim replay -`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			in, err := openTraceFile(args[0], c.InOrStdin())
			if err != nil {
				return err
			}
			defer in.Close()
			started := time.Now()
			tally, failed := replayTrace(in)
			name := args[0]
			if name == "-" {
				name = "on standard input"
			}
			if failed != nil {
				failed = fmt.Errorf("trace %s: %w", name, failed)
			}
			write := writeReplay
			if asJSON {
				write = writeReplayJSON
			}
			return errors.Join(failed, write(c.OutOrStdout(), tally, time.Since(started), failed))
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return c
}

// openTraceFile opens a trace; what is closed is never standard input.
func openTraceFile(name string, stdin io.Reader) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(stdin), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("trace: %w; name a file that 'scheduler serve --trace' wrote, or - for standard input", err)
	}
	if !strings.HasSuffix(name, ".gz") {
		return f, nil
	}
	unpacked, err := gzip.NewReader(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("trace %s: its name says gzip, but: %w; rename it if it is plain text", name, err), f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{unpacked, f}, nil
}

// replayTrace reads to the end or to the first difference.
func replayTrace(in io.Reader) (sim.Tally, error) {
	epoch := time.Now()
	r := sim.NewReplay(core.Config{}, func() int64 { return int64(time.Since(epoch)) })
	lines := bufio.NewReaderSize(in, 1<<20)
	var long []byte // what has come of a line that the reader's buffer does not hold
	for number := 1; ; number++ {
		line, err := lines.ReadSlice('\n')
		for long = long[:0]; errors.Is(err, bufio.ErrBufferFull); line, err = lines.ReadSlice('\n') {
			if long = append(long, line...); len(long) > maxTraceLine {
				return r.Tally(), fmt.Errorf("line %d is longer than %d bytes: this is no trace; name a file that 'scheduler serve --trace' wrote", number, maxTraceLine)
			}
		}
		if len(long) > 0 {
			line = append(long, line...)
		}
		switch {
		case err == io.EOF:
			err = r.Finish(len(line) > 0)
			return r.Tally(), err
		case err != nil:
			return r.Tally(), fmt.Errorf("reading line %d: %w; is the file whole?", number, err)
		}
		if err := r.Line(string(line[:len(line)-1])); err != nil {
			return r.Tally(), err
		}
	}
}

func nsPerDecision(t sim.Tally) float64 {
	if t.Decisions == 0 {
		return 0
	}
	return float64(t.Nanoseconds) / float64(t.Decisions)
}

func writeReplay(out io.Writer, t sim.Tally, wall time.Duration, failed error) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	verdict := "every decision is the same"
	compared := t.Events - t.Unrecorded
	switch {
	case failed != nil:
		verdict = "stopped; see the error"
	case compared == 0 && t.Events > 0:
		verdict = "nothing to compare: the trace has events only"
	case t.Events == 0:
		verdict = "nothing to compare: the trace is empty"
	case t.Unrecorded > 0:
		verdict += " where the trace has decisions"
	}
	rows := [][2]string{
		{"verdict", verdict},
		{"events", grouped(t.Events)},
		{"decisions", grouped(t.Decisions)},
	}
	if t.Unrecorded > 0 {
		rows = append(rows, [2]string{"not compared", grouped(t.Unrecorded) + " events that stand without decisions or without a seed; an older release wrote them"})
	}
	rows = append(rows,
		[2]string{"starts of a scheduler", grouped(t.States)},
		[2]string{"ns per decision", figure(nsPerDecision(t))},
		[2]string{"time covered", humanSeconds(float64(t.Covered) / 1e9)},
		[2]string{"time taken", humanSeconds(wall.Seconds())},
	)
	for _, n := range t.Notes {
		rows = append(rows, [2]string{fmt.Sprintf("note, line %d", n.Line), n.Text})
	}
	var err error
	for _, row := range rows {
		_, e := fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
		err = errors.Join(err, e)
	}
	return errors.Join(err, w.Flush())
}

func writeReplayJSON(out io.Writer, t sim.Tally, wall time.Duration, failed error) error {
	type note struct {
		Line int64  `json:"line"`
		Text string `json:"text"`
	}
	object := struct {
		Same          bool    `json:"same"` // and something was compared
		Events        int64   `json:"events"`
		Decisions     int64   `json:"decisions"`
		Unrecorded    int64   `json:"unrecorded_events"`
		States        int64   `json:"starts"`
		NsPerDecision float64 `json:"ns_per_decision"`
		Covered       float64 `json:"covered_seconds"`
		Wall          float64 `json:"wall_seconds"`
		Difference    string  `json:"difference,omitempty"`
		Notes         []note  `json:"notes,omitempty"`
	}{
		Same: failed == nil && t.Events > t.Unrecorded, Events: t.Events, Decisions: t.Decisions, Unrecorded: t.Unrecorded, States: t.States,
		NsPerDecision: nsPerDecision(t), Covered: float64(t.Covered) / 1e9, Wall: wall.Seconds(),
	}
	if failed != nil {
		object.Difference = failed.Error()
	}
	for _, n := range t.Notes {
		object.Notes = append(object.Notes, note(n))
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(object)
}
