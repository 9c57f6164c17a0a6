package main

import (
	"bytes"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e"
	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// world of three nodes on links of 8 Mbit/s, all of it payload, that want 1 MB.
func threeNodes() *world {
	img := &sample.Image{}
	img.Native.Layers = []sample.Blob{{Data: make([]byte, mega)}}
	w := &world{
		options: options{Nodes: 3, Seeds: 1, rate: 8 * mega, seedRate: 8 * mega, originRate: 8 * mega},
		payload: mega, images: []image{{img, "lab/app1"}}, cluster: &cluster.Cluster{},
		origin: &origin.Origin{Front: &origin.Front{Counter: origin.NewCounter()}},
	}
	for _, name := range []string{"node1", "node2", "node3"} {
		w.cluster.Nodes = append(w.cluster.Nodes, &cluster.Member{Name: name})
	}
	return w
}

func TestSide(t *testing.T) {
	w := threeNodes()
	w.pulls = []*pull{
		{node: "node1", end: 2 * time.Second}, {node: "node2", end: 3 * time.Second}, {node: "node3", end: 9 * time.Second, err: errors.New("cut")},
	}
	if got, want := w.side(), (Side{SecondsMax: 3, SecondsP50: 2, Ratio: 3, Failed: 1}); got != want {
		t.Errorf("the side is %+v, want %+v: bound 1 s, and node3's time is none", got, want)
	}
}

func TestSideTimeout(t *testing.T) {
	w := threeNodes()
	// One after another over one link, all nodes need 3 s.
	if got := w.sideTimeout(); got != 6*time.Second+time.Minute {
		t.Errorf("times out after %v", got)
	}
	w.Timeout = time.Second
	if got := w.sideTimeout(); got != time.Second {
		t.Errorf("times out after %v where the options say 1s", got)
	}
}

func TestNginxConfig(t *testing.T) {
	got := nginxConfig("/run/lab x", "10.77.0.9:5000", "https://10.77.0.1:5000", "/run/lab x/ca.crt")
	for _, want := range []string{
		"listen 10.77.0.9:5000;", "proxy_pass https://10.77.0.1:5000;", `proxy_ssl_trusted_certificate "/run/lab x/ca.crt";`,
		"proxy_cache_lock on;", `pid "/run/lab x/pid";`,
		"location = /ready {", `proxy_cache_path "/run/lab x/files"`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the configuration has no %q", want)
		}
	}
	if strings.Count(got, "{") != strings.Count(got, "}") || strings.Contains(got, "%!") {
		t.Errorf("the configuration is not whole:\n%s", got)
	}
	// Nothing of the machine's own nginx may be touched.
	for _, path := range regexp.MustCompile(`"/[^"]*"`).FindAllString(got, -1) {
		if !strings.HasPrefix(path, `"/run/lab x/`) {
			t.Errorf("the configuration names %s", path)
		}
	}
}

// TestNginxCannotBeInstalled holds what who has no nginx and no apt-get is told.
func TestNginxCannotBeInstalled(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := e2e.PrepareNginx(t.Context(), "."); err == nil || !strings.Contains(err.Error(), "apt-get install nginx") {
		t.Errorf("error %v, want one that says what to install", err)
	}
}

// TestSidesArePrinted holds that people see every way of pulling below each other.
func TestSidesArePrinted(t *testing.T) {
	r := Result{SecondsMax: 5.9, Ratio: 1.06, OriginBytes: 64 << 20, OriginRatio: 1, OriginRequests: 5, With: map[string]Side{
		"direct": {SecondsMax: 45, SecondsP50: 44, Ratio: 8.1234, OriginBytes: 512 << 20, OriginRatio: 8, OriginRequests: 40, Failed: 2},
		"cache":  {SecondsMax: 46, Ratio: 8.2},
	}}
	var out bytes.Buffer
	if err := r.print(&out, false); err != nil {
		t.Fatal(err)
	}
	var rows []string
	_, table, _ := strings.Cut(out.String(), "\n\n")
	for line := range strings.Lines(table) {
		rows = append(rows, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"by ratio seconds max p50 origin MiB origin ratio origin requests failed",
		"damselfly 1.060 5.90 0.00 64.0 1.000 5 0", "cache 8.200 46.00 0.00 0.0 0.000 0 0", "direct 8.123 45.00 44.00 512.0 8.000 40 2",
	}
	if !slices.Equal(rows, want) {
		t.Errorf("printed %q, want %q", rows, want)
	}
	out.Reset()
	if err := (Result{}).print(&out, false); err != nil || strings.Contains(out.String(), "damselfly") {
		t.Errorf("a comparison with nothing: %s, error %v", &out, err)
	}
}

func TestWithIsChecked(t *testing.T) {
	for with, ok := range map[string]bool{"direct,cache": true, "cache": true, "cache,cache": false, "magic": false} {
		o := options{Nodes: 1, Schedulers: 1, Rate: "100mbit", Blob: "64MiB", Scenario: "flash", With: strings.Split(with, ",")}
		if _, err := o.validate(); (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "--with") {
			t.Errorf("--with %s: %v", with, err)
		}
	}
}
