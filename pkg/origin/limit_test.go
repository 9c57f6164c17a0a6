package origin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/limit"
)

// Blobs wait for every limit that there is, questions for none, and what a limit takes
// is no stall of the origin.
func TestReadKeepsWithinLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := content(1 << 20)
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) { serveBytes(w, r, b) })
		c := testClient(t, n, func(c *Config) { c.StallTimeout = time.Second })
		const perSecond = 8 << 10 // two seconds for each read of the body
		limits := []*limit.Bucket{limit.New(1e9), limit.New(perSecond), limit.New(0)}
		c.Limit(limits...)
		ctx, cancel := context.WithCancelCause(t.Context())
		r, err := c.Read(ctx, blobRef(b), nil, int64(len(b)), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		started, got := time.Now(), make([]byte, 512<<10)
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, b[:len(got)]) {
			t.Fatalf("half of the blob: %v", err)
		}
		const burst = 64 << 10
		want := time.Duration(len(got)-burst) * time.Second / perSecond
		if d := time.Since(started); d < want-time.Second || d > want+5*time.Second {
			t.Errorf("%d bytes took %v, want %v", len(got), d, want)
		}

		started = time.Now()
		answer, err := c.Get(t.Context(), tagRef("v1"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if manifest, err := io.ReadAll(answer.Body); err != nil || len(manifest) != len(b) || time.Since(started) > time.Second {
			t.Errorf("%d bytes of a manifest took %v, %v", len(manifest), time.Since(started), err)
		}
		_ = answer.Body.Close()

		why := errors.New("recalled")
		time.AfterFunc(time.Second, func() { cancel(why) })
		if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) || time.Since(started) > 2*time.Second {
			t.Errorf("a cancelled read ended after %v with %v", time.Since(started), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if rec.count() != 2 {
			t.Errorf("%d requests: the blob was asked for again", rec.count())
		}
	})
}
