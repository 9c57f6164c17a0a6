package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

func noPace(context.Context, int64) error { return nil }

// runtimeFile puts bytes where a runtime would, read-only.
func runtimeFile(tb testing.TB, dir string, data []byte) string {
	tb.Helper()
	name := filepath.Join(dir, "runtime")
	if err := os.WriteFile(name, data, 0o400); err != nil {
		tb.Fatal(err)
	}
	return name
}

// stat is what the file system says of a file.
func stat(tb testing.TB, name string) *syscall.Stat_t {
	tb.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(name, &st); err != nil {
		tb.Fatal(err)
	}
	return &st
}

// diskUsed is what all files below dir take, each counted once.
func diskUsed(tb testing.TB, dir string) (bytes int64) {
	tb.Helper()
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		st := stat(tb, name)
		if !seen[st.Ino] {
			seen[st.Ino] = true
			bytes += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return bytes
}

// checkUntouched checks that the runtime's file is as the runtime left it.
func checkUntouched(tb testing.TB, name string, data []byte, before *syscall.Stat_t) {
	tb.Helper()
	got, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, data) {
		tb.Errorf("the runtime's file has other bytes, error %v", err)
	}
	if now := stat(tb, name); now.Mtim != before.Mtim || now.Mode != before.Mode || now.Ino != before.Ino {
		tb.Errorf("the runtime's file has other metadata: %+v, was %+v", now, before)
	}
}

