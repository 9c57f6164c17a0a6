package store_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

func holds(s *store.Store, blobs ...*storetest.Content) string {
	var is []string
	for _, i := range s.Blobs() {
		k := slices.IndexFunc(blobs, func(c *storetest.Content) bool { return c.Digest == i.Digest })
		is = append(is, fmt.Sprint(k))
	}
	slices.Sort(is)
	return strings.Join(is, " ")
}

func TestEvictsLeastRecentlyUsed(t *testing.T) {
	var told []blob.Digest
	s := storetest.Open(t, store.Config{MaxBytes: 1000, OnDrop: func(d blob.Digest) { told = append(told, d) }})
	var c []*storetest.Content
	for i := range 5 {
		c = append(c, storetest.Random(t, uint64(i), 300))
	}
	for _, c := range c[:3] {
		storetest.Fill(t, s, c)
	}
	b, _ := s.Get(c[0].Digest) // 1 is now the one that was used longest ago
	b.Release()
	storetest.Fill(t, s, c[3])
	if got := holds(s, c...); got != "0 2 3" || !slices.Equal(told, []blob.Digest{c[1].Digest}) {
		t.Fatalf("holds %s, told of %v", got, told)
	}
	if err := s.Pin(c[2].Digest); err != nil {
		t.Fatal(err)
	}
	b, _ = s.Get(c[3].Digest)
	storetest.Fill(t, s, c[4]) // 2 is pinned, 3 in use
	b.Release()
	if got := holds(s, c...); got != "2 3 4" {
		t.Fatalf("holds %s", got)
	}
	if err := s.Unpin(c[2].Digest); err != nil {
		t.Fatal(err)
	}
	big := storetest.Random(t, 9, 1000)
	storetest.Fill(t, s, big)
	if got := holds(s, big); got != "0" || s.Reserved() != 1000 {
		t.Errorf("holds %s with %d bytes reserved", got, s.Reserved())
	}
	wantError(t, "pin what is gone", s.Pin(c[2].Digest), store.ErrNotHeld)
	wantError(t, "unpin what is gone", s.Unpin(c[2].Digest), store.ErrNotHeld)
}

func TestNoSpaceSaysWhy(t *testing.T) {
	s := storetest.Open(t, store.Config{MaxBytes: 1000})
	pinned, used, other := storetest.Random(t, 1, 400), storetest.Random(t, 2, 300), storetest.Random(t, 3, 200)
	storetest.Fill(t, s, pinned)
	storetest.Fill(t, s, other)
	if err := s.Pin(pinned.Digest); err != nil {
		t.Fatal(err)
	}
	r := create(t, s, used).Reader(t.Context(), 0, -1) // partial: counts whole
	r2, _ := s.Get(used.Digest)
	r2.Release()
	_, err := s.Create(storetest.Random(t, 4, 301).Digest, 301)
	wantError(t, "create", err, store.ErrNoSpace)
	for _, part := range []string{"301 bytes", "limit is 1000", "400 are pinned", "300 in use"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	if got := holds(s, pinned, used, other); got != "0 1 2" {
		t.Errorf("holds %s: blobs were given up for one that does not fit anyway", got)
	}
	_ = r.Close()
	_, err = s.Create(storetest.Random(t, 5, 1001).Digest, 1001)
	wantError(t, "create more than the limit", err, store.ErrNoSpace)
}

// TestQuotaRace has many tasks reserve at once; the limit holds at every moment.
func TestQuotaRace(t *testing.T) {
	const limit = 5000
	s := storetest.Open(t, store.Config{MaxBytes: limit})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for k := range 10 {
				c := storetest.Random(t, uint64(w%4*100+k), 700)
				b, err := s.Create(c.Digest, c.Size())
				if got := s.Reserved(); got > limit {
					t.Errorf("%d bytes reserved", got)
				}
				if err != nil {
					wantError(t, "create", err, store.ErrNoSpace)
					continue
				}
				if err := b.Extend(0, c.Piece(0)); err != nil {
					t.Error(err)
				}
				mustRead(t, b, c)
				b.Release()
			}
		})
	}
	wg.Wait()
	var sum int64
	for _, i := range s.Blobs() {
		sum += i.Size
		if i.InUse {
			t.Errorf("%s is still in use", i.Digest)
		}
	}
	if sum != s.Reserved() || sum == 0 {
		t.Errorf("%d bytes held, %d reserved", sum, s.Reserved())
	}
}

