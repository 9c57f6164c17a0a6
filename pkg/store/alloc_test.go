package store_test

import (
	"io"
	"runtime"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

const longPiece = 4 << 20

// long is a blob whose pieces are of 4 MiB and all the same, each proven by links that
// lead from nothing to nothing: what hashing them costs is as ever.
type long struct {
	b     *store.Blob
	piece []byte
	next  int
}

func newLong(tb testing.TB) *long {
	tb.Helper()
	s, err := store.OpenTapped(store.Config{Dir: tb.TempDir()}, nil, func(op store.Operation, _ *[]byte, _ int64, do func() error) error {
		if op.Kind == "allocate" {
			return nil // the disk of a test need not have so much
		}
		return do()
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	c := storetest.Random(tb, 1, longPiece)
	b, err := s.Create(c.Digest, 1024*longPiece)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(b.Release)
	s.Untap() // a tap allocates
	if b.Layout().PieceLength() != longPiece {
		tb.Fatalf("pieces of %d bytes", b.Layout().PieceLength())
	}
	return &long{b: b, piece: c.Data}
}

// link makes it possible to Put the next piece, and returns its number.
func (l *long) link(tb testing.TB) int {
	tb.Helper()
	i := l.next
	l.next += 2 // the link after one piece is not that before the next
	d := l.b.Digest()
	links := make([]byte, 0, 2*d.LinkSize())
	links = append(links, d.FirstLink()...)
	next, err := blob.Advance(d, l.b.Layout(), i, links, l.piece)
	if err == nil {
		err = l.b.AddLinks(i, append(links, next...))
	}
	if err != nil {
		tb.Fatal(err)
	}
	return i
}

// TestAllocationsOfAPiece: a piece of 4 MiB costs either end of an exchange at most 50
// allocations in all, and none as long as itself. Of these the store may have ten.
func TestAllocationsOfAPiece(t *testing.T) {
	const most, mostBytes = 10, 64 << 10
	l := newLong(t)
	buf := make([]byte, longPiece)
	read := func() {
		if err := l.b.ReadPiece(0, buf); err != nil {
			t.Fatal(err)
		}
	}
	copyOut := func() {
		r := l.b.Reader(t.Context(), 0, longPiece)
		defer r.Close()
		if n, err := r.WriteTo(io.Discard); n != longPiece || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	pieces := make([]int, 22)
	for i := range pieces {
		pieces[i] = l.link(t)
	}
	put := func() {
		if err := l.b.Put(pieces[0], l.piece); err != nil {
			t.Fatal(err)
		}
		pieces = pieces[1:]
	}
	for _, test := range []struct {
		name string
		do   func()
	}{{"Put", put}, {"ReadPiece", read}, {"Reader", copyOut}} {
		const runs = 20
		var before, after runtime.MemStats
		test.do()
		runtime.ReadMemStats(&before)
		for range runs {
			test.do()
		}
		runtime.ReadMemStats(&after)
		count, bytes := (after.Mallocs-before.Mallocs)/runs, (after.TotalAlloc-before.TotalAlloc)/runs
		t.Logf("%s: %d allocations of %d bytes", test.name, count, bytes)
		// The race detector has pools throw away a part of what is put back.
		if count > most || bytes > mostBytes+raceCopies {
			t.Errorf("%s of a piece does %d allocations of %d bytes in all, more than %d and %d", test.name, count, bytes, most, mostBytes)
		}
	}
}

// raceCopies is a buffer of a Reader: less than a tenth of a piece.
const raceCopies = 256 << 10

func BenchmarkPut4MiB(b *testing.B) {
	l := newLong(b)
	i := l.link(b)
	b.SetBytes(longPiece)
	b.ReportAllocs()
	for b.Loop() {
		if err := l.b.Put(i, l.piece); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if l.next >= l.b.Layout().Pieces()-1 {
			if err := l.b.Reset(); err != nil {
				b.Fatal(err)
			}
			l.next = 2
		}
		i = l.link(b)
		b.StartTimer()
	}
}

func BenchmarkReadPiece4MiB(b *testing.B) {
	l := newLong(b)
	buf := make([]byte, longPiece)
	if err := l.b.Put(l.link(b), l.piece); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(longPiece)
	b.ReportAllocs()
	for b.Loop() {
		if err := l.b.ReadPiece(0, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAddLinks adds the links of a run of 64 pieces, as a lease brings them.
func BenchmarkAddLinks(b *testing.B) {
	l := newLong(b)
	links := make([]byte, 64*l.b.Digest().LinkSize())
	first := 1
	b.ReportAllocs()
	for b.Loop() {
		if err := l.b.AddLinks(first, links); err != nil {
			b.Fatal(err)
		}
		if first += 64; first+64 > l.b.Layout().Pieces() {
			b.StopTimer()
			if err := l.b.Reset(); err != nil {
				b.Fatal(err)
			}
			first = 1
			b.StartTimer()
		}
	}
}
