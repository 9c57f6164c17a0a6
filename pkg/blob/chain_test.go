package blob_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"testing"

	"pgregory.net/rapid"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

var algorithms = []string{"sha256", "sha512"}

func newHash(alg string) hash.Hash {
	if alg == "sha512" {
		return sha512.New()
	}
	return sha256.New()
}

// stateOf is the standard library's state after data, which it has absorbed in one go.
func stateOf(t testing.TB, alg string, data []byte) []byte {
	t.Helper()
	h := newHash(alg)
	h.Write(data)
	return marshalled(t, h)
}

func marshalled(t testing.TB, h hash.Hash) []byte {
	t.Helper()
	state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return state[4 : 4+h.Size()] // after the magic; the state is as long as the digest
}

// boundaries are sizes at and around every edge that the hash or the pieces have: those
// of a block (64 and 128 bytes), of the room that padding needs in it (9 and 17 bytes),
// and of one piece and several.
func boundaries() []int64 {
	var all []int64
	for pieces := range int64(4) {
		base := pieces * blob.MinPieceLength
		for _, edge := range []int64{0, 55, 64, 111, 119, 128, 192, 256} {
			for _, by := range []int64{-1, 0, 1} {
				all = append(all, base+edge+by)
			}
		}
		all = append(all, base-64, base-128, base+blob.MinPieceLength/2)
	}
	all = append(all, 5*blob.MinPieceLength+12345)
	return all
}

// TestChainAgainstTheStandardLibrary: of every blob, each link is the state of the
// standard library at that offset, and the last piece arrives at its digest.
func TestChainAgainstTheStandardLibrary(t *testing.T) {
	for _, alg := range algorithms {
		for _, size := range boundaries() {
			if size < 0 {
				continue
			}
			checkChain(t, alg, random(size))
		}
	}
}

func TestChainAgainstTheStandardLibraryAtRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(0, 4*blob.MinPieceLength+300).Draw(t, "size")
		checkChain(t, rapid.SampledFrom(algorithms).Draw(t, "algorithm"), random(size))
	})
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func checkChain(t failer, alg string, data []byte) {
	t.Helper()
	d, size := digestOf(alg, data), int64(len(data))
	l, err := blob.NewLayout(size)
	if err != nil {
		t.Fatalf("layout of %d bytes: %v", size, err)
	}
	c, h := blob.NewChain(d, l), newHash(alg)
	if size == 0 {
		if l.Pieces() != 0 || !c.Whole() || !d.Matches(nil) {
			t.Fatalf("an empty blob has %d pieces", l.Pieces())
		}
		return
	}
	for i := range l.Pieces() {
		state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil || !bytes.Equal(c.Link(i), state[4:4+h.Size()]) {
			t.Fatalf("%s, %d bytes: link %d is %x, the standard library's state %x: %v", alg, size, i, c.Link(i), state, err)
		}
		p := piece(l, data, i)
		next, err := blob.Advance(d, l, i, c.Link(i), p)
		if err != nil || (next == nil) != (i == l.Pieces()-1) {
			t.Fatalf("%s, %d bytes, piece %d: %v", alg, size, i, err)
		}
		if err := c.Add(min(i+1, l.Pieces()), next); err != nil {
			t.Fatalf("%s, %d bytes, link %d: %v", alg, size, i+1, err)
		}
		h.Write(p)
	}
	if fmt.Sprintf("%x", h.Sum(nil)) != d.Hex() {
		t.Fatalf("%s, %d bytes: the pieces are not the blob", alg, size)
	}
}

// TestChainRefusesWhatIsNotThePiece: a bit at an edge of a block or of the piece, a byte
// too many or too few, the link of another place, and a blob of another size.
func TestChainRefusesWhatIsNotThePiece(t *testing.T) {
	for _, alg := range algorithms {
		for _, size := range []int64{1, 64, 128, blob.MinPieceLength, blob.MinPieceLength + 1, 2*blob.MinPieceLength + 129} {
			data := random(size)
			d := digestOf(alg, data)
			l, _ := blob.NewLayout(size)
			for i := range l.Pieces() {
				link, p := stateOf(t, alg, data[:l.Offset(i)]), bytes.Clone(piece(l, data, i))
				reached := func(d blob.Digest, l blob.Layout, link, p []byte) bool {
					next, err := blob.Advance(d, l, i, link, p)
					if err != nil && !errors.Is(err, blob.ErrMismatch) {
						t.Fatal(err)
					}
					end := l.Offset(i) + l.Length(i)
					return err == nil && (next == nil || bytes.Equal(next, stateOf(t, alg, data[:end])))
				}
				if !reached(d, l, link, p) {
					t.Fatalf("%s, %d bytes: piece %d is refused", alg, size, i)
				}
				for _, at := range []int{0, 62, 63, 64, 65, 126, 127, 128, 129, len(p) - 129, len(p) - 64, len(p) - 1} {
					if at < 0 || at >= len(p) {
						continue
					}
					p[at] ^= 0x10
					if reached(d, l, link, p) {
						t.Errorf("%s, %d bytes: piece %d is taken with byte %d changed", alg, size, i, at)
					}
					p[at] ^= 0x10
				}
				if reached(d, l, link, p[:len(p)-1]) || reached(d, l, link, append(bytes.Clone(p), 0)) {
					t.Errorf("%s, %d bytes: piece %d is taken with another length", alg, size, i)
				}
				wrong := bytes.Clone(link)
				wrong[len(wrong)-1] ^= 1
				if reached(d, l, wrong, p) {
					t.Errorf("%s, %d bytes: piece %d is taken from another link", alg, size, i)
				}
			}
		}
	}
}

// TestChainOfLongPieces: where pieces are longer than the shortest, the chain is the
// standard library's all the same. Nothing of the blob's size is in memory.
func TestChainOfLongPieces(t *testing.T) {
	for _, alg := range algorithms {
		const size = 513<<20 + 65
		l, err := blob.NewLayout(size)
		if err != nil || l.PieceLength() <= blob.MinPieceLength {
			t.Fatalf("piece length %d: %v", l.PieceLength(), err)
		}
		buf := random(l.PieceLength())
		whole := newHash(alg)
		for i := range 64 { // from the start; the rest of so large a blob is not needed
			link := marshalled(t, whole)
			copy(buf, fmt.Sprint(i))
			whole.Write(buf)
			d := blob.Of(alg, whole)
			next, err := blob.Advance(d, l, i, link, buf)
			if err != nil || !bytes.Equal(next, marshalled(t, whole)) {
				t.Fatalf("%s: piece %d: %v", alg, i, err)
			}
		}
	}
}

func BenchmarkAddLinks(b *testing.B) {
	const size = 50 << 30
	l, _ := blob.NewLayout(size)
	d := blob.FromBytes(nil)
	links := make([]byte, 16*d.LinkSize())
	c := blob.NewChain(d, l)
	first := 1
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Add(first, links); err != nil {
			b.Fatal(err)
		}
		if first += 16; first+16 > l.Pieces() {
			c.Forget()
			first = 1
		}
	}
}
