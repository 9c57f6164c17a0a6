package store_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// reopen opens the directory of a store that was closed or killed.
func reopen(tb testing.TB, dir string) *store.Store {
	tb.Helper()
	return storetest.Open(tb, store.Config{Dir: dir})
}

func closeStore(tb testing.TB, s *store.Store) {
	tb.Helper()
	if err := s.Close(); err != nil {
		tb.Fatal(err)
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	s := storetest.Open(t, store.Config{Dir: dir})
	whole, part, empty := storetest.Random512(t, 1, 2*pieceLength+5), storetest.Random(t, 2, 5*pieceLength), storetest.Random(t, 3, 0)
	storetest.Fill(t, s, whole)
	storetest.Fill(t, s, empty)
	if err := s.Pin(whole.Digest); err != nil {
		t.Fatal(err)
	}
	b := create(t, s, part)
	if err := b.AddLinks(0, part.Links); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 1, 3, 4} {
		if err := b.Put(i, part.Piece(i)); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)

	s = reopen(t, dir)
	infos := s.Blobs()
	for _, i := range infos {
		switch i.Digest {
		case whole.Digest, empty.Digest:
			if !i.Sealed || i.Pinned != (i.Digest == whole.Digest) || i.Held != i.Pieces {
				t.Errorf("sealed blob came back as %+v", i)
			}
		default:
			if i.Sealed || i.Held != 0 || i.Pieces != 5 {
				t.Errorf("partial blob came back as %+v: nothing of it is verified yet", i)
			}
		}
	}
	if len(infos) != 3 {
		t.Errorf("%d blobs came back", len(infos))
	}
	b, ok := s.Get(part.Digest)
	if !ok {
		t.Fatal("partial blob is lost")
	}
	if got := b.Missing(part.Layout.All()); !slices.Equal(got, []blob.Run{{First: 2, Count: 1}}) {
		t.Errorf("missing %v", got)
	}
	if b.Front() != 2 {
		t.Errorf("front %d", b.Front())
	}
	b.Release()
	for _, c := range []*storetest.Content{whole, empty} {
		b, _ := s.Get(c.Digest)
		mustRead(t, b, c)
		if _, links := b.Links(0, 100); !bytes.Equal(links, c.Links) {
			t.Error("links are lost")
		}
		b.Release()
	}
}

// TestPutBesideClaims: what is not checked yet when a blob is put away again is
// not lost.
func TestPutBesideClaims(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Random(t, 1, 4*pieceLength)
	s := storetest.Open(t, store.Config{Dir: dir})
	b := create(t, s, c)
	if err := b.AddLinks(0, c.Links); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 3, 2, 1} {
		if err := b.Put(i, c.Piece(i)); err != nil {
			t.Fatal(err)
		}
		b.Release()
		closeStore(t, s)
		s = reopen(t, dir)
		b, _ = s.Get(c.Digest)
	}
	defer b.Release()
	if got := b.Missing(c.Layout.All()); got != nil || !b.Sealed() {
		t.Errorf("missing %v after the last restart", got)
	}
	mustRead(t, b, c)
}

// TestClaimsAreCheckedOnDemand: a reader after a restart gets what is there
// without anybody fetching, and a piece that was torn is never served.
func TestClaimsAreCheckedOnDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := storetest.Open(t, store.Config{Dir: dir})
		c := storetest.Random(t, 1, 4*pieceLength)
		b := create(t, s, c)
		_ = b.AddLinks(0, c.Links)
		for _, i := range []int{0, 1, 3} {
			if err := b.Put(i, c.Piece(i)); err != nil {
				t.Fatal(err)
			}
		}
		closeStore(t, s)
		flip(t, pathOf(dir, c.Digest, ".part"), pieceLength+77)

		s = reopen(t, dir)
		b, _ = s.Get(c.Digest)
		defer b.Release()
		buf := make([]byte, pieceLength)
		if err := b.ReadPiece(0, buf); err != nil || !bytes.Equal(buf, c.Piece(0)) {
			t.Errorf("good piece: %v", err)
		}
		wantError(t, "torn piece", b.ReadPiece(1, buf), store.ErrMissing)
		done := make(chan []byte)
		go func() {
			got, err := storetest.Read(t.Context(), b)
			if err != nil {
				t.Error(err)
			}
			done <- got
		}()
		synctest.Wait()
		for _, i := range []int{1, 2} {
			if err := b.Put(i, c.Piece(i)); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(<-done, c.Data) {
			t.Error("reads other bytes")
		}
	})
}

// TestLastPieceAfterARestart: who waits for the last piece checks the others, for
// it is them that the seal waits for.
func TestLastPieceAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := storetest.Random(t, 1, 4*pieceLength)
		s := storetest.Open(t, store.Config{Dir: dir})
		b := create(t, s, c)
		_ = b.AddLinks(0, c.Links)
		for _, i := range []int{0, 2, 3} {
			if err := b.Put(i, c.Piece(i)); err != nil {
				t.Fatal(err)
			}
		}
		closeStore(t, s)

		s = reopen(t, dir)
		b, _ = s.Get(c.Digest)
		defer b.Release()
		if err := b.Put(1, c.Piece(1)); err != nil {
			t.Fatal(err)
		}
		r := b.Reader(t.Context(), 3*pieceLength, -1)
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, c.Piece(3)) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
	})
}

