package store_test

import (
	"io"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// start returns a blob with all links and no piece.
func start(b *testing.B, s *store.Store, c *storetest.Content) *store.Blob {
	b.Helper()
	_ = s.Remove(c.Digest)
	bl := create(b, s, c)
	if err := bl.AddLinks(0, c.Links); err != nil {
		b.Fatal(err)
	}
	return bl
}

func benchmarkPut(b *testing.B, put func(bl *store.Blob, i int, piece []byte) error) {
	s := storetest.Open(b, store.Config{})
	c := storetest.Random(b, 1, 128*pieceLength)
	bl := start(b, s, c)
	b.SetBytes(pieceLength)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if err := put(bl, i, c.Piece(i)); err != nil {
			b.Fatal(err)
		}
		if i++; i == c.Layout.Pieces()-1 { // the last one would seal
			b.StopTimer()
			bl.Release()
			bl, i = start(b, s, c), 0
			b.StartTimer()
		}
	}
	bl.Release()
}

func BenchmarkPut(b *testing.B) { benchmarkPut(b, (*store.Blob).Put) }

func BenchmarkExtend(b *testing.B) { benchmarkPut(b, (*store.Blob).Extend) }

// BenchmarkPutHeld is a piece that came twice.
func BenchmarkPutHeld(b *testing.B) {
	s := storetest.Open(b, store.Config{})
	c := storetest.Random(b, 1, 2*pieceLength)
	bl := start(b, s, c)
	defer bl.Release()
	if err := bl.Put(0, c.Piece(0)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := bl.Put(0, c.Piece(0)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSmallBlob is a manifest's whole life: created, put, sealed on disk.
func BenchmarkSmallBlob(b *testing.B) {
	s := storetest.Open(b, store.Config{})
	c := storetest.Random(b, 1, 2000)
	b.ReportAllocs()
	for b.Loop() {
		storetest.Fill(b, s, c)
		if err := s.Remove(c.Digest); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReader(b *testing.B) {
	s := storetest.Open(b, store.Config{})
	c := storetest.Random(b, 1, 64*pieceLength)
	storetest.Fill(b, s, c)
	bl, _ := s.Get(c.Digest)
	defer bl.Release()
	b.SetBytes(c.Size())
	b.ReportAllocs()
	for b.Loop() {
		r := bl.Reader(b.Context(), 0, -1)
		if _, err := r.WriteTo(io.Discard); err != nil {
			b.Fatal(err)
		}
		_ = r.Close()
	}
}

func BenchmarkReadPiece(b *testing.B) {
	s := storetest.Open(b, store.Config{})
	c := storetest.Random(b, 1, 4*pieceLength)
	storetest.Fill(b, s, c)
	bl, _ := s.Get(c.Digest)
	defer bl.Release()
	buf := make([]byte, pieceLength)
	b.SetBytes(pieceLength)
	b.ReportAllocs()
	for b.Loop() {
		if err := bl.ReadPiece(1, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen opens a store of a thousand blobs.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s := storetest.Open(b, store.Config{Dir: dir})
	for i := range 1000 {
		storetest.Fill(b, s, storetest.Random(b, uint64(i), 100))
	}
	closeStore(b, s)
	b.ReportAllocs()
	for b.Loop() {
		s, err := store.Open(store.Config{Dir: dir}, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		closeStore(b, s)
		b.StartTimer()
	}
}
