package e2e

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/process"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// slowAnswer is what a slow origin gives each answer, in bytes a second.
const slowAnswer = 4_000_000

// TestSlowConnections pulls a layer of 64 MB from an origin that gives each connection
// 4 MB/s: through a node by itself, through a cluster, and by dfget directly. It takes
// less than half of what one connection would, and the origin sends each byte once.
func TestSlowConnections(t *testing.T) {
	const size = 64_000_000
	o := startOrigin(t, origin.Token, false)
	image := push(t, o, "app/slow", []int64{size}, sample.OCI)
	layer := image.Native.Layers[0]
	o.Inject(origin.Rule{Match: origin.Blob(layer.Digest), Fault: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		origin.Slow(origin.Rate(slowAnswer))(w, r, next)
	}})
	direct := eightRanges(t, o, "app/slow", layer)
	for name, pull := range map[string]func(t *testing.T){
		"node alone": func(t *testing.T) {
			member := startAlone(t, o).Nodes[0]
			timeSlow(t, o, layer, direct, func() { pullAll(t, o, []*cluster.Member{member}, image, "app/slow") })
		},
		"cluster": func(t *testing.T) {
			nodes := startCluster(t, o, 1, 2).Nodes
			timeSlow(t, o, layer, direct, func() { pullAll(t, o, nodes, image, "app/slow") })
		},
		"dfget directly": func(t *testing.T) {
			authorization, err := o.Authorization(origin.Reader, "app/slow")
			must(t, err)
			dir := directory(t)
			timeSlow(t, o, layer, direct, func() {
				_, err := process.Run(deadline(t), process.Spec{
					Name: "dfget", Path: filepath.Join(programs(t).bin, "dfget"), Dir: dir,
					Args: []string{
						"pull", strings.TrimPrefix(o.URL, "https://") + "/app/slow:v1", "-O", filepath.Join(dir, "layout"), "--direct",
						"--ca", o.CAFile, "-H", "Authorization: " + authorization,
					},
				})
				must(t, err)
			})
		},
	} {
		t.Run(name, pull)
	}
}

// timeSlow bounds the time of a pull of a layer, and what it costs the origin.
func timeSlow(t *testing.T, o *origin.Origin, layer sample.Blob, direct time.Duration, pull func()) {
	t.Helper()
	o.Reset()
	began := time.Now()
	pull()
	took := time.Since(began)
	one := time.Duration(layer.Size()) * time.Second / slowAnswer
	sent := float64(o.Counts().Bytes(layer.Digest)) / float64(layer.Size())
	t.Logf("%s: %.2f x eight ranges directly, one connection takes %s; %.4f x its bytes by %d requests", took,
		took.Seconds()/direct.Seconds(), one, sent, o.Counts().BlobGets[layer.Digest])
	if took > one/2 {
		t.Errorf("the pull took %s, one connection %s", took, one)
	}
	if sent > 1.02 {
		t.Errorf("the origin sent %.3f x the bytes of the layer", sent)
	}
}

// eightRanges is how long a client needs that asks for eight ranges of a layer at once.
func eightRanges(t *testing.T, o *origin.Origin, repository string, layer sample.Blob) time.Duration {
	t.Helper()
	authorization, err := o.Authorization(origin.Reader, repository)
	must(t, err)
	began := time.Now()
	var g errgroup.Group
	for i := range int64(8) {
		g.Go(func() error {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, o.URL+"/v2/"+repository+"/blobs/"+layer.Digest, nil)
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", authorization)
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", i*layer.Size()/8, (i+1)*layer.Size()/8-1))
			resp, err := o.Transport().RoundTrip(req)
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			if resp.StatusCode != http.StatusPartialContent {
				return fmt.Errorf("status %d", resp.StatusCode)
			}
			_, err = io.Copy(io.Discard, resp.Body)
			return err
		})
	}
	must(t, g.Wait())
	return time.Since(began)
}
