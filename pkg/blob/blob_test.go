package blob_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

func TestParseDigest(t *testing.T) {
	good := fmt.Sprintf("sha256:%x", sha256.Sum256(nil))
	if d, err := blob.ParseDigest(good); err != nil || d.Algorithm() != "sha256" || len(d.Hex()) != 64 {
		t.Fatalf("%v %v", d, err)
	}
	if _, err := blob.ParseDigest(fmt.Sprintf("sha512:%x", sha512.Sum512(nil))); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "sha256", "sha256:", good[:70], good + "0", strings.ToUpper(good), "md5:" + strings.Repeat("0", 32),
		"sha256:" + strings.Repeat("g", 64), "sha256:../../../../" + strings.Repeat("a", 52), "sha256:" + strings.Repeat("a", 63) + "\x00",
	} {
		if d, err := blob.ParseDigest(bad); err == nil {
			t.Errorf("ParseDigest(%q) = %v, want an error", bad, d)
		}
	}
}

// sizes near every boundary of the piece arithmetic.
func sizes() []int64 {
	const p = blob.MinPieceLength
	s := []int64{1, 2, 63, 64, 65, 127, 128, 129, p - 1, p, p + 1, 2*p - 1, 2 * p, 2*p + 1, 3*p - 64, 3*p + 64, 5*p + 12345}
	return s
}

func TestLayoutPartitionsTheBlob(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.OneOf(rapid.Int64Range(0, blob.MaxSize), rapid.Int64Range(0, 4<<20)).Draw(t, "size")
		l, err := blob.NewLayout(size)
		if err != nil {
			t.Fatal(err)
		}
		if pl := l.PieceLength(); pl < blob.MinPieceLength || pl > blob.MaxPieceLength || pl&(pl-1) != 0 {
			t.Fatalf("piece length %d", pl)
		}
		if l.Bytes(l.All()) != size {
			t.Fatalf("pieces hold %d of %d bytes", l.Bytes(l.All()), size)
		}
		if size == 0 {
			return
		}
		i := rapid.IntRange(0, l.Pieces()-1).Draw(t, "piece")
		if l.At(l.Offset(i)) != i || l.At(l.Offset(i)+l.Length(i)-1) != i {
			t.Fatalf("piece %d does not hold its own bytes", i)
		}
		off := rapid.Int64Range(0, size-1).Draw(t, "off")
		n := rapid.Int64Range(1, size-off).Draw(t, "n")
		r := l.Covering(off, n)
		if err := l.Check(r); err != nil {
			t.Fatal(err)
		}
		if l.Offset(r.First) > off || l.Offset(r.End()-1)+l.Length(r.End()-1) < off+n {
			t.Fatalf("%v does not cover %d+%d", r, off, n)
		}
	})
	for _, size := range []int64{-1, blob.MaxSize + 1} {
		if _, err := blob.NewLayout(size); err == nil {
			t.Errorf("NewLayout(%d) took it", size)
		}
	}
}

func TestLayoutCheckRefusesRunsOutside(t *testing.T) {
	l, _ := blob.NewLayout(3 * blob.MinPieceLength)
	for _, r := range []blob.Run{{-1, 1}, {0, 0}, {0, -1}, {3, 1}, {0, 4}, {2, 2}, {1, int(^uint(0) >> 1)}} {
		if l.Check(r) == nil {
			t.Errorf("Check(%v) took it", r)
		}
	}
}

func TestChainProvesEveryPieceInAnyOrder(t *testing.T) {
	for _, alg := range []string{"sha256", "sha512"} {
		for _, size := range sizes() {
			data := random(size)
			d := digestOf(alg, data)
			l, _ := blob.NewLayout(size)
			c := blob.NewChain(d, l)
			for i := range l.Pieces() { // read in order: the links come free of charge
				next, err := blob.Advance(d, l, i, c.Link(i), piece(l, data, i))
				if err != nil {
					t.Fatalf("%s size %d piece %d: %v", alg, size, i, err)
				}
				if next != nil {
					if err := c.Add(i+1, next); err != nil {
						t.Fatal(err)
					}
				}
			}
			if !c.Whole() || c.Front() != l.Pieces() {
				t.Fatalf("%s size %d: chain not whole", alg, size)
			}
			for _, i := range rand.Perm(l.Pieces()) { // check in any order
				next, err := blob.Advance(d, l, i, c.Link(i), piece(l, data, i))
				if err != nil || (next != nil && !bytes.Equal(next, c.Link(i+1))) {
					t.Fatalf("%s size %d piece %d: %v", alg, size, i, err)
				}
			}
		}
	}
}

