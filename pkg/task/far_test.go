package task_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/task"
)

// larger gives the world a blob of n pieces of the least length.
func (w *world) larger(n int) {
	data := make([]byte, n*blob.MinPieceLength)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(data)
	w.data, w.d = data, blob.FromBytes(data)
	w.up.data[w.d.String()] = data
}

// readRange opens a bounded range as a client does and reads it.
func (w *world) readRange(off, n int) <-chan error {
	out := make(chan error, 1)
	req := w.request()
	req.Offset, req.Length = int64(off), int64(n)
	go func() {
		out <- func() error {
			h, err := w.Open(w.t.Context(), req)
			if err != nil {
				return err
			}
			defer h.Close()
			if _, err := h.Content().Seek(int64(off), io.SeekStart); err != nil {
				return err
			}
			got := make([]byte, n)
			if _, err := io.ReadFull(h.Content(), got); err != nil {
				return err
			}
			if !bytes.Equal(got, w.data[off:off+n]) {
				return fmt.Errorf("wrong bytes at %d", off)
			}
			return nil
		}()
	}()
	return out
}

// A client that fetches a whole blob in bounded ranges, many at a time and in any order,
// costs the origin the blob once.
func TestRangesThatMakeUpTheBlobAreReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.larger(256)
		const part = 8 * blob.MinPieceLength
		offsets := []int{}
		for off := 0; off < len(w.data); off += part {
			offsets = append(offsets, off)
		}
		slices.Reverse(offsets)
		var parts []<-chan error
		for _, off := range offsets {
			parts = append(parts, w.readRange(off, part))
		}
		for _, p := range parts {
			if err := <-p; err != nil {
				t.Fatal(err)
			}
		}
		if got := w.up.bytesRead(); got != int64(len(w.data)) {
			t.Errorf("the origin sent %d of %d bytes, in reads %q", got, len(w.data), w.up.reads)
		}
	})
}

// A lazy reader's range far ahead does not wait for what nobody wants.
func TestLonelyRangeIsReadAtTheOrigin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.larger(1024)
		started := time.Now()
		if err := <-w.readRange(len(w.data)-1000, 1000); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(started); took > 400*time.Millisecond {
			t.Errorf("it took %s", took)
		}
		if got := w.up.bytesRead(); got > 1<<20 {
			t.Errorf("the origin sent %d bytes for a range of 1,000", got)
		}
	})
}
