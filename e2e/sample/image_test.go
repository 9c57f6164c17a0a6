package sample

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"testing"
)

func TestImageIsReproducibleAndUnpacks(t *testing.T) {
	a, err := New("seed", Small(), OCI)
	if err != nil {
		t.Fatal(err)
	}
	b, err := New("seed", Small(), OCI)
	if err != nil {
		t.Fatal(err)
	}
	other, err := New("other", Small(), OCI)
	if err != nil {
		t.Fatal(err)
	}
	if a.Index.Digest != b.Index.Digest {
		t.Errorf("same seed, two images: %s and %s", a.Index.Digest, b.Index.Digest)
	}
	for i, l := range a.Native.Layers {
		if l.Digest == other.Native.Layers[i].Digest {
			t.Errorf("layer %d is the same for two seeds", i)
		}
		if l.Size() < Small()[i] || l.Size() > Small()[i]+4096 {
			t.Errorf("layer %d has %d bytes, want about %d", i, l.Size(), Small()[i])
		}
		zr, err := gzip.NewReader(bytes.NewReader(l.Data))
		if err != nil {
			t.Fatal(err)
		}
		tr := tar.NewReader(zr)
		var files int
		for {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				files++
			}
		}
		if files != 1 {
			t.Errorf("layer %d holds %d files, want 1", i, files)
		}
	}
}