func TestChainCatchesOneBit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 3*blob.MinPieceLength+7).Draw(t, "size")
		data := random(size)
		d := digestOf("sha256", data)
		l, _ := blob.NewLayout(size)
		c := blob.NewChain(d, l)
		for i := range l.Pieces() {
			if next, _ := blob.Advance(d, l, i, c.Link(i), piece(l, data, i)); next != nil {
				_ = c.Add(i+1, next)
			}
		}
		bit := rapid.Int64Range(0, size*8-1).Draw(t, "bit")
		data[bit/8] ^= 1 << (bit % 8)
		i := l.At(bit / 8)
		next, err := blob.Advance(d, l, i, c.Link(i), piece(l, data, i))
		if i == l.Pieces()-1 {
			if !errors.Is(err, blob.ErrMismatch) {
				t.Fatalf("last piece with bit %d flipped: %v", bit, err)
			}
		} else if err != nil || bytes.Equal(next, c.Link(i+1)) {
			t.Fatalf("piece %d with bit %d flipped passed: %v", i, bit, err)
		}
	})
}

func TestChainAddTakesAllOrNone(t *testing.T) {
	data := random(4 * blob.MinPieceLength)
	d := digestOf("sha256", data)
	l, _ := blob.NewLayout(int64(len(data)))
	c := blob.NewChain(d, l)
	a, b := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	if err := c.Add(2, a); err != nil {
		t.Fatal(err)
	}
	if err := c.Add(1, append(bytes.Clone(a), b...)); !errors.Is(err, blob.ErrConflict) {
		t.Fatalf("conflict: %v", err)
	}
	if c.Link(1) != nil {
		t.Fatal("a refused Add left a link behind")
	}
	for _, bad := range []struct{ first, n int }{{-1, 32}, {0, 33}, {4, 32}, {1, 5 * 32}, {5, 0}} {
		if c.Add(bad.first, make([]byte, bad.n)) == nil {
			t.Errorf("Add(%d, %d bytes) took it", bad.first, bad.n)
		}
	}
	if got := c.Links(0, 10); len(got) != 32 {
		t.Fatalf("Links stops at the first unknown one: got %d bytes", len(got))
	}
	given := c.Links(2, 1)
	c.Forget()
	if c.Front() != 1 || c.Link(2) != nil {
		t.Fatal("Forget kept links")
	}
	if err := c.Add(2, b); err != nil || !bytes.Equal(given, a) {
		t.Fatalf("after Forget and Add, what Links gave before is %x: %v", given[:4], err)
	}
	if link0 := c.Links(0, 1); !bytes.Equal(link0, blob.NewChain(d, l).Link(0)) {
		t.Fatalf("Forget left link 0 as %x", link0[:4])
	}
}

func TestBitmapAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 200).Draw(t, "n")
		b, model := blob.NewBitmap(n), map[int]bool{}
		for range rapid.IntRange(0, 300).Draw(t, "steps") {
			i := rapid.IntRange(-2, n+2).Draw(t, "i")
			in := i >= 0 && i < n
			if rapid.Bool().Draw(t, "set") {
				if b.Set(i) != (in && !model[i]) {
					t.Fatalf("Set(%d)", i)
				}
				if in {
					model[i] = true
				}
			} else {
				if b.Clear(i) != model[i] {
					t.Fatalf("Clear(%d)", i)
				}
				delete(model, i)
			}
		}
		if b.Count() != len(model) || b.Full() != (len(model) == n) {
			t.Fatal("count")
		}
		seen := 0
		for _, r := range b.Runs() {
			for i := r.First; i < r.End(); i++ {
				seen++
				if !model[i] {
					t.Fatalf("run %v holds %d", r, i)
				}
			}
			if model[r.First-1] || model[r.End()] {
				t.Fatalf("run %v is not maximal", r)
			}
		}
		if seen != len(model) {
			t.Fatal("runs miss pieces")
		}
	})
}

func BenchmarkAdvance(b *testing.B) {
	data := random(4 * blob.MinPieceLength)
	d := digestOf("sha256", data)
	l, _ := blob.NewLayout(int64(len(data)))
	b.SetBytes(l.PieceLength())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := blob.Advance(d, l, 0, d.FirstLink(), piece(l, data, 0)); err != nil {
			b.Fatal(err)
		}
	}
}

func random(n int64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	_, _ = r.Read(b)
	return b
}

func piece(l blob.Layout, data []byte, i int) []byte {
	return data[l.Offset(i) : l.Offset(i)+l.Length(i)]
}

func digestOf(alg string, data []byte) blob.Digest {
	if alg == "sha512" {
		return blob.Digest(fmt.Sprintf("sha512:%x", sha512.Sum512(data)))
	}
	return blob.FromBytes(data)
}
