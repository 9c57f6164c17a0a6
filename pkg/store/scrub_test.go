package store_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// rotten is a disk that gives other bytes back than were written, unseen.
type rotten struct {
	mu    sync.Mutex
	piece map[string]int64 // what rots, by name of the file: the offset of a piece
	err   error            // instead of wrong bytes
	reads []string         // pieces that were read, in order
}

func (d *rotten) tap(op store.Operation, data *[]byte, off int64, do func() error) error {
	if op.Kind != "read" || len(*data) != pieceLength {
		return do()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	hex := filepath.Base(op.Name)
	d.reads = append(d.reads, hex[:4])
	at, ok := d.piece[hex[:64]]
	hit := ok && at == off
	if hit && d.err != nil {
		return d.err
	}
	err := do()
	if hit {
		(*data)[100] ^= 1
	}
	return err
}

func (d *rotten) rot(c *storetest.Content, piece int) {
	d.mu.Lock()
	d.piece = map[string]int64{c.Digest.Hex(): c.Layout.Offset(piece)}
	d.mu.Unlock()
}

func (d *rotten) read() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.reads)
}

// runStore runs the store until the returned function is called.
func runStore(t *testing.T, s *store.Store) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run ended with %v", err)
		}
	})
}

func openRotten(t *testing.T, cfg store.Config, d *rotten) *store.Store {
	t.Helper()
	s, err := store.OpenTapped(cfg, nil, d.tap)
	must(t, err)
	return s
}

// TestScrubFindsRot: bytes that changed below the file system are found within a
// pass, are given up as if a reader had found them, and can be fetched again. That
// the seal is not on the disk yet makes no difference.
func TestScrubFindsRot(t *testing.T) {
	for name, c := range map[string]struct {
		settled bool
		err     error
	}{"settled": {settled: true}, "not on the disk yet": {}, "a disk that does not answer": {true, syscall.EIO}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, d := prometheus.NewRegistry(), &rotten{err: c.err}
				var told []blob.Digest
				cfg := store.Config{
					Dir: t.TempDir(), Registerer: reg, ScrubRate: pieceLength, ScrubEvery: time.Hour,
					OnDrop: func(d blob.Digest) { told = append(told, d) },
				}
				s := openRotten(t, cfg, d)
				defer closeStore(t, s)
				good, bad := storetest.Random(t, 1, 3*pieceLength), storetest.Random(t, 2, 3*pieceLength)
				storetest.Fill(t, s, good)
				b := create(t, s, bad)
				defer b.Release()
				for i := range 3 {
					must(t, b.Extend(i, bad.Piece(i)))
				}
				if c.settled {
					must(t, b.Seal())
				}
				stop := runStore(t, s)
				defer stop()
				time.Sleep(10 * time.Second) // a pass of six pieces takes six
				if got := gather(t, reg); got["damselfly_cache_rotten_pieces_total"] != 0 || len(told) > 0 || got["damselfly_cache_scrubbed_bytes_total"] != 6*pieceLength {
					t.Fatalf("told of %v with nothing rotten; metrics %v", told, got)
				}
				d.rot(bad, 1)
				time.Sleep(time.Hour)
				want := []blob.Run{{First: 1, Count: 1}}
				if got := b.Missing(bad.Layout.All()); !slices.Equal(got, want) || !slices.Equal(told, []blob.Digest{bad.Digest}) {
					t.Fatalf("missing %v, told of %v", got, told)
				}
				if got := gather(t, reg)["damselfly_cache_rotten_pieces_total"]; got != 1 {
					t.Errorf("%v rotten pieces counted", got)
				}
				d.rot(bad, -1)
				must(t, b.Put(1, bad.Piece(1)))
				if !b.Sealed() {
					t.Error("not whole again")
				}
				mustRead(t, b, bad)
				if last := s.Scrub(); last.Ended.Sub(last.Began) < 5*time.Second {
					t.Errorf("six pieces at one a second: %v to %v", last.Began, last.Ended)
				}
			})
		})
	}
}

