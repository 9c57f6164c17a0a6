package store_test

import (
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// fakeDisk is a file system of so many bytes and inodes, of which the store's blobs
// and somebody else take some.
type fakeDisk struct {
	mu     sync.Mutex
	disk   store.Disk
	s      *store.Store
	others int64 // bytes of somebody else
	sparse bool  // what is not written takes no room
	err    error
}

func (d *fakeDisk) ask() (store.Disk, error) {
	blobs := d.s.Blobs()
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.disk
	out.Free = d.disk.Bytes - d.others
	for _, b := range blobs {
		if b.Sealed || !d.sparse {
			out.Free -= b.Size
		}
	}
	out.FreeFiles = max(0, d.disk.Files-2*int64(len(blobs)))
	return out, d.err
}

func (d *fakeDisk) set(change func()) {
	d.mu.Lock()
	change()
	d.mu.Unlock()
}

// TestWatermarks: Run gives up unused blobs, least recently used first, when a
// watermark is passed, and stops at the lower one. Pinned blobs and those in use
// stay.
func TestWatermarks(t *testing.T) {
	for name, c := range map[string]struct {
		cfg    store.Config
		disk   store.Disk
		others int64
		want   string // blobs 0 to 9 of 100 bytes; 0 is pinned, 1 in use
		reason string
	}{
		"limit, below the high mark": {store.Config{MaxBytes: 1060}, store.Disk{}, 0, "0 1 2 3 4 5 6 7 8 9", "limit"},
		"limit":                      {store.Config{MaxBytes: 1040}, store.Disk{}, 0, "0 1 3 4 5 6 7 8 9", "limit"},
		"enough is free":             {store.Config{KeepFree: 10}, store.Disk{Bytes: 2000}, 800, "0 1 2 3 4 5 6 7 8 9", "low"},
		"bytes":                      {store.Config{KeepFree: 10}, store.Disk{Bytes: 2000}, 950, "0 1 4 5 6 7 8 9", "low"},
		"more than there is":         {store.Config{KeepFree: 10}, store.Disk{Bytes: 2000}, 2000, "0 1", "low"},
		"inodes":                     {store.Config{KeepFree: 81}, store.Disk{Bytes: 90000, Files: 100}, 0, "0 1 4 5 6 7 8 9", "low"},
		"no inodes to count":         {store.Config{KeepFree: 50}, store.Disk{Bytes: 9000}, 0, "0 1 2 3 4 5 6 7 8 9", "low"},
		"not told to":                {store.Config{}, store.Disk{Bytes: 2000}, 1000, "0 1 2 3 4 5 6 7 8 9", "low"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg := prometheus.NewRegistry()
				c.cfg.Dir, c.cfg.Registerer = t.TempDir(), reg
				s := storetest.Open(t, c.cfg)
				d := &fakeDisk{disk: c.disk, others: c.others, s: s}
				s.FakeDisk(d.ask)
				var all []*storetest.Content
				for i := range 10 {
					all = append(all, storetest.Random(t, uint64(i), 100))
					storetest.Fill(t, s, all[i])
				}
				must(t, s.Pin(all[0].Digest))
				b, _ := s.Get(all[1].Digest)
				defer b.Release()
				defer runStore(t, s)()
				time.Sleep(time.Minute)
				if got := holds(s, all...); got != c.want {
					t.Errorf("holds %s, want %s", got, c.want)
				}
				evicted := gather(t, reg)["damselfly_cache_evictions_total "+c.reason]
				if int(evicted) != 10-len(s.Blobs()) {
					t.Errorf("%v evictions counted, %d blobs left", evicted, len(s.Blobs()))
				}
			})
		})
	}
}

// TestDiskThatFills: what others write is noticed while nothing is created; a disk
// that cannot be asked evicts nobody.
func TestDiskThatFills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.Open(t, store.Config{KeepFree: 10})
		d := &fakeDisk{disk: store.Disk{Bytes: 1000}, s: s}
		s.FakeDisk(d.ask)
		c := storetest.Random(t, 1, 100)
		storetest.Fill(t, s, c)
		defer runStore(t, s)()
		time.Sleep(time.Minute)
		d.set(func() { d.others, d.err = 850, syscall.EIO })
		time.Sleep(time.Minute)
		if holds(s, c) != "0" {
			t.Fatal("evicted without need")
		}
		d.set(func() { d.err = nil })
		time.Sleep(time.Minute)
		if holds(s, c) != "" {
			t.Error("kept although the disk runs low")
		}
	})
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := store.Config{Dir: t.TempDir(), MaxAge: time.Hour}
		s, err := store.Open(cfg, nil)
		must(t, err)
		var all []*storetest.Content
		for i := range 4 {
			all = append(all, storetest.Random(t, uint64(i), 100))
			storetest.Fill(t, s, all[i])
		}
		must(t, s.Pin(all[0].Digest))
		stop := runStore(t, s)
		time.Sleep(40 * time.Minute)
		used(t, s, all[2])
		b, _ := s.Get(all[3].Digest)
		stop()
		b.Release()
		closeStore(t, s) // the time of last use outlasts it
		s, err = store.Open(cfg, nil)
		must(t, err)
		defer closeStore(t, s)
		defer runStore(t, s)()
		b, _ = s.Get(all[3].Digest)
		time.Sleep(40 * time.Minute)
		if got := holds(s, all...); got != "0 2 3" {
			t.Errorf("after 80 minutes it holds %s", got)
		}
		time.Sleep(40 * time.Minute)
		if got := holds(s, all...); got != "0 3" {
			t.Errorf("after two hours it holds %s", got)
		}
		b.Release() // which counts as a use
		time.Sleep(2 * time.Hour)
		if got := holds(s, all...); got != "0" {
			t.Errorf("in the end it holds %s", got)
		}
	})
}