func TestShareInPlaceOfOurFile(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Random(t, 1, 9*pieceLength+1)
	theirs := runtimeFile(t, dir, c.Data)
	before := stat(t, theirs)
	at := filepath.Join(dir, "store")
	s, err := store.Open(store.Config{Dir: at}, nil)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Fill(t, s, c)
	b, _ := s.Get(c.Digest)
	reader := b.Reader(t.Context(), 0, -1)
	if _, err := io.ReadFull(reader, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	wantError(t, "share", s.Share(t.Context(), c.Digest, theirs, noPace), nil)
	rest, err := io.ReadAll(reader)
	if err != nil || !bytes.Equal(rest, c.Data[10:]) {
		t.Errorf("a reader that was at it got %d bytes more, error %v", len(rest), err)
	}
	_ = reader.Close()
	b.Release()
	if used, one := diskUsed(t, dir), stat(t, theirs).Blocks*512; float64(used) > 1.02*float64(one) {
		t.Errorf("%d bytes of disk for one copy of %d", used, one)
	}
	for range 2 { // and after a restart
		if got := s.Reserved(); got != 0 {
			t.Errorf("a blob that shares the runtime's file counts %d bytes", got)
		}
		if info := s.Blobs(); len(info) != 1 || !info[0].Shared || !info[0].Sealed {
			t.Errorf("blobs %+v", info)
		}
		b, _ := s.Get(c.Digest)
		mustRead(t, b, c)
		if _, links := b.Links(0, c.Layout.Pieces()); !bytes.Equal(links, c.Links) {
			t.Error("its links are lost")
		}
		b.Release()
		wantError(t, "share again", s.Share(t.Context(), c.Digest, theirs, func(context.Context, int64) error {
			return errors.New("it is read again")
		}), nil)
		if n := stat(t, theirs).Nlink; n != 2 {
			t.Errorf("the runtime's file has %d names", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = storetest.Open(t, store.Config{Dir: at})
	}
	checkUntouched(t, theirs, c.Data, before)
}

// A blob that was whole but not yet synced never costs the sync of its own copy.
func TestShareBeforeTheSeal(t *testing.T) {
	dir := t.TempDir()
	c := storetest.Random(t, 1, 2*pieceLength+1)
	theirs := runtimeFile(t, dir, c.Data)
	at := filepath.Join(dir, "store")
	s := storetest.Open(t, store.Config{Dir: at})
	b := create(t, s, c)
	for i := range c.Layout.Pieces() {
		wantError(t, "put", b.Extend(i, c.Piece(i)), nil)
	}
	wantError(t, "share", s.Share(t.Context(), c.Digest, theirs, noPace), nil)
	wantError(t, "seal", b.Seal(), nil)
	if _, err := os.Lstat(pathOf(at, c.Digest, ".part")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the own copy is still there: %v", err)
	}
	if ours := stat(t, pathOf(at, c.Digest, "")); ours.Ino != stat(t, theirs).Ino {
		t.Error("the files are two")
	}
	b.Release()
	s.Kill()
	again := storetest.Open(t, store.Config{Dir: at})
	if info := again.Blobs(); len(info) != 1 || !info[0].Sealed || !info[0].Shared {
		t.Errorf("after a crash: %+v", info)
	}
}

func TestShareWhatIsNotHeld(t *testing.T) {
	for _, part := range []bool{false, true} {
		dir := t.TempDir()
		c := storetest.Random(t, 1, 3*pieceLength+1)
		theirs := runtimeFile(t, dir, c.Data)
		before := stat(t, theirs)
		s := storetest.Open(t, store.Config{Dir: filepath.Join(dir, "store"), MaxBytes: pieceLength * 5})
		if part {
			b := create(t, s, c)
			wantError(t, "put", b.Extend(0, c.Piece(0)), nil)
			wantError(t, "share what is on its way", s.Share(t.Context(), c.Digest, theirs, noPace), store.ErrInUse)
			b.Release()
		}
		other := storetest.Random(t, 2, 1000)
		storetest.Fill(t, s, other)
		wantError(t, "share", s.Share(t.Context(), c.Digest, theirs, noPace), nil)
		b, ok := s.Get(c.Digest)
		if !ok || !b.Sealed() || !b.Have().Full() {
			t.Fatalf("part %v: not held whole", part)
		}
		mustRead(t, b, c)
		if _, links := b.Links(0, c.Layout.Pieces()); !bytes.Equal(links, c.Links) {
			t.Error("wrong links")
		}
		if got := s.Reserved(); got != other.Size() {
			t.Errorf("%d bytes count, want %d", got, other.Size())
		}
		wantError(t, "unshare while it is read", s.Unshare(c.Digest), store.ErrInUse)
		b.Release()
		wantError(t, "unshare", s.Unshare(c.Digest), nil)
		if _, ok := s.Get(c.Digest); ok {
			t.Error("it outlives the runtime's file")
		}
		if n := stat(t, theirs).Nlink; n != 1 {
			t.Errorf("the runtime's file has %d names", n)
		}
		checkUntouched(t, theirs, c.Data, before)
	}
}

func TestShareRefuses(t *testing.T) {
	c := storetest.Random(t, 1, 2*pieceLength+1)
	rotten := bytes.Clone(c.Data)
	rotten[pieceLength+5] ^= 1
	stop := errors.New("stop")
	for name, row := range map[string]struct {
		data []byte
		make func(name string) error
		pace func(context.Context, int64) error
		want error
	}{
		"rotten":    {data: rotten, want: store.ErrBadDigest},
		"cut short": {data: c.Data[:pieceLength], want: store.ErrBadDigest},
		"empty":     {data: nil, want: store.ErrBadDigest},
		"vanished":  {data: c.Data, make: os.Remove, want: fs.ErrNotExist},
		"writable":  {data: c.Data, make: func(n string) error { return os.Chmod(n, 0o600) }, want: store.ErrInUse},
		"a symlink": {data: c.Data, make: func(n string) error {
			return errors.Join(os.Rename(n, n+"x"), os.Symlink(n+"x", n))
		}, want: store.ErrBadDigest},
		"stopped": {data: c.Data, pace: func(context.Context, int64) error { return stop }, want: stop},
	} {
		t.Run(name, func(t *testing.T) {
			for _, held := range []bool{false, true} {
				dir := t.TempDir()
				theirs := runtimeFile(t, dir, row.data)
				s := storetest.Open(t, store.Config{Dir: filepath.Join(dir, "store")})
				if held {
					storetest.Fill(t, s, c)
				}
				if row.make != nil {
					wantError(t, "prepare", row.make(theirs), nil)
				}
				pace := row.pace
				if pace == nil {
					pace = noPace
				}
				wantError(t, "share", s.Share(t.Context(), c.Digest, theirs, pace), row.want)
				b, ok := s.Get(c.Digest)
				if ok != held {
					t.Errorf("held before %v, after %v", held, ok)
				}
				if ok {
					mustRead(t, b, c)
					b.Release()
				}
				if left, _ := filepath.Glob(filepath.Join(dir, "store", "v1", "share", "*")); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
				if info := s.Blobs(); held && info[0].Shared {
					t.Error("it says that it shares")
				}
			}
		})
	}
}

// The order of eviction survives a restart although the file's time is never set.
func TestShareKeepsOrderOfEviction(t *testing.T) {
	dir := t.TempDir()
	a, b := storetest.Random(t, 1, 600), storetest.Random(t, 2, 600)
	s, err := store.Open(store.Config{Dir: dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Fill(t, s, a)
	storetest.Fill(t, s, b)
	if used, ok := s.Get(a.Digest); ok {
		used.Release()
	}
	past := time.Now().Add(-time.Hour)
	wantError(t, "make the data old", os.Chtimes(pathOf(dir, a.Digest, ""), past, past), nil)
	wantError(t, "close", s.Close(), nil)
	s = storetest.Open(t, store.Config{Dir: dir, MaxBytes: 700})
	if info := s.Blobs(); len(info) != 1 || info[0].Digest != a.Digest {
		t.Errorf("left: %+v, want what was used last", info)
	}
}

func digests(infos []store.Info) (out []blob.Digest) {
	for _, i := range infos {
		out = append(out, i.Digest)
	}
	return out
}
