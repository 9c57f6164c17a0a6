package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// seen is a world of nodes on links of 8 Mbit/s of payload that wanted a layer of about
// 1 MB, in which nothing has happened yet.
func seen(t *testing.T, nodes ...string) *world {
	t.Helper()
	img, err := sample.New(t.Name(), []int64{1_000_000}, sample.OCI)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		options: options{Nodes: len(nodes), Seeds: 1, rate: 8e6, originRate: 8e6, seedRate: 8e6},
		payload: 1e6, cluster: &cluster.Cluster{}, origin: &origin.Origin{Front: &origin.Front{Counter: origin.NewCounter()}},
		images: []image{{img, "lab/app"}}, began: time.Now(),
		excused: map[string]bool{}, figures: map[string]float64{},
	}
	for _, n := range nodes {
		w.cluster.Nodes = append(w.cluster.Nodes, &cluster.Member{Name: n})
	}
	return w
}

// ended adds a pull that is over.
func (w *world) ended(node string, start, end time.Duration, bytes int64, err error) *pull {
	p := w.newPull(node, w.images[0])
	p.start, p.end, p.err = start, end, err
	p.got.Store(bytes)
	return p
}

func TestResult(t *testing.T) {
	w := seen(t, "node1", "node2", "node3")
	w.ended("node1", 0, 2*time.Second, 1_000_000, nil)
	w.ended("node2", time.Second, 5*time.Second, 1_000_000, nil)
	w.ended("node3", 0, 3*time.Second, 1_000_000, nil)
	r := w.result(usage{cpu: 6 * time.Second, others: time.Second, rss: 42}, 5*time.Second)
	if r.SecondsMax != 4 || r.SecondsP50 != 3 {
		t.Errorf("max %v s, p50 %v s; want 4 (from its own start) and 3", r.SecondsMax, r.SecondsP50)
	}
	if round(r.CPUSecondsPerGB) != 2000 || r.RSSMaxBytes != 42 || r.OtherCores != 0.2 || r.Failed != 0 {
		t.Errorf("result %+v", r)
	}
	if bound := float64(w.uniqueBytes()) / 1e6; round(r.BoundSeconds) != round(bound) || round(r.Ratio) != round(4/bound) {
		t.Errorf("bound %v s and ratio %v, want %v and %v", r.BoundSeconds, r.Ratio, bound, 4/bound)
	}
	if err := r.verdict(); err != nil || len(r.Notes) > 1 {
		t.Errorf("verdict %v, notes %q", err, r.Notes)
	}
}

func TestResultOfFailures(t *testing.T) {
	w := seen(t, "node1", "node2", "node3")
	w.ended("node1", 0, 2*time.Second, 1_000_000, nil)
	w.ended("node2", 0, 9*time.Second, 500_000, errors.New("connection reset")).wrongBytes = 7
	w.ended("node3", 0, 8*time.Second, 500_000, errors.New("killed"))
	w.excuse("node3")
	w.must(true, "this holds")
	w.must(false, "%d liars were missed", 2)
	w.note("as you see")
	r := w.result(usage{}, 9*time.Second)
	if r.Failed != 1 || r.WrongBytes != 7 {
		t.Errorf("%d failed, %d wrong bytes; want 1 and 7: the scenario itself ended node3", r.Failed, r.WrongBytes)
	}
	if r.SecondsMax != 2 {
		t.Errorf("max %v s, want 2: of the pulls that ended well", r.SecondsMax)
	}
	if len(r.Broken) != 1 || r.Broken[0] != "2 liars were missed" {
		t.Errorf("broken %q", r.Broken)
	}
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "node2 failed after 9.00 s: connection reset") || !strings.Contains(notes, "as you see") || strings.Contains(notes, "node3") {
		t.Errorf("notes %q", r.Notes)
	}
}
