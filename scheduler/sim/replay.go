package sim

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// Replay decides again what a live scheduler decided, from its trace, and tells
// where the two differ. A trace has a line "# seed N" where a state began that knew
// nothing, a line for each event (core.AppendEvent), and below it, each behind a
// tab, the decisions that it led to (core.AppendDecision). What else starts with #
// is a comment.
//
// A part of a trace that has events only, as schedulers once wrote it, cannot be
// compared; Tally.Unrecorded counts its events.
type Replay struct {
	cfg   core.Config
	clock func() int64

	tally Tally
	state *core.State // nil where nothing can be decided: no seed yet, or it panicked
	died  string      // why the core panicked at the last event

	seeded    bool
	tabs      bool // this part has decisions
	events    int64
	from, to  core.Time
	began     bool
	line      int64
	event     string // the last one, and its line
	eventLine int64
	decided   []core.Decision // of it
	matched   int             // of decided
	first     *Difference     // that counts once this part has shown that it has decisions
	text      []byte
	failed    error
}

// Tally is what a Replay has seen.
type Tally struct {
	Events      int64
	Decisions   int64 // decided now; all were compared but those of unrecorded events
	Unrecorded  int64 // events of parts without decisions or without a seed
	States      int64 // that began: "# seed" lines
	Covered     core.Time
	Nanoseconds int64  // that Apply took
	Notes       []Note // up to 100, of what is strange and no difference
}

// Note is something strange in a trace.
type Note struct {
	Line int64
	Text string
}

// Difference is the first place where a trace and the core differ. It is an error.
type Difference struct {
	Line      int64  // where the trace says otherwise, from 1
	Event     string // whose decisions differ
	EventLine int64
	Expected  string // by the trace; "" for no further decision
	Got       string // decided now; "" for no further decision
}

// Error is for the user, in several lines.
func (d *Difference) Error() string {
	say := func(s string) string {
		if s == "" {
			return "no further decision"
		}
		return clip(s)
	}
	return fmt.Sprintf("line %d: the core decides otherwise than the trace\n  event (line %d): %s\n  expected: %s\n  got:      %s",
		d.Line, d.EventLine, clip(d.Event), say(d.Expected), say(d.Got))
}

func clip(s string) string {
	if len(s) > 600 {
		return s[:600] + "…"
	}
	return s
}

// NewReplay returns a Replay of a scheduler with these rules. clock gives
// nanoseconds, to tell what decisions cost.
func NewReplay(cfg core.Config, clock func() int64) *Replay {
	return &Replay{cfg: cfg, clock: clock}
}

// Tally is what was seen so far.
func (r *Replay) Tally() Tally {
	t := r.tally
	t.Covered += r.to - r.from
	return t
}

// Line takes the next line, without its end. The error is a *Difference, or says
// that the line is none of a trace; then the replay is over.
func (r *Replay) Line(line string) error {
	r.line++
	if r.failed == nil {
		r.failed = r.take(line)
	}
	return r.failed
}

// Finish says that the trace has ended. cut: its last line had no end and was not
// given to Line, as when the writer died; then decisions of the last event may be
// missing.
func (r *Replay) Finish(cut bool) error {
	if r.failed != nil {
		return r.failed
	}
	if cut {
		r.note(r.line+1, "the trace is cut off in this line, which is left out")
		r.matched = len(r.decided)
	}
	if r.died != "" {
		r.note(r.eventLine, "the core fails at this event, and the trace ends: "+r.died)
	}
	r.line++
	r.failed = r.endEvent()
	r.endPart()
	return r.failed
}

func (r *Replay) take(line string) error {
	switch {
	case strings.HasPrefix(line, "\t"):
		return r.decision(line[1:])
	case strings.HasPrefix(line, "# seed "):
		return r.seed(line)
	case line == "" || line[0] == '#':
		return nil
	}
	now, e, err := core.ParseEvent(line)
	if err != nil {
		return fmt.Errorf("line %d: this is no line of a trace: %w; give a file that 'scheduler serve --trace' wrote", r.line, err)
	}
	if err := r.endEvent(); err != nil {
		return err
	}
	if r.died != "" {
		return fmt.Errorf("line %d: the core fails at the event of line %d, where the live scheduler went on: %s\n  event: %s",
			r.eventLine, r.eventLine, r.died, clip(r.event))
	}
	r.event, r.eventLine = line, r.line
	r.tally.Events++
	r.events++
	if !r.began {
		r.began, r.from = true, now
	}
	r.to = max(r.to, now)
	r.apply(now, e)
	return nil
}

