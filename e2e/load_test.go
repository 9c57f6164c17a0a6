package e2e

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// A short run of the load program: every stream is served until the end, nobody is
// refused, shed or left waiting, and the scheduler counts what its nodes count. How
// long decisions took is printed; `make load` is for measuring.
func TestLoad(t *testing.T) {
	p := programs(t)
	dir := directory(t)
	load := filepath.Join(dir, "load")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", load, "./load")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the load program: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := process.Run(ctx, process.Spec{Name: "load", Path: load, Dir: filepath.Join(dir, "run"), Args: []string{
		"run", "--json", "--scheduler", filepath.Join(p.bin, "scheduler"), "--dir", filepath.Join(dir, "state"),
		"--streams", "200", "--rate", "2000", "--pieces", "16", "--warm", "3s", "--for", "3s", "--trace", filepath.Join(dir, "trace"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Attended   int     `json:"attended"`
		Rate       float64 `json:"leases_per_second"`
		Decisions  float64 `json:"decisions_per_second"`
		AtOwner    float64 `json:"scheduler_decisions_per_second"`
		Blobs      int     `json:"blobs_done"`
		Leases     int     `json:"leases"`
		Done       int     `json:"leases_done"`
		Cancelled  int     `json:"cancelled"`
		Refused    int     `json:"refused"`
		Revoked    int     `json:"revoked"`
		Restarts   int     `json:"core_restarts"`
		Denial     float64 `json:"denial_seconds"`
		RSS        int64   `json:"scheduler_peak_rss_bytes"`
		EventDelay struct {
			Count int     `json:"count"`
			P99   float64 `json:"p99_ms"`
		} `json:"event_latency"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	t.Logf("%.0f leases/s, %d blobs whole, p99 of %d decisions %.2f ms, scheduler %d MiB", r.Rate, r.Blobs, r.EventDelay.Count, r.EventDelay.P99, r.RSS>>20)
	switch {
	case r.Attended != 200 || r.EventDelay.Count == 0 || r.RSS == 0:
		t.Errorf("%d of 200 streams attended, %d decisions were timed, %d bytes used", r.Attended, r.EventDelay.Count, r.RSS)
	case r.Rate < 500 || r.Blobs == 0:
		t.Errorf("%.0f leases/s and %d whole blobs: the swarms do not move", r.Rate, r.Blobs)
	case r.Refused+r.Revoked+r.Restarts != 0:
		t.Errorf("%d wants refused, %d blobs revoked, %d restarts of the core", r.Refused, r.Revoked, r.Restarts)
	case r.Done+r.Cancelled < r.Leases-4*200:
		t.Errorf("of %d leases %d are done, %d cancelled: the others are more than can run", r.Leases, r.Done, r.Cancelled)
	case r.Denial <= 0:
		t.Error("nobody heard that a node is denied")
	case r.AtOwner < 0.8*r.Decisions || r.AtOwner > 1.25*r.Decisions:
		t.Errorf("nodes count %.0f decisions/s, the scheduler %.0f", r.Decisions, r.AtOwner)
	}
}
