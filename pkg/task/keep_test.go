package task_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/task"
)

// passBy writes data to k as it comes by, in small parts.
func passBy(k *task.Keeper, data []byte) error {
	for part := range slices.Chunk(data, 32<<10) {
		if _, err := k.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// What goes past on its way to a client is kept and told when it has its digest, whether
// its size was told or not, and however large.
func TestWhatGoesPastIsKept(t *testing.T) {
	for _, size := range []int{0, 1, 1000, 1 << 20, 9<<20 + 1} {
		for _, told := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, task.Config{}, 0)
				data := make([]byte, size)
				_, _ = rand.NewChaCha8([32]byte{3}).Read(data)
				d, n := blob.FromBytes(data), int64(-1)
				if told {
					n = int64(size)
				}
				k := w.Keep(origin.Ref{}, d, n)
				if k == nil || w.Keep(origin.Ref{}, d, n) != nil {
					t.Fatal("one keeper for a blob, and no other")
				}
				if err := errors.Join(passBy(k, data), k.Close()); err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // a large one follows
				b, ok := w.store.Get(d)
				if !ok || !b.Sealed() {
					t.Fatalf("%d bytes were not kept", size)
				}
				defer b.Release()
				got, err := io.ReadAll(b.Reader(t.Context(), 0, int64(size)))
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d of %d bytes, %v", len(got), size, err)
				}
				if haves := keptOf(w, d); haves == 0 {
					t.Error("the scheduler was not told")
				}
				if w.Keep(origin.Ref{}, d, n) != nil {
					t.Error("a keeper for what is here")
				}
			})
		}
	}
}

func keptOf(w *world, d blob.Digest) (n int) {
	for _, h := range told[control.Have](w.sched) {
		if h.Digest == d && h.Sealed {
			n++
		}
	}
	return n
}

// Nothing is seen of what does not have its digest, or breaks off.
func TestWhatDoesNotFitIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		data := bytes.Repeat([]byte("wrong "), 1<<20)
		d := blob.FromBytes([]byte("right"))
		for range 2 {
			k := w.Keep(origin.Ref{}, d, int64(len(data)))
			if err := errors.Join(passBy(k, data), k.Close()); !errors.Is(err, blob.ErrMismatch) {
				t.Errorf("other bytes: %v", err)
			}
		}
		if k := w.Keep(origin.Ref{}, d, 5); passBy(k, data) == nil {
			t.Error("more than was told was taken")
		} else {
			k.Discard()
		}
		if k := w.Keep(origin.Ref{}, d, -1); passBy(k, []byte("rig")) != nil {
			t.Error("a part was not taken")
		} else {
			k.Discard()
		}
		synctest.Wait()
		if _, ok := w.store.Get(d); ok || len(told[control.Have](w.sched)) > 0 {
			t.Error("something was kept")
		}
		if k := w.Keep(origin.Ref{}, d, 5); k == nil {
			t.Error("the blob cannot be kept any more")
		} else {
			k.Discard()
		}
	})
}
