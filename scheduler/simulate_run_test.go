package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/scheduler/sim"
)

func TestSimulationFromTheCommandLine(t *testing.T) {
	picture := filepath.Join(t.TempDir(), "a.svg")
	args := []string{"sim", "--nodes", "40", "--pieces", "64", "--json", "--plot", picture}
	out, err := command(t, args...)
	var r sim.Result
	if err != nil || json.Unmarshal([]byte(out), &r) != nil || r.Nodes != 40 || r.Pieces != 64 || r.Stuck != 0 || r.MakespanRatio < 1 || r.MakespanRatio > 2 {
		t.Fatalf("%v\n%s", err, out)
	}
	again, err := command(t, args...)
	var s sim.Result
	if err != nil || json.Unmarshal([]byte(again), &s) != nil || s.DecisionsHash != r.DecisionsHash || s.Makespan != r.Makespan {
		t.Errorf("the same scenario gave other decisions: %v\n%s\n%s", err, out, again)
	}
	other, err := command(t, append(args, "--random", "2")...)
	if err != nil || json.Unmarshal([]byte(other), &s) != nil || s.DecisionsHash == r.DecisionsHash {
		t.Errorf("another random seed gave the same decisions: %v\n%s", err, other)
	}
}

// A planner is told when it is the scheduler's pace that costs time.
func TestPaceIsTold(t *testing.T) {
	for rate, want := range map[string]bool{"500": true, "1000000": false} {
		out, err := command(t, "sim", "--nodes", "60", "--pieces", "64", "--lease-rate", rate)
		if err != nil || strings.Contains(out, "(--lease-rate)") != want {
			t.Errorf("--lease-rate %s: %v\n%s", rate, err, out)
		}
	}
}

// Where no node lives, no figure of nodes is shown: it would be nought.
func TestNobodyIsAlive(t *testing.T) {
	out, err := command(t, "sim", "--nodes", "5", "--pieces", "8", "--die", "1")
	if err == nil || !strings.Contains(err.Error(), "nobody is alive") {
		t.Errorf("the error is %v", err)
	}
	if !strings.Contains(out, "nobody is alive") || strings.Contains(out, "0 ms") || strings.Contains(out, "0.00 x the bound") {
		t.Errorf("the report is\n%s", out)
	}
}

// What the command simulates where nothing is said is what the simulator does, with
// the rules of a live scheduler.
func TestDefaultsAreTheSimulators(t *testing.T) {
	written := defaultScenario()
	written.Nodes = 20
	scenario, err := written.scenario()
	if err != nil {
		t.Fatal(err)
	}
	hashes := map[string]bool{}
	for _, s := range []sim.Scenario{{Nodes: 20}, scenario} {
		r, err := sim.Run(s, nil)
		if err != nil {
			t.Fatal(err)
		}
		hashes[r.DecisionsHash] = true
	}
	if len(hashes) != 1 {
		t.Errorf("%+v decides otherwise than the zero scenario", scenario)
	}
}

func TestSimulatorsOwnComplaintsAreShown(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--die", "2"}, "from 0 to 1"},
		{[]string{"--arrivals", "later"}, "staggered"},
		{[]string{"--policy", "best"}, "rarest"},
		{[]string{"--racks", "-3"}, "racks"},
		{[]string{"--seed", "3"}, "--random"},
		{[]string{"--rate", "1bit", "--nodes", "-4"}, "nodes"},
	} {
		if _, err := command(t, append([]string{"sim"}, c.args...)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v lacks %q", c.args, err, c.want)
		}
	}
}

// A limit that nobody can keep leaves nodes stuck: figures, and an error.
func TestStuckSimulation(t *testing.T) {
	out, err := command(t, "sim", "--nodes", "5", "--limit", "10ms")
	if err == nil || !strings.Contains(err.Error(), "5 of 5 nodes") || !bytes.Contains([]byte(out), []byte("not everybody")) {
		t.Errorf("%v\n%s", err, out)
	}
}