// TestFullDiskRefusesAtOnce: room is taken on the disk before the first byte comes.
// Unused blobs make room for a new one when that is enough, and only as many as are
// needed; where the file system cannot set room aside, what it has free must do.
func TestFullDiskRefusesAtOnce(t *testing.T) {
	for name, able := range map[string]bool{"set aside": true, "free space asked for": false} {
		t.Run(name, func(t *testing.T) {
			d := &fakeDisk{disk: store.Disk{Bytes: 7 * pieceLength, Files: 100}, sparse: !able}
			reg, written := prometheus.NewRegistry(), 0
			s, err := store.OpenTapped(store.Config{Dir: t.TempDir(), Registerer: reg}, nil,
				func(op store.Operation, _ *[]byte, _ int64, do func() error) error {
					switch {
					case op.Kind == "write":
						written++
					case op.Kind == "allocate" && !able:
						return syscall.EOPNOTSUPP
					case op.Kind == "allocate":
						if disk, _ := d.ask(); disk.Free < 0 { // the new blob is counted
							return syscall.ENOSPC
						}
						return nil
					}
					return do()
				})
			must(t, err)
			defer closeStore(t, s)
			d.s = s
			s.FakeDisk(d.ask)
			a, b := storetest.Random(t, 1, 2*pieceLength), storetest.Random(t, 2, 2*pieceLength)
			storetest.Fill(t, s, a)
			storetest.Fill(t, s, b)
			c := storetest.Random(t, 3, 3*pieceLength)
			d.set(func() { d.others = pieceLength })
			written = 0
			create(t, s, c).Release()
			if got := holds(s, a, b, c); got != "1 2" {
				t.Errorf("holds %s: want the oldest given up and no other", got)
			}
			d.set(func() { d.others = 5 * pieceLength })
			big := storetest.Random(t, 4, 3*pieceLength)
			must(t, s.Pin(b.Digest))
			must(t, s.Pin(c.Digest))
			writes := written
			_, err = s.Create(big.Digest, big.Size())
			wantError(t, "create on a full disk", err, store.ErrNoSpace)
			wantError(t, "create on a full disk", err, syscall.ENOSPC)
			if got := holds(s, a, b, c, big); got != "1 2" || written != writes {
				t.Errorf("holds %s after %d writes", got, written-writes)
			}
			if got := gather(t, reg)["damselfly_cache_refused_total"]; got != 1 {
				t.Errorf("%v refusals counted", got)
			}
		})
	}
}

// tightDisk is a disk on which only pieces take room, and where no room can be set aside
// once less than enough is free.
type tightDisk struct {
	store.Disk
	enough int64
}

func (d *tightDisk) open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.OpenTapped(store.Config{Dir: dir, KeepFree: 18}, nil,
		func(op store.Operation, data *[]byte, _ int64, do func() error) error {
			switch {
			case op.Kind == "allocate" && d.Free < d.enough:
				return syscall.ENOSPC
			case op.Kind == "write" && len(*data) == pieceLength:
				d.Free -= pieceLength
			}
			return do()
		})
	must(t, err)
	s.FakeDisk(func() (store.Disk, error) { return d.Disk, nil })
	return s
}

