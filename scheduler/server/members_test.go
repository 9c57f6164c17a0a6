package server_test

import (
	"testing"

	"github.com/damselfly-p2p/damselfly/scheduler/server"
)

// Nodes are told the set of schedulers behind the welcome, and again when it changes.
func TestSchedulersAreTold(t *testing.T) {
	sets := make(chan []server.Scheduler)
	w := newWorldWith(t, server.Config{Schedulers: sets})
	early := w.attend("early", "node")
	sets <- []server.Scheduler{{ID: "a", Address: "a:1"}}
	if got := early.next().GetSchedulers().GetMembers(); len(got) != 1 || got[0].GetNode() != "a" || got[0].GetAddress() != "a:1" {
		t.Fatalf("who attended already was told %v", got)
	}
	late := w.attend("late", "node")
	if got := late.next().GetSchedulers().GetMembers(); len(got) != 1 {
		t.Fatalf("who came later was told %v", got)
	}
	sets <- []server.Scheduler{{ID: "a", Address: "a:1"}, {ID: "b", Address: "b:1"}}
	close(sets)
	for _, n := range []*node{early, late} {
		if got := n.next().GetSchedulers().GetMembers(); len(got) != 2 {
			t.Errorf("of the change a node was told %v", got)
		}
	}
	early.tell(ping(1))
	if got := early.next(); got.GetPong() == nil {
		t.Errorf("once nobody says more of schedulers, a node is told %v", got)
	}
}

// Nodes are told of the seeds that attend, whenever they come or leave.
func TestSeedsAreTold(t *testing.T) {
	w := newWorld(t)
	early := w.attend("early", "node")
	if early.answer(); len(early.seeds) != 0 {
		t.Fatalf("with no seed a node was told of %v", early.seeds)
	}
	seed := w.attend("seed", "seed")
	late := w.attend("late", "node")
	for _, n := range []*node{early, late} {
		for len(n.seeds) == 0 {
			n.answer()
		}
		if s := n.seeds; len(s) != 1 || s[0].GetNode() != "seed" || s[0].GetAddress() != "seed:1" {
			t.Fatalf("a node was told of the seeds %v", s)
		}
	}
	if err := seed.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for len(early.seeds) > 0 {
		early.answer()
	}
}
