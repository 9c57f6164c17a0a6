package server_test

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/scheduler/core"
	"github.com/damselfly-p2p/damselfly/scheduler/server"
)

// The trace holds every event in a form that decides the same again, and below it
// what was decided.
func TestTraceCanBeReadBack(t *testing.T) {
	w := newWorld(t)
	n := w.attend("n1", "node")
	n.tell(want())
	id := n.next().GetLease().GetId()
	n.tell(have(0, bytes.Repeat([]byte{7}, 32)), ping(1))
	for n.next().GetPong() == nil {
	}
	w.stop()
	seed, lines, _ := strings.Cut(strings.TrimPrefix(w.trace.String(), "# seed "), "\n")
	number, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	state, events := core.New(core.Config{}, number), 0
	var again strings.Builder
	for line := range strings.Lines(lines) {
		if strings.HasPrefix(line, "\t") {
			continue
		}
		at, e, err := core.ParseEvent(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		events++
		again.WriteString(line)
		for _, d := range state.Apply(at, e, nil) {
			again.WriteString("\t" + string(core.AppendDecision(nil, &d)) + "\n")
		}
	}
	if events < 3 || !strings.Contains(lines, fmt.Sprintf("\n\tlease n1 %s lease=%d ", digest, id)) {
		t.Errorf("want attend, want, the lease %d below it, and have:\n%s", id, lines)
	}
	if again.String() != lines {
		t.Errorf("the trace is\n%s\nits events decide\n%s", lines, &again)
	}
}

// Who cannot write his trace still has a scheduler.
func TestTraceThatCannotBeWrittenStopsNobody(t *testing.T) {
	w := newWorldWith(t, server.Config{Trace: broken{}})
	n := w.attend("n1", "node")
	n.tell(want())
	if got := n.next(); got.GetLease() == nil {
		t.Fatalf("the node was told %v", got)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }
