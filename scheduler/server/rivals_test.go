package server_test

import (
	"strings"
	"testing"

	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"

	"github.com/damselfly-p2p/damselfly/scheduler/server"
)

// attendAt attends as id from another address.
func (w *world) attendAt(id, address string) *node {
	w.t.Helper()
	n := w.open(id, "node")
	e := hello(id)
	e.GetAttend().Address = address
	n.tell(e)
	return n
}

// Two machines with one identity do not replace each other for ever: once both have shown
// that they live, one stays, and the log names both.
func TestClonedIdentityIsTurnedAway(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	w := newWorldLogged(t, server.Config{}, core)
	first := w.attendAt("n", "a:1")
	if first.next().GetWelcome() == nil {
		t.Fatal("the first was not welcomed")
	}
	second := w.attendAt("n", "b:1") // it may have moved
	if second.next().GetWelcome() == nil {
		t.Fatal("one that has moved was not welcomed")
	}
	if st := first.refused(); st.Code() != codes.Aborted {
		t.Fatalf("the replaced stream ended with %v", st)
	}
	for range 5 {
		st := w.attendAt("n", "a:1").refused()
		if st.Code() != codes.FailedPrecondition || !strings.Contains(st.Message(), "b:1") || !strings.Contains(st.Message(), "identity directory") {
			t.Fatalf("the clone was told %v", st)
		}
	}
	if second.answer().GetPong() == nil {
		t.Error("the one that stays is not served")
	}
	if logs.Len() != 1 {
		t.Fatalf("logged %v", logs.All())
	}
	fields := logs.All()[0].ContextMap()
	if !strings.HasPrefix(fields["attends"].(string), "b:1") || !strings.HasPrefix(fields["turned_away"].(string), "a:1") {
		t.Errorf("the log says %v", fields)
	}
	// When the one that stayed goes, the other has its place.
	if err := second.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for {
		n := w.attendAt("n", "a:1")
		if m, err := n.Recv(); err == nil && m.GetDecisions()[0].GetWelcome() != nil {
			break
		}
	}
}

// A node that starts again at its place replaces its former stream as often as it likes.
func TestSameMachineReplacesItsStream(t *testing.T) {
	w := newWorld(t)
	for range 5 {
		w.attend("n", "node")
	}
}