// apply has the event decided. The core may panic, as it did for the live
// scheduler: then the trace goes on with a new seed.
func (r *Replay) apply(now core.Time, e core.Event) {
	r.decided, r.matched = r.decided[:0], 0
	if r.state == nil {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			r.state, r.died, r.decided = nil, fmt.Sprint(p), nil
		}
	}()
	started := r.clock()
	r.decided = r.state.Apply(now, e, r.decided)
	r.tally.Nanoseconds += r.clock() - started
	r.tally.Decisions += int64(len(r.decided))
}

// seed ends a part of the trace and begins the next.
func (r *Replay) seed(line string) error {
	n, err := strconv.ParseUint(strings.TrimPrefix(line, "# seed "), 10, 64)
	if err != nil {
		return fmt.Errorf("line %d: %q names no seed: want # seed and a whole number", r.line, clip(line))
	}
	switch {
	case r.died != "":
		r.note(r.eventLine, "the core fails at this event, as that of the live scheduler did: "+r.died)
	case r.tabs && r.matched == 0 && len(r.decided) > 0:
		r.note(r.eventLine, fmt.Sprintf("the trace has no decisions of this event and starts anew: the live scheduler's core failed here; now it decides %d", len(r.decided)))
		r.matched = len(r.decided)
	}
	if err := r.endEvent(); err != nil {
		return err
	}
	r.endPart()
	r.tally.States++
	r.state, r.seeded = core.New(r.cfg, n), true
	return nil
}

// endPart counts what was seen since the last seed.
func (r *Replay) endPart() {
	if !r.tabs && (!r.seeded || r.first != nil) {
		r.tally.Unrecorded += r.events
	}
	r.tally.Covered += r.to - r.from
	r.event, r.died, r.decided, r.matched, r.first = "", "", nil, 0, nil
	r.events, r.from, r.to, r.began, r.tabs = 0, 0, 0, false, false
}

// endEvent looks whether the trace had everything that was decided.
func (r *Replay) endEvent() error {
	if r.matched < len(r.decided) {
		return r.differ("", r.got())
	}
	return nil
}

// decision compares one that the trace has.
func (r *Replay) decision(expected string) error {
	if r.event == "" {
		return fmt.Errorf("line %d: a decision stands before any event: the beginning of the trace is missing", r.line)
	}
	if !r.seeded {
		return fmt.Errorf("line %d: the line \"# seed\" is missing above: the trace cannot be decided again without its beginning", r.line)
	}
	r.tabs = true
	if r.first != nil {
		return r.first
	}
	if r.died != "" {
		return fmt.Errorf("line %d: the core fails at the event of line %d, where the live scheduler decided %s: %s\n  event: %s",
			r.line, r.eventLine, clip(expected), r.died, clip(r.event))
	}
	got := r.got()
	if got != expected {
		return r.differ(expected, got)
	}
	r.matched++
	return nil
}

// got is the next decision that the trace has not had yet.
func (r *Replay) got() string {
	if r.matched == len(r.decided) {
		return ""
	}
	r.text = core.AppendDecision(r.text[:0], &r.decided[r.matched])
	return string(r.text)
}

// differ is a difference if this part of the trace has decisions at all; otherwise
// it is kept until that shows.
func (r *Replay) differ(expected, got string) error {
	d := &Difference{Line: r.line, Event: r.event, EventLine: r.eventLine, Expected: expected, Got: got}
	if r.tabs {
		return d
	}
	if r.first == nil {
		r.first = d
	}
	r.matched = len(r.decided)
	return nil
}

func (r *Replay) note(line int64, text string) {
	if len(r.tally.Notes) < 100 {
		r.tally.Notes = append(r.tally.Notes, Note{line, text})
	}
}