// TestFullDiskEvicts: when the disk is full before the limit is reached, unused
// blobs make room; when there are none, the piece is refused and nothing breaks.
func TestFullDiskEvicts(t *testing.T) {
	old, next := storetest.Random(t, 1, pieceLength), storetest.Random(t, 2, 3*pieceLength)
	free, armed := 2*pieceLength, false
	var mu sync.Mutex
	full := func(op store.Operation, data *[]byte, _ int64, do func() error) error {
		mu.Lock()
		defer mu.Unlock()
		if armed && op.Kind == "remove" && strings.HasSuffix(op.Name, old.Digest.Hex()) {
			free += pieceLength
		}
		if op.Kind != "write" || len(*data) < pieceLength {
			return do()
		}
		if free < len(*data) {
			*data = (*data)[:1000]
			_ = do()
			return syscall.ENOSPC
		}
		free -= len(*data)
		return do()
	}
	reg := prometheus.NewRegistry()
	s, err := store.OpenTapped(store.Config{Dir: t.TempDir(), Registerer: reg}, nil, full)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	storetest.Fill(t, s, old)
	mu.Lock()
	armed = true
	mu.Unlock()
	b := create(t, s, next)
	defer b.Release()
	for i := range 2 {
		if err := b.Extend(i, next.Piece(i)); err != nil {
			t.Fatal(err)
		}
	}
	if got := gather(t, reg)["damselfly_cache_evictions_total full"]; holds(s, old, next) != "1" || got != 1 {
		t.Errorf("holds %s, %v evicted", holds(s, old, next), got)
	}
	err = b.Extend(2, next.Piece(2))
	wantError(t, "piece on a full disk", err, store.ErrNoSpace)
	wantError(t, "piece on a full disk", err, syscall.ENOSPC)
	if b.Sealed() || b.Front() != 2 {
		t.Error("a piece that was not written is held")
	}
	mu.Lock()
	free += pieceLength
	mu.Unlock()
	if err := b.Extend(2, next.Piece(2)); err != nil {
		t.Fatal(err)
	}
	mustRead(t, b, next)
}

// TestNoInodesLeft: many small blobs use up the files that a disk can hold long
// before its bytes.
func TestNoInodesLeft(t *testing.T) {
	files := 0
	s, err := store.OpenTapped(store.Config{Dir: t.TempDir()}, nil, func(op store.Operation, _ *[]byte, _ int64, do func() error) error {
		switch {
		case op.Kind == "create" && files == 7:
			return syscall.ENOSPC
		case op.Kind == "create":
			files++
		case op.Kind == "remove" && files > 0 && strings.HasSuffix(op.Name, ".tmp"):
			files -= 2
		}
		return do()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 20 {
		c := storetest.Random(t, uint64(i), 10)
		storetest.Fill(t, s, c)
		whole(t, s, c)
	}
	if n := len(s.Blobs()); n == 0 || n > 4 {
		t.Errorf("holds %d blobs", n)
	}
}

func TestAcquireKeepsABlob(t *testing.T) {
	s := storetest.Open(t, store.Config{MaxBytes: 100})
	c := storetest.Random(t, 1, 100)
	b := create(t, s, c)
	b.Acquire()
	b.Release()
	_, err := s.Create(storetest.Random(t, 2, 1).Digest, 1)
	wantError(t, "create while it is in use", err, store.ErrNoSpace)
	b.Release()
	storetest.Fill(t, s, storetest.Random(t, 2, 1))
	wantError(t, "put into an evicted blob", b.Extend(0, c.Piece(0)), store.ErrRemoved)
}