// TestDiskTooSmallKeepsAPart: where all of a blob has no room, pieces are kept as long as
// they leave free what others are to have, and no other blob goes for them.
func TestDiskTooSmallKeepsAPart(t *testing.T) {
	disk := &tightDisk{store.Disk{Bytes: 10 * pieceLength, Free: 10 * pieceLength, Files: 100, FreeFiles: 50}, 6 * pieceLength}
	s := disk.open(t, t.TempDir())
	defer closeStore(t, s)
	unused, c := storetest.Random(t, 1, pieceLength), storetest.Random(t, 2, 6*pieceLength)
	storetest.Fill(t, s, unused)
	disk.Free = 4*pieceLength + 1 // two too few, two for others
	b := create(t, s, c)
	must(t, b.Extend(0, c.Piece(0)))
	must(t, b.Extend(1, c.Piece(1)))
	wantError(t, "piece for which there is no room", b.Extend(2, c.Piece(2)), store.ErrNoSpace)
	if got := holds(s, unused, c); got != "0 1" || disk.Free != 2*pieceLength+1 || b.Have().Count() != 2 {
		t.Errorf("holds %s, %d bytes are free", got, disk.Free)
	}
	disk.Free = 10 * pieceLength
	for i := 2; i < 6; i++ {
		must(t, b.Extend(i, c.Piece(i)))
	}
	mustRead(t, b, c)
	b.Release()

	disk.Free = 3*pieceLength - 1
	_, err := s.Create(storetest.Random(t, 3, 8*pieceLength).Digest, 8*pieceLength)
	wantError(t, "create where not one piece has room", err, store.ErrNoSpace)
}

// TestPartStaysAPart: a restart does not make a blob for which there is no room one that
// takes all there is, and other blobs go by what the disk gets of them.
func TestPartStaysAPart(t *testing.T) {
	disk := &tightDisk{store.Disk{Bytes: 20 * pieceLength, Free: 6 * pieceLength, Files: 100, FreeFiles: 50}, 8 * pieceLength}
	dir := t.TempDir()
	s := disk.open(t, dir)
	c, other := storetest.Random(t, 1, 8*pieceLength), storetest.Random(t, 2, 4*pieceLength)
	b := create(t, s, c)
	must(t, b.Extend(0, c.Piece(0)))
	must(t, b.Extend(1, c.Piece(1)))
	b.Release()
	closeStore(t, s)
	s = disk.open(t, dir)
	defer closeStore(t, s)
	b = create(t, s, c)
	wantError(t, "piece for which there is no room after a restart", b.Extend(2, c.Piece(2)), store.ErrNoSpace)
	b.Release()

	// Two pieces are all that the disk would get, so it is left in peace.
	disk.Free = pieceLength
	_, err := s.Create(other.Digest, other.Size())
	wantError(t, "create", err, store.ErrNoSpace)
	if got := holds(s, c); got != "0" {
		t.Errorf("holds %s", got)
	}
}

// TestCreatesAtOnceOnASmallDisk: who waits for a creation that finds no room does not
// take what it leaves for damage, and gets the blob as the other does.
func TestCreatesAtOnceOnASmallDisk(t *testing.T) {
	disk := store.Disk{Bytes: 10 * pieceLength, Free: 4 * pieceLength, Files: 100, FreeFiles: 50}
	waits := make(chan struct{})
	core, logs := observer.New(zap.InfoLevel)
	var s *store.Store
	var wg sync.WaitGroup
	c := storetest.Random(t, 1, 6*pieceLength)
	second := sync.OnceFunc(func() {
		wg.Go(func() {
			close(waits)
			b, err := s.Create(c.Digest, c.Size())
			if err != nil {
				t.Error(err)
				return
			}
			b.Release()
		})
		<-waits
	})
	s, err := store.OpenTapped(store.Config{Dir: t.TempDir()}, zap.New(core), func(op store.Operation, _ *[]byte, _ int64, do func() error) error {
		if op.Kind == "allocate" {
			second()
			return syscall.ENOSPC
		}
		return do()
	})
	must(t, err)
	defer closeStore(t, s)
	s.FakeDisk(func() (store.Disk, error) { return disk, nil })
	create(t, s, c).Release()
	wg.Wait()
	for _, e := range logs.All() {
		t.Errorf("logged %s", e.Message)
	}
}

func TestDiscardSparesWhatIsInUse(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c := storetest.Random(t, 1, 100)
	storetest.Fill(t, s, c)
	b, _ := s.Get(c.Digest)
	wantError(t, "discard", s.Discard(c.Digest), store.ErrInUse)
	mustRead(t, b, c)
	b.Release()
	wantError(t, "discard", s.Discard(c.Digest), nil)
	wantError(t, "discard again", s.Discard(c.Digest), store.ErrNotHeld)
	if s.Reserved() != 0 {
		t.Error("its bytes are still counted")
	}
}

func TestDiskIsAsked(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := storetest.Open(t, store.Config{Registerer: reg})
	d, err := s.Disk()
	if err != nil || d.Bytes <= 0 || d.Free <= 0 || d.Free > d.Bytes || d.FreeFiles > d.Files {
		t.Errorf("disk %+v, error %v", d, err)
	}
	if got := gather(t, reg); got["damselfly_cache_disk_bytes"] != float64(d.Bytes) || got["damselfly_cache_disk_free_inodes"] <= 0 {
		t.Errorf("metrics %v of %+v", got, d)
	}
}