// TestScrubGoesOnAfterARestart: it begins where it stopped, does each blob once a
// pass, and leaves the order of eviction alone.
func TestScrubGoesOnAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, d := t.TempDir(), &rotten{}
		cfg := store.Config{Dir: dir, ScrubRate: pieceLength, ScrubEvery: 24 * time.Hour}
		s := openRotten(t, cfg, d)
		var want []string
		for i := range 3 {
			c := storetest.Random(t, uint64(i), 4*pieceLength)
			storetest.Fill(t, s, c)
			for range 4 {
				want = append(want, c.Digest.Hex()[:4])
			}
		}
		before := s.Blobs()
		slices.Sort(want)
		for range 4 { // three pieces a run, and then it is killed
			stop := runStore(t, s)
			time.Sleep(2500 * time.Millisecond)
			stop()
			closeStore(t, s)
			s = openRotten(t, cfg, d)
		}
		if got := d.read(); !slices.Equal(got, want) {
			t.Errorf("pieces read: %v\nwant %v", got, want)
		}
		for i, b := range s.Blobs() {
			if b.LastUse.Sub(before[i].LastUse).Abs() > time.Second {
				t.Errorf("the scrub counts as a use: %v, was %v", b.LastUse, before[i].LastUse)
			}
		}
		stop := runStore(t, s)
		time.Sleep(23 * time.Hour)
		if n := len(d.read()); n != len(want) {
			t.Errorf("%d pieces read within a day, want %d", n, len(want))
		}
		time.Sleep(2 * time.Hour)
		if n := len(d.read()); n != 2*len(want) {
			t.Errorf("%d pieces read in two days, want %d", n, 2*len(want))
		}
		stop()
		closeStore(t, s)

		for _, junk := range []string{"", "{", `{"digest":"../x"}`, `{"piece":-1}`, `{"began":"2999-01-01T00:00:00Z"}`} {
			must(t, os.WriteFile(filepath.Join(dir, "v1", "scrub"), []byte(junk), 0o600))
			n := len(d.read())
			s = openRotten(t, cfg, d)
			stop := runStore(t, s)
			time.Sleep(time.Minute)
			stop()
			closeStore(t, s)
			if got := len(d.read()) - n; got != len(want) {
				t.Errorf("after a cursor of %q %d pieces were read, want %d", junk, got, len(want))
			}
		}
	})
}

// TestProve is dfget cache verify: everything is read at once, also what an earlier
// run left in part.
func TestProve(t *testing.T) {
	d := &rotten{}
	cfg := store.Config{Dir: t.TempDir()}
	s := openRotten(t, cfg, d)
	whole, part := storetest.Random(t, 1, 3*pieceLength), storetest.Random(t, 2, 3*pieceLength)
	storetest.Fill(t, s, whole)
	b := create(t, s, part)
	must(t, b.Extend(0, part.Piece(0)))
	must(t, b.Extend(1, part.Piece(1)))
	b.Release()
	closeStore(t, s)

	s = openRotten(t, cfg, d)
	d.rot(part, 1)
	defer closeStore(t, s)
	for _, c := range []struct {
		of                    *storetest.Content
		rot                   int
		pieces, rotten, again int
	}{{whole, -1, 3, 0, 3}, {part, 1, 2, 1, 1}, {whole, 2, 3, 1, 2}} {
		d.rot(c.of, c.rot)
		want := store.Proof{Digest: c.of.Digest, Pieces: c.pieces, Bytes: int64(c.pieces) * pieceLength, Rotten: c.rotten}
		if got, err := s.Prove(t.Context(), c.of.Digest); err != nil || got != want {
			t.Errorf("proof %+v, error %v; want %+v", got, err, want)
		}
		d.rot(c.of, -1)
		if got, err := s.Prove(t.Context(), c.of.Digest); err != nil || got.Pieces != c.again || got.Rotten != 0 {
			t.Errorf("again: proof %+v, error %v; want %d pieces", got, err, c.again)
		}
	}
	_, err := s.Prove(t.Context(), storetest.Random(t, 9, 1).Digest)
	wantError(t, "prove what is not held", err, store.ErrNotHeld)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Prove(ctx, whole.Digest)
	wantError(t, "prove when nobody waits", err, context.Canceled)
}
