package store_test

import (
	"bytes"
	"io"
	"os"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// TestFileThatSomebodyElseWrote: a sealed blob whose file was written to is proven
// again by who uses it next: nobody gets a wrong byte, the pieces that did not suffer
// are served, and the rest is fetched. It makes no difference whether the seal is on
// the disk already.
func TestFileThatSomebodyElseWrote(t *testing.T) {
	for name, c := range map[string]struct {
		settled bool
		harm    func(path string)
		lost    int
	}{
		"a byte before the seal is on disk": {false, func(path string) { flip(t, path, pieceLength+5) }, 1},
		"a byte after it":                   {true, func(path string) { flip(t, path, pieceLength+5) }, 1},
		"cut short":                         {true, func(path string) { must(t, os.Truncate(path, pieceLength)) }, 2},
		"longer":                            {true, func(path string) { must(t, os.Truncate(path, 4*pieceLength)) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir, reg := t.TempDir(), prometheus.NewRegistry()
			var told []blob.Digest
			s := storetest.Open(t, store.Config{Dir: dir, Registerer: reg, OnDrop: func(d blob.Digest) { told = append(told, d) }})
			content := storetest.Random(t, 1, 3*pieceLength)
			b := create(t, s, content)
			defer b.Release()
			for i := range 3 {
				must(t, b.Extend(i, content.Piece(i)))
			}
			path := pathOf(dir, content.Digest, ".part")
			if c.settled {
				must(t, b.Seal())
				path = pathOf(dir, content.Digest, "")
			}
			used(t, s, content)
			if !b.Sealed() || len(told) > 0 {
				t.Fatal("a blob that is well lost its seal")
			}
			c.harm(path)
			used(t, s, content)
			if b.Sealed() || len(told) == 0 {
				t.Fatal("nobody noticed")
			}
			missing := 0
			for _, r := range b.Missing(content.Layout.All()) {
				missing += r.Count
				for i := r.First; i < r.End(); i++ {
					must(t, b.Put(i, content.Piece(i)))
				}
			}
			if got := gather(t, reg)["damselfly_cache_rotten_pieces_total"]; missing != c.lost || got != float64(c.lost) {
				t.Errorf("%d pieces were missing, %v counted; want %d", missing, got, c.lost)
			}
			must(t, b.Seal())
			used(t, s, content)
			if !b.Sealed() {
				t.Error("not whole again")
			}
			mustRead(t, b, content)
			f, err := b.File()
			must(t, err)
			defer f.Close()
			// http.ServeContent sends the size that the blob has.
			data, err := io.ReadAll(io.LimitReader(f, content.Size()))
			if err != nil || !bytes.Equal(data, content.Data) {
				t.Errorf("the file has other bytes, error %v", err)
			}
		})
	}
}

// TestDoubtOutlastsARestart: a store that ends before the pieces in doubt were
// proven does not trust them at the next start.
func TestDoubtOutlastsARestart(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Random(t, 1, 2*pieceLength)
	s := storetest.Open(t, store.Config{Dir: dir})
	storetest.Fill(t, s, c)
	flip(t, pathOf(dir, c.Digest, ""), 7)
	used(t, s, c)
	s.Kill()
	s = storetest.Open(t, store.Config{Dir: dir})
	b, ok := s.Get(c.Digest)
	if !ok || b.Sealed() {
		t.Fatal("trusted after a restart")
	}
	defer b.Release()
	if got := b.Missing(c.Layout.All()); len(got) != 1 || got[0] != (blob.Run{Count: 1}) {
		t.Errorf("missing %v", got)
	}
}

// TestDoubtEndsReaders: who reads a blob that falls in doubt gets what is still
// right of it, and an error instead of waiting for what nobody may fetch.
func TestDoubtEndsReaders(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Random(t, 1, 3*pieceLength)
	s := storetest.Open(t, store.Config{Dir: dir})
	storetest.Fill(t, s, c)
	b, _ := s.Get(c.Digest)
	r := b.Reader(t.Context(), 0, -1)
	b.Release()
	defer r.Close()
	flip(t, pathOf(dir, c.Digest, ""), pieceLength+7)
	used(t, s, c)
	got, err := io.ReadAll(r)
	wantError(t, "read", err, store.ErrDamaged)
	if !bytes.Equal(got, c.Data[:pieceLength]) {
		t.Errorf("read %d bytes, want the first piece", len(got))
	}
}

// used gets a blob, as a request for it does.
func used(t *testing.T, s *store.Store, c *storetest.Content) {
	t.Helper()
	b, ok := s.Get(c.Digest)
	if !ok {
		t.Fatal("not held")
	}
	b.Release()
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
