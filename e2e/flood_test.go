package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// hostile is the manifest of number n: many empty objects, some behind a key that means
// something, of a size just below what a node reads, or of the most that registries take.
func hostile(n int) string {
	size := []int{1<<20 - 1, 4 << 20}[n%2]
	key := []string{"layers", "annotations", "x", "manifests"}[n%4]
	head := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"n":%d,%q:[{}`, manifestType, n, key)
	body := head + strings.Repeat(",{}", (size-len(head)-2)/3) + "]}"
	return body
}

// TestHostileManifests has a client ask for a thousand hostile manifests, thirty at a time.
// The node's memory stays small, and an honest client is served as before.
func TestHostileManifests(t *testing.T) {
	const manifests, together, most = 1000, 30, 150 << 20
	o := startOrigin(t, origin.Token, false)
	c := startAlone(t, o)
	node := c.Nodes[0]
	img := push(t, o, "app/img", sample.Small(), sample.OCI)
	pullAll(t, o, c.Nodes, img, "app/img")
	o.Inject(origin.Rule{Match: origin.Repository("eve/own"), Fault: func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		var n int
		if _, err := fmt.Sscanf(r.URL.Path, "/v2/eve/own/manifests/v%d", &n); err != nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		body := hostile(n)
		w.Header().Set("Content-Type", manifestType)
		if n%3 > 0 {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		}
		_, _ = io.WriteString(w, body)
	}})
	reads := through(o, node)
	var err error
	reads.Authorization, err = reads.Authorize("app/img")
	must(t, err)
	honest := func() time.Duration {
		t.Helper()
		begun := time.Now()
		_, err := reads.Get(deadline(t), "/v2/app/img/manifests/"+img.Native.Digest)
		must(t, err)
		return time.Since(begun)
	}
	before := sampleOf(40, honest)
	peak := memory(t, node.ProcessID(), "VmHWM")
	var flood errgroup.Group
	flood.SetLimit(together)
	var during []time.Duration
	var watch sync.WaitGroup
	over := make(chan struct{})
	watch.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				during = append(during, honest())
			}
		}
	})
	for n := range manifests {
		flood.Go(func() error {
			return fetch(t.Context(), node, fmt.Sprintf("/v2/eve/own/manifests/v%d", n), int64(len(hostile(n))))
		})
	}
	must(t, flood.Wait())
	close(over)
	watch.Wait()
	after := memory(t, node.ProcessID(), "VmHWM")
	t.Logf("the node had %d MiB at most, %d before; an honest manifest takes %s, %s before (median of %d)",
		after>>20, peak>>20, middle(during), middle(before), len(during))
	if after > most {
		t.Errorf("the node had %d MiB, at most %d are allowed", after>>20, most>>20)
	}
	if late := middle(during) - middle(before); late > 100*time.Millisecond {
		t.Errorf("an honest manifest comes %s later", late)
	}
}

// fetch reads what a node's mirror has at path, which has n bytes, and drops it.
func fetch(ctx context.Context, node *cluster.Member, path string, n int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, node.Mirror+path+"?ns="+registry, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", manifestType)
	resp, err := node.Client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.Copy(io.Discard, resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || got != n) {
		err = fmt.Errorf("%s: %s, %d of %d bytes", path, resp.Status, got, n)
	}
	return err
}

func sampleOf(n int, one func() time.Duration) []time.Duration {
	out := make([]time.Duration, n)
	for i := range out {
		out[i] = one()
	}
	return out
}

func middle(of []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}

// memory is what the kernel says of a process under a name such as VmHWM, in bytes.
func memory(t *testing.T, pid int, name string) (bytes int64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, name+": %d kB", &bytes); err == nil {
			return bytes << 10
		}
	}
	t.Fatalf("the kernel says nothing of %s", name)
	return 0
}
