package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// A layer's digest is that of what the origin sends, wherever reads begin and end.
func TestLayersHaveTheirDigests(t *testing.T) {
	layers := []layer{{number: 1, size: 3 << 20}, {number: 2, size: 3 << 20}, {number: 3, size: 5<<20 + 3}, {number: 4, size: 9}}
	if err := nameLayers(t.Context(), layers); err != nil {
		t.Fatal(err)
	}
	seen := map[blob.Digest]bool{}
	for _, l := range layers {
		data, err := io.ReadAll(&reader{layer: l})
		if err != nil || int64(len(data)) != l.size {
			t.Fatalf("read %d bytes of %d: %v", len(data), l.size, err)
		}
		if got := fmt.Sprintf("sha256:%x", sha256.Sum256(data)); got != string(l.digest) {
			t.Errorf("layer of %d bytes is named %s and is %s", l.size, l.digest, got)
		}
		seen[l.digest] = true
		var small bytes.Buffer
		if _, err := io.CopyBuffer(struct{ io.Writer }{&small}, &reader{layer: l, pos: l.size - 6}, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(small.Bytes(), data[len(data)-6:]) {
			t.Errorf("the end is %x by the byte and %x at once", small.Bytes(), data[len(data)-6:])
		}
	}
	if len(seen) != len(layers) {
		t.Errorf("%d layers have %d digests", len(layers), len(seen))
	}
}

// The clocks tell the time that a process works, not that which passes.
func TestCPUClock(t *testing.T) {
	before, err := cpu(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for sum, until := sha256.Sum256(nil), time.Now().Add(30*time.Millisecond); time.Now().Before(until); {
		sum = sha256.Sum256(sum[:])
	}
	after, err := cpu(os.Getpid())
	if err != nil || after <= before {
		t.Fatalf("%v after %v of work: %v", after-before, 30*time.Millisecond, err)
	}
	if _, err := cpu(1 << 22); !errors.Is(err, unix.EINVAL) { // above the most that Linux gives
		t.Fatalf("the clock of no process: %v", err)
	}
}

func TestSlicesCoverTheBlob(t *testing.T) {
	l, err := blob.NewLayout(blobSize)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{options: options{bytes: blobSize, rounds: 32}}
	have := blob.NewBitmap(l.Pieces())
	for _, s := range b.slices(l) {
		if err := l.Check(s.run); err != nil || s.Bytes != l.Bytes(s.run) {
			t.Fatalf("run %v of %d bytes: %v", s.run, s.Bytes, err)
		}
		have.SetRun(s.run)
	}
	if have.Count() != l.Pieces() {
		t.Errorf("%d of %d pieces are moved", have.Count(), l.Pieces())
	}
}

// Bars hold or not, and one that does not ends the program with an error.
func TestJudge(t *testing.T) {
	r := newReport(options{})
	for name, seconds := range map[string]float64{rowTLS: 0.8, rowHash: 0.6, rowWrite: 0.2, rowExchange: 2} {
		for _, noise := range []float64{1, 1, 7} { // the median is not moved by one bad round
			r.add(name, sample{bytes: 1e9, took: time.Second, client: time.Duration(seconds * noise * float64(time.Second))})
		}
	}
	r.judge()
	if got := r.Ratios["piece_exchange"]; got < 1.2499 || got > 1.2501 {
		t.Fatalf("ratio %v, want 2/1.6", got)
	}
	if err := r.failed(); err != nil {
		t.Fatal(err)
	}
	r.add(rowHit, sample{bytes: 94e6, took: time.Second})
	r.add(rowFiles, sample{bytes: 100e6, took: time.Second})
	r.judge()
	if err := r.failed(); err == nil {
		t.Fatal("a local hit at 0.94 of a file server holds a bar of 0.95")
	}
}
