package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

const pieceLength = blob.MinPieceLength

func create(tb testing.TB, s *store.Store, c *storetest.Content) *store.Blob {
	tb.Helper()
	b, err := s.Create(c.Digest, c.Size())
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func pathOf(dir string, d blob.Digest, suffix string) string {
	return filepath.Join(dir, "v1", d.Algorithm(), d.Hex()[:2], d.Hex()+suffix)
}

func mustRead(tb testing.TB, b *store.Blob, c *storetest.Content) {
	tb.Helper()
	got, err := storetest.Read(context.Background(), b)
	if err != nil || !bytes.Equal(got, c.Data) {
		tb.Fatalf("read %d bytes of %d, error %v", len(got), len(c.Data), err)
	}
}

func wantError(tb testing.TB, what string, err, want error) {
	tb.Helper()
	if !errors.Is(err, want) {
		tb.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func TestWholeBlobInEveryOrder(t *testing.T) {
	for _, c := range []*storetest.Content{
		storetest.Random(t, 1, 1),
		storetest.Random(t, 2, pieceLength),
		storetest.Random(t, 3, 3*pieceLength+17),
		storetest.Random512(t, 4, 2*pieceLength+1),
	} {
		dir := t.TempDir()
		s := storetest.Open(t, store.Config{Dir: dir})
		b := create(t, s, c)
		if err := b.AddLinks(0, c.Links); err != nil {
			t.Fatal(err)
		}
		for i := c.Layout.Pieces() - 1; i >= 0; i-- {
			if b.Sealed() {
				t.Fatal("sealed before the last piece came")
			}
			if err := b.Put(i, c.Piece(i)); err != nil {
				t.Fatal(err)
			}
			wantError(t, "put again", b.Put(i, c.Piece(i)), nil)
		}
		if !b.Sealed() || !b.Have().Full() || b.Missing(c.Layout.All()) != nil || b.Front() != c.Layout.Pieces() {
			t.Fatal("not whole after every piece came")
		}
		mustRead(t, b, c)
		f, err := b.File()
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(f)
		_ = f.Close()
		if !bytes.Equal(got, c.Data) {
			t.Error("File reads other bytes")
		}
		b.Release()
		if onDisk, _ := os.ReadFile(pathOf(dir, c.Digest, "")); !c.Digest.Matches(onDisk) {
			t.Error("the file with the blob's plain name does not hash to it")
		}
	}
}

func TestEmptyBlob(t *testing.T) {
	dir := t.TempDir()
	s := storetest.Open(t, store.Config{Dir: dir})
	b := create(t, s, storetest.Random(t, 0, 0))
	defer b.Release()
	if !b.Sealed() || b.Wait(t.Context(), 0) != nil {
		t.Error("the empty blob is not sealed at once")
	}
	if got, err := storetest.Read(t.Context(), b); err != nil || len(got) != 0 {
		t.Errorf("read %q, %v", got, err)
	}
	if f, err := b.File(); err != nil {
		t.Error(err)
	} else {
		_ = f.Close()
	}
	_, err := s.Create(blob.FromBytes([]byte("x")), 0)
	wantError(t, "empty blob with the digest of something", err, store.ErrBadDigest)
}

func TestPutRefusesWhatItCannotProve(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c, other := storetest.Random(t, 1, 3*pieceLength), storetest.Random(t, 2, 3*pieceLength)
	b := create(t, s, c)
	defer b.Release()

	wantError(t, "put without links", b.Put(1, c.Piece(1)), blob.ErrUnknownLink)
	wantError(t, "put with its own link only", b.Put(0, c.Piece(0)), blob.ErrUnknownLink)
	wantError(t, "extend past the chain", b.Extend(1, c.Piece(1)), blob.ErrUnknownLink)
	wantError(t, "extend", b.Extend(0, c.Piece(0)), nil)
	if err := b.AddLinks(1, c.Links[32:]); err != nil {
		t.Fatal(err)
	}
	wantError(t, "other links", b.AddLinks(1, other.Links[32:]), blob.ErrConflict)
	wantError(t, "other bytes", b.Put(1, other.Piece(1)), blob.ErrMismatch)
	wantError(t, "bytes of another piece", b.Put(1, c.Piece(2)), blob.ErrMismatch)
	wantError(t, "other bytes from the origin", b.Extend(1, other.Piece(1)), blob.ErrMismatch)
	wantError(t, "short piece", b.Put(1, c.Piece(1)[:100]), blob.ErrMismatch)
	wantError(t, "wrong last piece", b.Put(2, other.Piece(2)), blob.ErrMismatch)
	for _, i := range []int{-1, 3, 1 << 40} {
		if b.Put(i, c.Piece(0)) == nil {
			t.Errorf("piece %d was taken", i)
		}
	}
	if h := b.Have(); h.Count() != 1 || !h.Has(0) {
		t.Errorf("holds %v", h.Runs())
	}
}

func TestBadDigestAndReset(t *testing.T) {
	var told []blob.Digest
	s := storetest.Open(t, store.Config{OnDrop: func(d blob.Digest) { told = append(told, d) }})
	c, evil := storetest.Random(t, 1, 3*pieceLength), storetest.Random(t, 2, 3*pieceLength)
	b := create(t, s, c)
	defer b.Release()
	for i := range 2 {
		if err := b.Extend(i, evil.Piece(i)); err != nil {
			t.Fatal(err)
		}
	}
	err := b.Extend(2, evil.Piece(2))
	wantError(t, "last piece of wrong bytes", err, store.ErrBadDigest)
	wantError(t, "last piece of wrong bytes", err, blob.ErrMismatch)
	wantError(t, "right last piece after wrong ones", b.Extend(2, c.Piece(2)), store.ErrBadDigest)
	if b.Sealed() || b.Have().Has(2) {
		t.Fatal("a wrong blob was sealed")
	}
	if err := b.Reset(); err != nil {
		t.Fatal(err)
	}
	if b.Front() != 0 || b.Have().Count() != 0 || !slices.Equal(told, []blob.Digest{c.Digest}) {
		t.Fatalf("after Reset: front %d, holds %v, told %v", b.Front(), b.Have().Runs(), told)
	}
	wantError(t, "put after Reset", b.Put(1, c.Piece(1)), blob.ErrUnknownLink)
	storetest.Fill(t, s, c)
	mustRead(t, b, c)
	wantError(t, "Reset of a sealed blob", b.Reset(), nil)
	mustRead(t, b, c)
}

// TestLastPieceWaitsForTheSeal holds the promise that nobody completes a blob
// that is not proven.
func TestLastPieceWaitsForTheSeal(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c := storetest.Random(t, 1, 3*pieceLength)
	b := create(t, s, c)
	defer b.Release()
	if err := b.AddLinks(0, c.Links); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{2, 0} {
		if err := b.Put(i, c.Piece(i)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, pieceLength)
	wantError(t, "missing piece", b.ReadPiece(1, buf), store.ErrMissing)
	wantError(t, "last piece, for another node", b.ReadPiece(2, buf), nil)
	if !bytes.Equal(buf, c.Piece(2)) || !b.Have().Has(2) || b.Have().Has(1) {
		t.Error("serves the wrong pieces")
	}
	ended, end := context.WithCancel(t.Context())
	end()
	wantError(t, "last piece, for a client", b.Wait(ended, c.Layout.Offset(2)), context.Canceled)
	if got := b.Missing(c.Layout.All()); !slices.Equal(got, []blob.Run{{First: 1, Count: 1}}) {
		t.Errorf("missing %v, want piece 1 only: the last is here, if not for clients", got)
	}
	_, err := b.File()
	wantError(t, "file of an unproven blob", err, store.ErrMissing)
	if err := b.Put(1, c.Piece(1)); err != nil {
		t.Fatal(err)
	}
	wantError(t, "last piece of a sealed blob", b.ReadPiece(2, buf), nil)
	if !bytes.Equal(buf, c.Piece(2)) {
		t.Error("last piece reads other bytes")
	}
}

func TestReadAt(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c := storetest.Random(t, 1, 2*pieceLength+100)
	storetest.Fill(t, s, c)
	b, _ := s.Get(c.Digest)
	defer b.Release()
	got, err := io.ReadAll(io.NewSectionReader(b, pieceLength-10, pieceLength+110))
	if err != nil || !bytes.Equal(got, c.Data[pieceLength-10:]) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	buf := make([]byte, 200)
	if n, err := b.ReadAt(buf, c.Size()-100); n != 100 || err != io.EOF {
		t.Errorf("read past the end: %d, %v", n, err)
	}
	if n, err := b.ReadAt(buf, c.Size()); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	if _, err := b.ReadAt(buf, -1); err == nil || err == io.EOF {
		t.Errorf("read at -1: %v", err)
	}
	if b.ReadPiece(0, buf) == nil || b.ReadPiece(3, buf) == nil || b.ReadPiece(-1, nil) == nil {
		t.Error("ReadPiece took a wrong piece or buffer")
	}
}

func TestLinks(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c := storetest.Random(t, 1, 5*pieceLength)
	b := create(t, s, c)
	defer b.Release()
	if err := b.AddLinks(2, c.Links[2*32:4*32]); err != nil {
		t.Fatal(err)
	}
	const most = int(^uint(0) >> 1)
	for _, q := range []struct{ first, count, wantFirst, want int }{
		{0, 5, 0, 1}, {1, 5, 2, 2}, {1, 1, 1, 0}, {1, 2, 2, 1}, {3, most, 3, 1}, {4, 1, 4, 0}, {5, 1, 5, 0}, {-1, 2, -1, 0}, {0, 0, 0, 0}, {0, -1, 0, 0},
	} {
		first, links := b.Links(q.first, q.count)
		if first != q.wantFirst || len(links) != q.want*32 {
			t.Errorf("Links(%d, %d) = %d, %d links; want %d, %d", q.first, q.count, first, len(links)/32, q.wantFirst, q.want)
		} else if len(links) > 0 && !bytes.Equal(links, c.Links[first*32:][:len(links)]) {
			t.Errorf("Links(%d, %d) are others", q.first, q.count)
		}
	}
}

func TestSecondStoreIsLockedOut(t *testing.T) {
	dir := t.TempDir()
	s := storetest.Open(t, store.Config{Dir: dir})
	_, err := store.Open(store.Config{Dir: dir}, nil)
	wantError(t, "second store", err, store.ErrLocked)
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %q does not name the directory", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	storetest.Open(t, store.Config{Dir: dir})
}

func TestConfigValidate(t *testing.T) {
	for _, cfg := range []store.Config{{}, {Dir: "x", MaxBytes: -1}} {
		if _, err := store.Open(cfg, nil); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

func TestClosedStore(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c := storetest.Random(t, 1, 2*pieceLength)
	b := create(t, s, c)
	r := b.Reader(t.Context(), 0, -1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := r.Read(make([]byte, 1))
	wantError(t, "read", err, store.ErrClosed)
	wantError(t, "put", b.Extend(0, c.Piece(0)), store.ErrClosed)
	wantError(t, "reset", b.Reset(), store.ErrClosed)
	wantError(t, "links", b.AddLinks(0, nil), store.ErrClosed)
	_, err = s.Create(c.Digest, c.Size())
	wantError(t, "create", err, store.ErrClosed)
	wantError(t, "remove", s.Remove(c.Digest), store.ErrClosed)
	if _, ok := s.Get(c.Digest); ok {
		t.Error("a closed store has blobs")
	}
	_ = r.Close()
	b.Release()
	wantError(t, "close again", s.Close(), nil)
}

func TestCreateWithAnotherSize(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c := storetest.Random(t, 1, pieceLength+5)
	b, err := s.Create(c.Digest, 77)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Create(c.Digest, c.Size())
	wantError(t, "another size of a blob in use", err, store.ErrSize)
	b.Release()
	storetest.Fill(t, s, c) // nobody uses it and nothing proves it: the size may be right this time
	_, err = s.Create(c.Digest, 77)
	wantError(t, "another size of a sealed blob", err, store.ErrSize)
	for _, size := range []int64{-1, blob.MaxSize + 1} {
		if _, err := s.Create(c.Digest, size); err == nil {
			t.Errorf("size %d was taken", size)
		}
	}
	for _, d := range []blob.Digest{"", "sha256:..", "sha256:../../../../../../../../../../../../../../../etc/passwd", "md5:00"} {
		if _, err := s.Create(d, 1); err == nil {
			t.Errorf("digest %q was taken", d)
		}
	}
}

func TestRemoveEndsUsers(t *testing.T) {
	dir := t.TempDir()
	var told []blob.Digest
	s := storetest.Open(t, store.Config{Dir: dir, OnDrop: func(d blob.Digest) { told = append(told, d) }})
	c := storetest.Random(t, 1, 2*pieceLength)
	b := create(t, s, c)
	r := b.Reader(t.Context(), 0, -1)
	if err := b.Extend(0, c.Piece(0)); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(c.Digest); err != nil {
		t.Fatal(err)
	}
	_, err := r.Read(make([]byte, 10))
	wantError(t, "read", err, store.ErrRemoved)
	wantError(t, "put", b.Extend(1, c.Piece(1)), store.ErrRemoved)
	if _, ok := s.Get(c.Digest); ok || !slices.Equal(told, []blob.Digest{c.Digest}) || s.Reserved() != 0 {
		t.Errorf("still held, or told %v, or %d bytes reserved", told, s.Reserved())
	}
	if left, _ := filepath.Glob(pathOf(dir, c.Digest, "*")); len(left) > 0 {
		t.Errorf("files left: %v", left)
	}
	storetest.Fill(t, s, c) // a new blob under the name, while the old one is in use
	_ = r.Close()
	b.Release()
	b, _ = s.Get(c.Digest)
	mustRead(t, b, c)
	b.Release()
	wantError(t, "remove", s.Remove(c.Digest), nil)
	wantError(t, "remove what is gone", s.Remove(c.Digest), store.ErrNotHeld)
	if left, _ := filepath.Glob(pathOf(dir, c.Digest, "*")); len(left) > 0 {
		t.Errorf("files left: %v", left)
	}
}

func TestIdleBlobsKeepNothingInMemory(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c := storetest.Random(t, 1, 3*pieceLength)
	b := create(t, s, c)
	if err := b.Extend(0, c.Piece(0)); err != nil {
		t.Fatal(err)
	}
	b.Release()
	if chain, file := b.InMemory(); chain || file {
		t.Errorf("partial blob that nobody uses: chain in memory %v, file open %v", chain, file)
	}
	storetest.Fill(t, s, c)
	if chain, file := b.InMemory(); chain || file {
		t.Errorf("sealed blob that nobody uses: chain in memory %v, file open %v", chain, file)
	}
	b, _ = s.Get(c.Digest)
	defer b.Release()
	if _, links := b.Links(0, 3); !bytes.Equal(links, c.Links) {
		t.Error("links of a sealed blob are lost")
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := storetest.Open(t, store.Config{MaxBytes: 1000, Registerer: reg})
	storetest.Fill(t, s, storetest.Random(t, 1, 600))
	storetest.Fill(t, s, storetest.Random(t, 2, 700))
	want := map[string]float64{
		"damselfly_cache_bytes": 700, "damselfly_cache_limit_bytes": 1000,
		"damselfly_cache_blobs": 1, "damselfly_cache_refused_total": 0, "damselfly_cache_rotten_pieces_total": 0,
		"damselfly_cache_evictions_total limit": 1, "damselfly_cache_evictions_total full": 0, "damselfly_cache_evictions_total damaged": 0,
	}
	got := gather(t, reg)
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%s is %v, want %v", name, got[name], n)
		}
	}
	if _, err := store.Open(store.Config{Dir: t.TempDir(), Registerer: reg}, nil); err == nil {
		t.Error("two stores share one set of metrics")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	storetest.Open(t, store.Config{Registerer: reg})
}

// gather reads the metrics, by name and value of the label.
func gather(tb testing.TB, reg *prometheus.Registry) map[string]float64 {
	tb.Helper()
	families, err := reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return got
}
