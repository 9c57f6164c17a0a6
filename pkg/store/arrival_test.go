package store_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// add gives a the whole of piece, in parts of n bytes.
func add(a *store.Arrival, piece []byte, n int) {
	for part := range slices.Chunk(piece, n) {
		a.Add(part)
	}
}

// TestArrivalInParts: pieces that come in parts of any length, the last piece first,
// make the blob.
func TestArrivalInParts(t *testing.T) {
	for name, c := range map[string]*storetest.Content{
		"sha256": storetest.Random(t, 7, 2*blob.MinPieceLength+12345),
		"sha512": storetest.Random512(t, 7, 2*blob.MinPieceLength+12345),
	} {
		for _, n := range []int{13, 64, 16367, 16 << 10, 200_000, blob.MinPieceLength} {
			s := storetest.Open(t, store.Config{})
			b := create(t, s, c)
			if err := b.AddLinks(0, c.Links); err != nil {
				t.Fatal(err)
			}
			for i := c.Layout.Pieces() - 1; i >= 0; i-- {
				a := b.Arrive(i)
				add(a, c.Piece(i), n)
				if err := a.Put(); err != nil {
					t.Fatalf("%s in parts of %d bytes, piece %d: %v", name, n, i, err)
				}
			}
			mustRead(t, b, c)
			b.Release()
		}
	}
}

// TestArrivalThatIsWrong: nothing is held nor written of a piece that is not proven,
// and the next source may bring it.
func TestArrivalThatIsWrong(t *testing.T) {
	c := storetest.Random(t, 7, 3*blob.MinPieceLength)
	dir := t.TempDir()
	s := storetest.Open(t, store.Config{Dir: dir})
	b := create(t, s, c)
	defer b.Release()
	if err := b.AddLinks(0, c.Links); err != nil {
		t.Fatal(err)
	}
	wrong := slices.Clone(c.Piece(1))
	wrong[len(wrong)-1] ^= 1
	for what, piece := range map[string][]byte{
		"another byte": wrong, "too short": wrong[:len(wrong)-1], "too long": append(slices.Clone(c.Piece(1)), 0), "nothing": nil,
	} {
		a := b.Arrive(1)
		add(a, piece, 16<<10)
		wantError(t, what, a.Put(), blob.ErrMismatch)
	}
	if a := b.Arrive(3); a.Put() == nil {
		t.Error("a piece after the last was taken")
	}
	b.Arrive(0).Add(c.Piece(0)) // given up half way
	if have := b.Have(); have.Count() > 0 {
		t.Errorf("%d pieces are held", have.Count())
	}
	if n := written(t, dir); n > 0 {
		t.Errorf("%d bytes were written that nobody proved", n)
	}
	if err := b.Put(1, c.Piece(1)); err != nil {
		t.Error(err)
	}
}

// written is the size of all data below dir: room that is taken has none.
func written(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".part" {
			return err
		}
		info, err := os.Stat(path)
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestArrivalWhileLinksChange: what a piece is proven against is what is known when it
// is put: links that came, went or changed since it began neither let a wrong one in nor
// keep a right one out.
func TestArrivalWhileLinksChange(t *testing.T) {
	c, other := storetest.Random(t, 7, 3*blob.MinPieceLength), storetest.Random(t, 8, 3*blob.MinPieceLength)
	s := storetest.Open(t, store.Config{})
	b := create(t, s, c)
	defer b.Release()
	begin := func() *store.Arrival {
		a := b.Arrive(1)
		add(a, c.Piece(1), 16<<10)
		return a
	}
	a := begin()
	wantError(t, "no links", a.Put(), blob.ErrUnknownLink)
	a = begin()
	if err := b.AddLinks(0, other.Links); err != nil {
		t.Fatal(err)
	}
	wantError(t, "the links of another", a.Put(), blob.ErrMismatch)
	a = begin()
	if err := b.Reset(); err != nil {
		t.Fatal(err)
	}
	if err := b.AddLinks(0, c.Links); err != nil {
		t.Fatal(err)
	}
	if err := a.Put(); err != nil {
		t.Errorf("the right links came while the piece did: %v", err)
	}
	again := b.Arrive(1)
	again.Add([]byte("anything"))
	if err := again.Put(); err != nil {
		t.Errorf("a piece that is held already: %v", err)
	}
	if err := s.Remove(c.Digest); err != nil {
		t.Fatal(err)
	}
	if err := b.Arrive(0).Put(); !errors.Is(err, store.ErrRemoved) {
		t.Errorf("a blob that is gone: %v", err)
	}
}
