package store_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// gate stops operations of one kind, before or after they are done.
type gate struct {
	kind  string
	after bool
	armed bool
	open  chan struct{}
}

func (g *gate) tap(op store.Operation, _ *[]byte, _ int64, do func() error) error {
	if !g.armed || op.Kind != g.kind {
		return do()
	}
	g.armed = false
	if g.after {
		defer func() { <-g.open }()
		return do()
	}
	<-g.open
	return do()
}

func gated(t *testing.T, g *gate) *store.Store {
	t.Helper()
	g.open = make(chan struct{})
	s, err := store.OpenTapped(store.Config{Dir: t.TempDir()}, nil, g.tap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestResetWaitsForWrites: a piece of the old chain that is still being written
// must not land on one of the new.
func TestResetWaitsForWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{kind: "write", armed: true}
		s := gated(t, g)
		c, evil := storetest.Random(t, 1, 3*pieceLength), storetest.Random(t, 2, 3*pieceLength)
		b := create(t, s, c)
		defer b.Release()
		if err := b.AddLinks(0, evil.Links); err != nil {
			t.Fatal(err)
		}
		late, stale, reset, next := make(chan error, 1), make(chan error, 1), make(chan error, 1), make(chan error, 1)
		go func() { late <- b.Put(0, evil.Piece(0)) }()
		synctest.Wait()
		go func() { reset <- b.Reset() }()
		synctest.Wait()
		go func() { stale <- b.Put(1, evil.Piece(1)) }()
		go func() { next <- b.Extend(0, c.Piece(0)) }()
		synctest.Wait()
		if len(reset) > 0 {
			t.Fatal("Reset returned while a piece was being written")
		}
		close(g.open)
		wantError(t, "reset", <-reset, nil)
		wantError(t, "piece that was being written", <-late, nil)
		wantError(t, "piece that was proven before Reset", <-stale, blob.ErrUnknownLink)
		if err := <-next; err != nil { // proven against the old chain it was wrong
			wantError(t, "piece of the new chain", err, blob.ErrMismatch)
		}
		storetest.Fill(t, s, c)
		mustRead(t, b, c)
	})
}

// TestReadAcrossReset: bytes that were read before a Reset are not handed out
// after it.
func TestReadAcrossReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{kind: "read", after: true}
		s := gated(t, g)
		c, evil := storetest.Random(t, 1, 2*pieceLength), storetest.Random(t, 2, 2*pieceLength)
		b := create(t, s, c)
		defer b.Release()
		if err := b.Extend(0, evil.Piece(0)); err != nil {
			t.Fatal(err)
		}
		g.armed = true
		got := make(chan []byte, 1)
		go func() {
			data, err := storetest.Read(t.Context(), b)
			if err != nil {
				t.Error(err)
			}
			got <- data
		}()
		synctest.Wait()
		if err := b.Reset(); err != nil {
			t.Fatal(err)
		}
		storetest.Fill(t, s, c)
		close(g.open)
		if !bytes.Equal(<-got, c.Data) {
			t.Error("bytes of the old chain were handed out")
		}
	})
}

// TestSealDoesNotHoldUpReaders: the last byte is out while the disk still syncs.
func TestSealDoesNotHoldUpReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{kind: "sync"}
		s := gated(t, g)
		c := storetest.Random(t, 1, 2*pieceLength)
		b := create(t, s, c)
		defer b.Release()
		_ = b.Extend(0, c.Piece(0))
		g.armed = true
		put := make(chan error, 1)
		wantError(t, "last Extend", b.Extend(1, c.Piece(1)), nil)
		go func() { put <- b.Seal() }()
		synctest.Wait()
		if len(put) > 0 {
			t.Error("Seal returned before the seal was on the disk")
		}
		mustRead(t, b, c)
		f, err := b.File()
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(f)
		_ = f.Close()
		if !bytes.Equal(data, c.Data) {
			t.Error("File reads other bytes")
		}
		close(g.open)
		wantError(t, "seal", <-put, nil)
	})
}

// TestSealIsTakenBackFirst: a piece that was lost is written anew only when no
// power cut can bring back the name that is trusted.
func TestSealIsTakenBackFirst(t *testing.T) {
	dir := t.TempDir()
	var trace []string
	s, err := store.OpenTapped(store.Config{Dir: dir}, nil, func(op store.Operation, _ *[]byte, _ int64, do func() error) error {
		trace = append(trace, op.Kind+" "+filepath.Ext(op.To))
		return do()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := storetest.Random(t, 1, 2*pieceLength)
	storetest.Fill(t, s, c)
	b, _ := s.Get(c.Digest)
	defer b.Release()
	if err := os.Truncate(pathOf(dir, c.Digest, ""), pieceLength); err != nil {
		t.Fatal(err)
	}
	wantError(t, "read", b.ReadPiece(1, make([]byte, pieceLength)), store.ErrDamaged)
	if i := slices.Index(trace, "rename .part"); i < 0 || trace[i+1] != "syncdir " {
		t.Errorf("operations %q: want the name changed and the change synced", trace)
	}
	storetest.Fill(t, s, c)
	mustRead(t, b, c)
}

func TestFailedSyncLosesTheBlob(t *testing.T) {
	dir, reg, failing := t.TempDir(), prometheus.NewRegistry(), true
	var told []blob.Digest
	s, err := store.OpenTapped(store.Config{Dir: dir, Registerer: reg, OnDrop: func(d blob.Digest) { told = append(told, d) }}, nil,
		func(op store.Operation, _ *[]byte, _ int64, do func() error) error {
			if failing && op.Kind == "sync" && strings.HasSuffix(op.Name, ".part") {
				return syscall.EIO
			}
			return do()
		})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := storetest.Random(t, 1, 100)
	b := create(t, s, c)
	wantError(t, "last piece", b.Extend(0, c.Piece(0)), nil)
	err = b.Seal()
	wantError(t, "seal", err, store.ErrDamaged)
	wantError(t, "seal", err, syscall.EIO)
	if _, ok := s.Get(c.Digest); ok || len(told) != 1 || gather(t, reg)["damselfly_cache_evictions_total damaged"] != 1 {
		t.Errorf("held %v, told %v", ok, told)
	}
	b.Release()
	if left, _ := filepath.Glob(pathOf(dir, c.Digest, "*")); len(left) > 0 {
		t.Errorf("left on disk: %v", left)
	}
	failing = false
	storetest.Fill(t, s, c)
}

// TestReadOnlyDisk: what is sealed is served when nothing can be written.
func TestReadOnlyDisk(t *testing.T) {
	readOnly := false
	s, err := store.OpenTapped(store.Config{Dir: t.TempDir()}, nil,
		func(op store.Operation, _ *[]byte, _ int64, do func() error) error {
			switch op.Kind {
			case "create", "mkdir", "open", "write", "rename", "remove", "touch":
				if readOnly {
					return syscall.EROFS
				}
			}
			return do()
		})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := storetest.Random(t, 1, pieceLength+1)
	storetest.Fill(t, s, c)
	readOnly = true
	whole(t, s, c)
	other := storetest.Random(t, 2, 10)
	for range 2 {
		_, err = s.Create(other.Digest, other.Size())
		wantError(t, "create", err, syscall.EROFS)
	}
	readOnly = false
	storetest.Fill(t, s, other)
}