// TestWholeButUnmarked: killed between the last piece and the seal on disk.
func TestWholeButUnmarked(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Random(t, 1, 3*pieceLength)
	s := storetest.Open(t, store.Config{Dir: dir})
	storetest.Fill(t, s, c)
	closeStore(t, s)
	if err := os.Rename(pathOf(dir, c.Digest, ""), pathOf(dir, c.Digest, ".part")); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, dir)
	b, _ := s.Get(c.Digest)
	if b.Sealed() {
		t.Error("trusted without the seal")
	}
	if err := b.Verify(t.Context()); err != nil || !b.Sealed() {
		t.Errorf("not sealed after every piece was checked: %v", err)
	}
	mustRead(t, b, c)
	b.Release()
	if _, err := os.Stat(pathOf(dir, c.Digest, "")); err != nil {
		t.Error(err)
	}
}

func TestUselessFiles(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(dir string, c *storetest.Content)
		held  bool // the blob is held afterwards
		left  bool // its files are left alone
	}{
		"sidecar lost":        {func(dir string, c *storetest.Content) { _ = os.Remove(pathOf(dir, c.Digest, ".meta")) }, false, false},
		"sidecar empty":       {func(dir string, c *storetest.Content) { _ = os.Truncate(pathOf(dir, c.Digest, ".meta"), 0) }, false, false},
		"sidecar header":      {func(dir string, c *storetest.Content) { flip(t, pathOf(dir, c.Digest, ".meta"), 9) }, false, false},
		"sidecar of the next": {func(dir string, c *storetest.Content) { setVersion(t, pathOf(dir, c.Digest, ".meta"), 2) }, false, true},
		"data lost":           {func(dir string, c *storetest.Content) { _ = os.Remove(pathOf(dir, c.Digest, "")) }, false, false},
		"data cut":            {func(dir string, c *storetest.Content) { _ = os.Truncate(pathOf(dir, c.Digest, ""), 1000) }, false, false},
		"temporary sidecar": {func(dir string, c *storetest.Content) {
			_ = os.WriteFile(pathOf(dir, c.Digest, ".meta.tmp"), []byte("x"), 0o600)
		}, true, false},
		"partial data as well": {func(dir string, c *storetest.Content) {
			_ = os.WriteFile(pathOf(dir, c.Digest, ".part"), []byte("x"), 0o600)
		}, true, false},
		"foreign files": {func(dir string, c *storetest.Content) {
			_ = os.WriteFile(pathOf(dir, c.Digest, ".txt"), []byte("x"), 0o600)
			_ = os.WriteFile(filepath.Join(dir, "v1", "sha256", "readme"), []byte("x"), 0o600)
			_ = os.MkdirAll(filepath.Join(dir, "v1", "sha256", "zz", "deep"), 0o700)
			_ = os.MkdirAll(filepath.Join(dir, "v2", "sha256"), 0o700)
		}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := storetest.Random(t, 1, 2*pieceLength)
			s := storetest.Open(t, store.Config{Dir: dir})
			storetest.Fill(t, s, c)
			closeStore(t, s)
			test.spoil(dir, c)
			s = reopen(t, dir)
			b, held := s.Get(c.Digest)
			if held != test.held {
				t.Errorf("held: %v", held)
			}
			if held {
				b.Release()
			}
			left, _ := filepath.Glob(pathOf(dir, c.Digest, "*"))
			if !held && len(left) > 0 != test.left {
				t.Errorf("left: %v", left)
			}
			storetest.Fill(t, s, c)
			b, _ = s.Get(c.Digest)
			defer b.Release()
			mustRead(t, b, c)
		})
	}
}

// TestSidecarBodyCorrupt: the body is read when a blob is first used.
func TestSidecarBodyCorrupt(t *testing.T) {
	dir := t.TempDir()
	part, whole := storetest.Random(t, 1, 4*pieceLength), storetest.Random(t, 2, 4*pieceLength)
	s := storetest.Open(t, store.Config{Dir: dir})
	storetest.Fill(t, s, whole)
	b := create(t, s, part)
	if err := b.Extend(0, part.Piece(0)); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	flip(t, pathOf(dir, part.Digest, ".meta"), 60)
	flip(t, pathOf(dir, whole.Digest, ".meta"), 100)
	var told []blob.Digest
	s = storetest.Open(t, store.Config{Dir: dir, OnDrop: func(d blob.Digest) { told = append(told, d) }})
	if _, ok := s.Get(part.Digest); ok {
		t.Error("partial blob without a sidecar is held")
	}
	b, ok := s.Get(whole.Digest)
	if !ok {
		t.Fatal("sealed blob is lost though its data is whole")
	}
	mustRead(t, b, whole)
	if _, links := b.Links(0, 4); len(links) > 0 {
		t.Error("links out of a corrupt sidecar")
	}
	b.Release()
	if !slices.Equal(told, []blob.Digest{part.Digest, whole.Digest}) {
		t.Errorf("told of %v", told)
	}
	storetest.Fill(t, s, part)
	storetest.Fill(t, s, whole)
}

