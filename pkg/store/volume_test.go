package store

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWriteVector: whatever a write takes of what it is given, all is written once, in
// its place, and the first error ends it.
func TestWriteVector(t *testing.T) {
	var parts [][]byte
	for i := range maxParts + 70 {
		parts = append(parts, bytes.Repeat([]byte{byte(i)}, 1+i%9))
	}
	want := slices.Concat(parts...)
	const at = 1000
	for _, most := range []int{1, 2, 7, 100, len(want)} {
		var got []byte
		interrupted := false
		err := writeVector(slices.Clone(parts), at, func(some [][]byte, off int64) (int, error) {
			if interrupted = !interrupted; interrupted {
				return 0, unix.EINTR
			}
			if len(some) > maxParts || off != at+int64(len(got)) {
				t.Fatalf("%d parts at %d, where %d bytes are written", len(some), off, len(got))
			}
			all := slices.Concat(some...)
			n := min(most, len(all))
			got = append(got, all[:n]...)
			return n, nil
		})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("by %d: %d bytes of %d, %v", most, len(got), len(want), err)
		}
	}
	full := func([][]byte, int64) (int, error) { return 0, unix.ENOSPC }
	if err := writeVector(parts, 0, full); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	nothing := func([][]byte, int64) (int, error) { return 0, nil }
	if err := writeVector(parts, 0, nothing); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("where nothing is written: %v", err)
	}
}

// TestWriteParts: a file has the parts where they belong, and a write that cannot be
// names the file.
func TestWriteParts(t *testing.T) {
	v, err := openVolume(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := v.create("data")
	if err != nil {
		t.Fatal(err)
	}
	parts := [][]byte{[]byte("a "), []byte("piece "), {}, []byte("in parts")}
	if err := f.writeParts(parts, 3); err != nil {
		t.Fatal(err)
	}
	if got, err := v.readFile("data", 100); err != nil || string(got) != "\x00\x00\x00a piece in parts" {
		t.Errorf("the file has %q, %v", got, err)
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	if err := f.writeParts(parts, 0); err == nil {
		t.Error("a closed file was written to")
	}
	r, err := v.openRead("data")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.writeParts(parts, 0); !errors.Is(err, unix.EBADF) || !bytes.Contains([]byte(err.Error()), []byte("data")) {
		t.Errorf("written to a file that is for reading: %v", err)
	}
	if err := errors.Join(r.close(), v.close()); err != nil {
		t.Error(err)
	}
}
