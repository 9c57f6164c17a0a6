package sim

import (
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// A core that fails at an event fails the replay, unless the live one failed there too.
func TestReplayOfACoreThatPanics(t *testing.T) {
	for name, c := range map[string]struct{ next, err, note string }{
		"and goes on live":      {"2 tick", "fails at the event of line 2", ""},
		"and decided live":      {"\tqueued n1", "fails at the event of line 2", ""},
		"as it did live":        {"# seed 2", "", "as that of the live scheduler did"},
		"where the trace ended": {"", "", "the trace ends"},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReplay(core.Config{}, func() int64 { return 0 })
			if err := r.Line("# seed 1"); err != nil {
				t.Fatal(err)
			}
			r.state = &core.State{} // its maps are nil
			if err := r.Line("1 attend n1"); err != nil {
				t.Fatal(err)
			}
			err := r.Line(c.next)
			if err == nil {
				err = r.Finish(false)
			}
			if c.err == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v, want %q", err, c.err)
			}
			notes := r.Tally().Notes
			if c.note == "" != (len(notes) == 0) || c.note != "" && !strings.Contains(notes[0].Text, c.note) {
				t.Errorf("notes %v, want %q", notes, c.note)
			}
		})
	}
}
