package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/origin"
)

func TestScenarioNames(t *testing.T) {
	names := map[string]bool{}
	for _, s := range scenarios() {
		if s.name == "" || s.what == "" || s.run == nil || names[s.name] {
			t.Errorf("scenario %q: twice, or without a line for people, or without run", s.name)
		}
		names[s.name] = true
	}
}

// kept writes what a member keeps of the world's first layer.
func kept(t *testing.T, w *world, i int, content []byte, proven bool) {
	t.Helper()
	m := w.cluster.Nodes[i]
	m.DataDir = t.TempDir()
	for _, b := range w.blobs() {
		file, _ := dataFile(m, b)
		if proven {
			file = strings.TrimSuffix(file, ".part")
		}
		data := b.Data
		if b.Digest == w.images[0].Native.Layers[0].Digest {
			data = content
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFlip(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	before := make([]byte, 5<<19) // two and a half MiB
	if err := os.WriteFile(file, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := flip(file); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for i := range after {
		if after[i] != before[i] {
			changed++
		}
	}
	if changed != 2 || len(after) != len(before) {
		t.Errorf("%d of %d bytes changed, want one in each whole MiB", changed, len(after))
	}
}

func TestWrongWith(t *testing.T) {
	w := seen(t, "node1", "node2", "node3")
	right := w.images[0].Native.Layers[0].Data
	wrong := bytes.Clone(right)
	wrong[7] ^= 1
	kept(t, w, 0, right, true)
	kept(t, w, 1, wrong, true)
	kept(t, w, 2, wrong, false)
	for i, want := range []int{0, 1, 0} {
		if got := w.wrongWith(w.cluster.Nodes[i]); len(got) != want {
			t.Errorf("of %s, whose pull is not over: %q, want %d complaints", w.cluster.Nodes[i].Name, got, want)
		}
	}
	w.ended("node3", 0, time.Second, 1, nil)
	if got := w.wrongWith(w.cluster.Nodes[2]); len(got) != 1 {
		t.Errorf("of a node whose pull ended well, and which keeps other bytes: %q, want a complaint", got)
	}
	if err := os.RemoveAll(w.cluster.Nodes[0].DataDir); err != nil {
		t.Fatal(err)
	}
	w.ended("node1", 0, time.Second, 1, nil)
	if got := w.wrongWith(w.cluster.Nodes[0]); len(got) != len(w.blobs()) {
		t.Errorf("of a node whose pull ended well, and which keeps nothing: %q, want a complaint of each blob", got)
	}
}

func TestForget(t *testing.T) {
	w := seen(t, "node1", "node2")
	w.ended("node1", 0, time.Second, 1, nil)
	w.ended("node2", 0, time.Second, 1, errors.New("cut off"))
	if n := w.forget(func(p *pull) bool { return p.err != nil }); n != 1 || len(w.begun()) != 1 || w.begun()[0].node != "node1" {
		t.Errorf("forgot %d, %d are left; want the failed one forgotten", n, len(w.begun()))
	}
}

func TestWithLiars(t *testing.T) {
	for nodes, liars := range map[int]int{2: 1, 4: 2, 8: 2, 16: 2, 24: 3} {
		o := options{Nodes: nodes}
		withLiars(&o)
		if o.liars != liars || o.Nodes != nodes-liars {
			t.Errorf("of %d nodes %d lie and %d are left, want %d liars", nodes, o.liars, o.Nodes, liars)
		}
	}
}

func TestAsked(t *testing.T) {
	start := time.Now()
	a := &asked{times: []time.Time{start, start.Add(time.Second), start.Add(3 * time.Second)}}
	if n := a.between(0, 3*time.Second); n != 2 {
		t.Errorf("%d in the first 3 s, want 2", n)
	}
	if first := a.add(); !first.Equal(start) || len(a.times) != 4 {
		t.Errorf("the first was %v of %d, want %v of 4", first, len(a.times), start)
	}
}

func TestDuringIsTooLate(t *testing.T) {
	w := seen(t, "node1")
	done := false
	never := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	err := w.during(t.Context(), nil, never, func(context.Context) error { done = true; return nil })
	if err != nil || done || len(w.broken) != 1 {
		t.Errorf("error %v, done %v, broken %q; want only the complaint that nothing broke", err, done, w.broken)
	}
}

func TestEachLayer(t *testing.T) {
	w := seen(t, "node1")
	next := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusOK) })
	front, err := origin.NewHandlerFront(next, origin.NewCounter(), origin.Wire{})
	if err != nil {
		t.Fatal(err)
	}
	defer front.Close()
	w.origin.Front = front
	unused := w.eachLayer(origin.Status(http.StatusInternalServerError))
	var got []int
	for range 2 {
		rec := httptest.NewRecorder()
		front.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/lab/app/blobs/"+w.images[0].Native.Layers[0].Digest, nil))
		got = append(got, rec.Code)
	}
	if !slices.Equal(got, []int{500, 200}) || unused() != 0 {
		t.Errorf("answers %v, %d faults unused; want 500 once and then 200", got, unused())
	}
}
