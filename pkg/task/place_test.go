package task_test

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/task"
)

// Where an origin has served a blob is known to who read it there, and to who has bytes
// from that one; an origin that sent something else has not served it.
func TestPlacesTravelWithBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		at, elsewhere := w.request().Ref, w.request().Ref
		elsewhere.Repository = "another"
		if w.Served(at, w.d) {
			t.Error("served before anything came")
		}
		w.wantWhole(<-read(w.open(w.request())))
		if !w.Served(at, w.d) || w.Served(elsewhere, w.d) {
			t.Error("read at the origin: not known to be served there, or known to be served elsewhere")
		}
		w.Serves(elsewhere, w.d)
		if !w.Served(elsewhere, w.d) {
			t.Error("what the proxy has heard is forgotten")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		from := origin.Ref{Kind: origin.KindBlob, Registry: "r.example.com", Repository: "of the seed"}
		w.swarm.places = []blob.Place{from.Place(w.d)}
		w.sched.joined = true
		h := w.open(w.request())
		synctest.Wait()
		l := w.lease(1, blob.Run{Count: pieces})
		l.Holder, l.Links = &control.Holder{ID: "seed", Address: "seed:1"}, w.chain()
		w.Handle(l)
		w.wantWhole(<-read(h))
		if !w.Served(from, w.d) || w.Served(w.request().Ref, w.d) {
			t.Error("what came from another node is not known to be served where that knew it to be, or is elsewhere")
		}
	})
}

// An origin whose bytes miss the digest has not served the blob.
func TestWrongBytesLeaveNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		req := w.request()
		w.up.bad, w.up.badly = req.Ref.Registry, func(r io.Reader) io.Reader { return &flipped{r} }
		h := w.open(req)
		if r := <-read(h); r.err == nil {
			t.Fatal("wrong bytes were given out")
		}
		pass(time.Minute) // the last try has failed, too
		if w.Served(req.Ref, w.d) {
			t.Error("who sent wrong bytes is taken for a place where the blob is")
		}
	})
}

type flipped struct{ io.Reader }

func (f *flipped) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	for i := range p[:n] {
		p[i] ^= 1
	}
	return n, err
}

// A task that ends with nothing leaves nothing: no part without a piece, and no room that is
// set aside for it. One that has a piece leaves that.
func TestNothingLeavesNothing(t *testing.T) {
	for _, have := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, task.Config{}, 0)
			req := w.request()
			if have == 0 {
				w.up.err = &origin.StatusError{Code: 404, Ref: req.Ref}
			} else {
				w.up.slow = func(ctx context.Context, _ int) error {
					if w.up.bytesRead() > blob.MinPieceLength {
						return &origin.StatusError{Code: 404, Ref: req.Ref}
					}
					return nil
				}
			}
			if r := <-read(w.open(req)); r.err == nil {
				t.Fatal("whole")
			}
			pass(time.Minute)
			if infos := w.store.Blobs(); len(infos) != have {
				t.Errorf("%d blobs are left, want %d: %+v", len(infos), have, infos)
			}
		})
	}
}
