package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

const (
	rangeBytes = 8 << 20
	rangesOpen = 20 // as SOCI and containerd's parallel fetch have
)

// TestParallelRanges pulls one layer by bounded ranges, twenty at a time, through four
// nodes at once: the origin sends it once, and it takes hardly longer than whole pulls.
func TestParallelRanges(t *testing.T) {
	const repository = "app/ranges"
	for _, seeds := range []int{1, 0} {
		t.Run(fmt.Sprintf("%d seeds", seeds), func(t *testing.T) {
			o := startOrigin(t, origin.Token, false)
			c := startCluster(t, o, seeds, 4)
			img := push(t, o, repository, []int64{256 << 20}, sample.OCI)
			whole := pushAnother(t, o, repository+"2")
			authorization, err := o.Authorization(origin.Reader, repository)
			must(t, err)
			layer := largest(img)
			took := timed(t, func(ctx context.Context, n *cluster.Member) error {
				return readRanges(ctx, n, authorization, repository, layer)
			}, c.Nodes)
			if sent := o.Counts().Bytes(layer.Digest); float64(sent) > 1.02*float64(layer.Size()) {
				t.Errorf("the origin sent %d bytes of a layer of %d", sent, layer.Size())
			}
			plain := timed(t, func(ctx context.Context, n *cluster.Member) error {
				return through(o, n).Blob(ctx, repository+"2", largest(whole).Digest, largest(whole).Size())
			}, c.Nodes)
			t.Logf("by ranges %.2f s, whole %.2f s, ratio %.2f; origin %.3f", took.Seconds(), plain.Seconds(),
				took.Seconds()/plain.Seconds(), float64(o.Counts().Bytes(layer.Digest))/float64(layer.Size()))
		})
	}
}

func pushAnother(t *testing.T, o *origin.Origin, repository string) *sample.Image {
	t.Helper()
	return push(t, o, repository, []int64{256<<20 + 1}, sample.OCI)
}

// timed has all nodes do the same at once.
func timed(t *testing.T, do func(context.Context, *cluster.Member) error, nodes []*cluster.Member) time.Duration {
	t.Helper()
	group, ctx := errgroup.WithContext(deadline(t))
	start := time.Now()
	for _, n := range nodes {
		group.Go(func() error { return do(ctx, n) })
	}
	must(t, group.Wait())
	return time.Since(start)
}

// readRanges reads a blob through a node by bounded ranges and checks it.
func readRanges(ctx context.Context, n *cluster.Member, authorization, repository string, b sample.Blob) error {
	got := make([]byte, b.Size())
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(rangesOpen)
	for off := int64(0); off < b.Size(); off += rangeBytes {
		end := min(off+rangeBytes, b.Size())
		group.Go(func() error {
			target := n.Mirror + "/v2/" + repository + "/blobs/" + b.Digest + "?ns=" + url.QueryEscape(registry)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", authorization)
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, end-1))
			resp, err := n.Client().Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusPartialContent {
				return fmt.Errorf("bytes %d to %d: %s", off, end, resp.Status)
			}
			_, err = io.ReadFull(resp.Body, got[off:end])
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	sum := sha256.Sum256(got)
	if d := "sha256:" + hex.EncodeToString(sum[:]); d != b.Digest {
		return fmt.Errorf("got %s, want %s", d, b.Digest)
	}
	return nil
}