// TestKill: kill -9 costs at most a second of pieces, and what was sealed stays.
func TestKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := storetest.Open(t, store.Config{Dir: dir})
		whole, part := storetest.Random(t, 1, 2*pieceLength), storetest.Random(t, 2, 5*pieceLength)
		storetest.Fill(t, s, whole)
		b := create(t, s, part)
		for i := range 4 {
			time.Sleep(600 * time.Millisecond)
			if err := b.Extend(i, part.Piece(i)); err != nil {
				t.Fatal(err)
			}
		}
		s.Kill()
		s = reopen(t, dir)
		b, ok := s.Get(whole.Digest)
		if !ok || !b.Sealed() {
			t.Fatal("sealed blob is lost")
		}
		mustRead(t, b, whole)
		b.Release()
		b, ok = s.Get(part.Digest)
		if !ok {
			t.Fatal("partial blob is lost")
		}
		defer b.Release()
		if front := b.Front(); front < 3 {
			t.Errorf("%d of 4 pieces are left", front)
		}
		storetest.Fill(t, s, part)
	})
}

func TestReopenKeepsOrderOfUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := storetest.Open(t, store.Config{Dir: dir})
		var c []*storetest.Content
		for i := range 3 {
			time.Sleep(time.Minute)
			c = append(c, storetest.Random(t, uint64(i), 100))
			storetest.Fill(t, s, c[i])
		}
		time.Sleep(time.Minute)
		b, _ := s.Get(c[0].Digest)
		b.Release()
		closeStore(t, s)
		s = storetest.Open(t, store.Config{Dir: dir, MaxBytes: 299}) // a lower limit than before
		if got := holds(s, c...); got != "0 2" {
			t.Errorf("holds %s", got)
		}
	})
}

func TestDiskLosesAPiece(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		var told []blob.Digest
		s := storetest.Open(t, store.Config{Dir: dir, OnDrop: func(d blob.Digest) { told = append(told, d) }})
		c := storetest.Random(t, 1, 3*pieceLength)
		storetest.Fill(t, s, c)
		b, _ := s.Get(c.Digest)
		waiting := b.Reader(t.Context(), 0, -1)
		defer waiting.Close()
		if err := os.Truncate(pathOf(dir, c.Digest, ""), 2*pieceLength+5); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, pieceLength)
		wantError(t, "read", b.ReadPiece(2, buf), store.ErrDamaged)
		wantError(t, "read again", b.ReadPiece(2, buf), store.ErrMissing)
		if b.Sealed() || !slices.Equal(told, []blob.Digest{c.Digest}) {
			t.Error("still sealed, or nobody was told")
		}
		got, err := io.ReadAll(waiting)
		wantError(t, "reader that nobody fetches for", err, store.ErrDamaged)
		if !bytes.Equal(got, c.Data[:2*pieceLength]) {
			t.Errorf("that reader got %d bytes, want those that are not lost", len(got))
		}
		b.Release()
		s.Kill()

		s = reopen(t, dir) // it must not come back as sealed
		b, _ = s.Get(c.Digest)
		defer b.Release()
		if got := b.Missing(c.Layout.All()); !slices.Equal(got, []blob.Run{{First: 2, Count: 1}}) || b.Sealed() {
			t.Errorf("missing %v, sealed %v", got, b.Sealed())
		}
		storetest.Fill(t, s, c)
		mustRead(t, b, c)
	})
}

func TestDataFileVanishes(t *testing.T) {
	dir := t.TempDir()
	s := storetest.Open(t, store.Config{Dir: dir})
	c, other := storetest.Random(t, 1, 2*pieceLength), storetest.Random(t, 2, pieceLength)
	storetest.Fill(t, s, c)
	storetest.Fill(t, s, other)
	for _, d := range []blob.Digest{c.Digest, other.Digest} {
		if err := os.Remove(pathOf(dir, d, "")); err != nil {
			t.Fatal(err)
		}
	}
	b, _ := s.Get(c.Digest)
	_, err := b.File()
	wantError(t, "File", err, store.ErrDamaged)
	b.Release()
	b, _ = s.Get(other.Digest)
	_, err = storetest.Read(t.Context(), b)
	wantError(t, "read", err, store.ErrDamaged)
	b.Release()
	storetest.Fill(t, s, c)
	storetest.Fill(t, s, other)
}

func flip(tb testing.TB, name string, at int64) {
	tb.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	one := make([]byte, 1)
	_, err1 := f.ReadAt(one, at)
	one[0] ^= 0x40
	_, err2 := f.WriteAt(one, at)
	if err1 != nil || err2 != nil {
		tb.Fatal(err1, err2)
	}
}

func setVersion(tb testing.TB, name string, version uint16) {
	tb.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		tb.Fatal(err)
	}
	binary.LittleEndian.PutUint16(data[4:], version)
	if err := os.WriteFile(name, data, 0o600); err != nil {
		tb.Fatal(err)
	}
}
