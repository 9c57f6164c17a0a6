package store_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// held100GB lays out a store of 2,000 sealed blobs of 50 MB, a sealed one of 50 GB and
// half of another, all of them sparse files, and returns their number. What is in the
// files is not what their names say: opening does not read it.
func held100GB(tb testing.TB, dir string) int {
	tb.Helper()
	for i := range 2000 {
		layOut(tb, dir, uint64(i), 50_000_000, true)
	}
	layOut(tb, dir, 2000, 50<<30, true)
	layOut(tb, dir, 2001, 50<<30, false)
	return 2002
}

func layOut(tb testing.TB, dir string, seed uint64, size int64, sealed bool) {
	tb.Helper()
	d := blob.FromBytes(binary.LittleEndian.AppendUint64(nil, seed))
	l, err := blob.NewLayout(size)
	if err != nil {
		tb.Fatal(err)
	}
	m := &store.Sidecar{Layout: l, Sealed: sealed, Held: blob.NewBitmap(l.Pieces()), Chain: blob.NewChain(d, l)}
	if err := m.Chain.Add(1, make([]byte, (l.Pieces()-1)*d.LinkSize())); err != nil {
		tb.Fatal(err)
	}
	m.Held.SetRun(blob.Run{First: 0, Count: l.Pieces() / 2})
	name := pathOf(dir, d, ".part")
	if sealed {
		name = pathOf(dir, d, "")
	}
	for _, err := range []error{
		os.MkdirAll(filepath.Dir(name), 0o700),
		os.WriteFile(name, nil, 0o600),
		os.Truncate(name, size),
		os.WriteFile(pathOf(dir, d, ".meta"), m.Encode(d), 0o600),
	} {
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// TestReopenReadsNoData: what opening a store costs grows with the number of blobs, a
// header of a sidecar each, and not with their bytes. BenchmarkReopen100GB has the time.
func TestReopenReadsNoData(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	blobs := held100GB(t, dir)
	count, read := map[string]int{}, 0
	s, err := store.OpenTapped(store.Config{Dir: dir}, nil, func(op store.Operation, data *[]byte, _ int64, do func() error) error {
		count[op.Kind]++
		if op.Kind == "read" {
			read += len(*data)
		}
		return do()
	})
	if err != nil {
		t.Fatal(err)
	}
	sealed := 0
	for _, i := range s.Blobs() {
		if i.Sealed {
			sealed++
		}
	}
	if len(s.Blobs()) != blobs || sealed != blobs-1 {
		t.Errorf("%d blobs are held, %d sealed", len(s.Blobs()), sealed)
	}
	if count["openread"] > blobs || count["open"] > 0 || read > blobs*store.MaxHeader {
		t.Errorf("opening %d blobs opened %d files, and %d to write, and read %d bytes", blobs, count["openread"], count["open"], read)
	}
	if count["stat"] > 2*blobs || count["list"] > 300 {
		t.Errorf("opening %d blobs asked for %d files and %d directories", blobs, count["stat"], count["list"])
	}
	for _, kind := range []string{"create", "write", "sync", "syncdir", "rename", "remove"} {
		if count[kind] > 0 {
			t.Errorf("opening a store that was closed well did %d of %s", count[kind], kind)
		}
	}
	clear(count)
	closeStore(t, s)
	if count["sync"]+count["syncdir"]+count["open"] > 0 {
		t.Errorf("closing a store that nobody used did %v", count)
	}
}

// BenchmarkReopen100GB opens 2,000 blobs of 50 MB and one and a half of 50 GB. The bar is
// a second for each 100 GB.
func BenchmarkReopen100GB(b *testing.B) {
	dir := b.TempDir()
	held100GB(b, dir)
	b.ReportAllocs()
	for b.Loop() {
		s, err := store.Open(store.Config{Dir: dir}, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Kill()
		b.StartTimer()
	}
}
