package task_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/limit"
	"github.com/damselfly-p2p/damselfly/pkg/task"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// What is read while a client waits, or will be back at once, is a client's; what is
// read after it has gone for good is in the background.
func TestWhatNobodyWaitsForIsInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		read, piece := w.classes(), 0
		h := w.open(w.request())
		for _, c := range []struct {
			what string
			do   func()
			want limit.Class
		}{
			{"while a client waits", func() {}, limit.Client},
			{"when it has just gone", func() { _ = h.Close() }, limit.Client},
			{"when it stays away", func() { time.Sleep(3 * time.Second) }, limit.Background},
			{"when it is back", func() { h = w.open(w.request()) }, limit.Client},
		} {
			c.do()
			if got := read(piece); got != c.want {
				t.Errorf("%s a piece was read as class %d, want %d", c.what, got, c.want)
			}
			piece++
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A seed reads for the clients of others.
func TestSeedReadsAsAClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{Seed: true}, 0)
		if got := w.classes()(0); got != limit.Client {
			t.Errorf("class %d", got)
		}
	})
}

// classes returns what carries out a lease of a piece from the origin and tells the
// class that it was read as.
func (w *world) classes() func(piece int) limit.Class {
	seen := make(chan limit.Class, 100)
	w.sched.joined = true
	w.up.slow = func(ctx context.Context, _ int) error {
		seen <- limit.ClassOf(ctx)
		return nil
	}
	return func(piece int) limit.Class {
		l := w.lease(uint64(piece+1), blob.Run{First: piece, Count: 1})
		l.Origin = &damselflyv1.Origin{Kind: damselflyv1.Origin_KIND_BLOB, Registry: "r.example.com", Repository: "app"}
		w.Handle(l)
		synctest.Wait()
		c := <-seen
		for len(seen) > 0 {
			if other := <-seen; other != c {
				w.t.Errorf("one lease was read as classes %d and %d", c, other)
			}
		}
		return c
	}
}
