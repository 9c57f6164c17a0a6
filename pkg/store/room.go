package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Room: what the disk has, what is set aside on it, and what goes before it runs
// out. Create makes room for one blob and waits for it; tend goes ahead of it, so
// that Create seldom has to.

const (
	// Once blobs take more than highPercent of the limit, unused ones go until no
	// more than lowPercent are taken.
	highPercent, lowPercent = 95, 90
	// What is evicted because the disk runs low goes on until so much more than
	// Config.KeepFree is free, in percent of the disk.
	spareFree = 2
	// tendEvery is how often the disk is looked at when nothing is created.
	tendEvery = 10 * time.Second
	// filesOfBlob is how many files, and so inodes, a blob takes.
	filesOfBlob = 2
)

// Disk is what the file system that holds the store has, for everybody on it.
type Disk struct {
	Bytes     int64 // size of the file system
	Free      int64 // bytes that this process may still take
	Files     int64 // inodes; 0 where the file system makes them as it needs them
	FreeFiles int64
}

// Disk asks the file system. Safe for concurrent use.
func (s *Store) Disk() (Disk, error) {
	d, err := s.disk()
	if err != nil {
		return Disk{}, fmt.Errorf("store: ask the file system of %s for its room: %w", s.cfg.Dir, err)
	}
	return d, nil
}

// lacksBytes and lacksFiles tell how much more has to be free until percent of the
// disk is; 0 when it is.
func (d Disk) lacksBytes(percent int) int64 { return max(0, share(d.Bytes, percent)-d.Free) }
func (d Disk) lacksFiles(percent int) int64 { return max(0, share(d.Files, percent)-d.FreeFiles) }

func share(n int64, percent int) int64 { return n/100*int64(percent) + n%100*int64(percent)/100 }

// statfs asks the file system that the volume is on.
func (v *volume) statfs() (d Disk, err error) {
	err = v.do(operation{kind: "statfs", name: "."}, func() error {
		dir, err := v.root.Open(".")
		if err != nil {
			return err
		}
		var st unix.Statfs_t
		err = unix.Fstatfs(int(dir.Fd()), &st)
		unit := uint64(max(st.Bsize, 1))
		d = Disk{
			Bytes: atMost(st.Blocks, unit), Free: atMost(st.Bavail, unit),
			Files: atMost(st.Files, 1), FreeFiles: atMost(st.Ffree, 1),
		}
		return errors.Join(err, dir.Close())
	})
	return d, err
}

func atMost(n, unit uint64) int64 {
	if n > math.MaxInt64/unit {
		return math.MaxInt64
	}
	return int64(n * unit)
}

// setAside takes the room of a new blob on the disk, so that a full disk is known
// before the first byte is fetched. Small blobs are not worth a call. The error is
// one that isFull knows.
func (b *Blob) setAside(f *file) error {
	if b.layout.Pieces() < 2 || b.inPart {
		return nil
	}
	err := f.allocate(b.layout.Size())
	if err == nil || isFull(err) {
		return err
	}
	// The file system gives room as it is written; what it has now must do.
	if disk, err := b.store.disk(); err == nil && disk.Free < b.layout.Size() {
		return fmt.Errorf("%d bytes are free for a blob of %d: %w", disk.Free, b.layout.Size(), syscall.ENOSPC)
	}
	return nil
}

// roomFor tells whether n more bytes leave as much of the disk free as evicting for
// Config.KeepFree would: or tend would evict for what they take. Where the disk does
// not tell, a write will.
func (s *Store) roomFor(n int64) bool {
	disk, err := s.disk()
	percent := s.cfg.KeepFree
	if percent > 0 {
		percent += spareFree
	}
	return err != nil || disk.Free-n >= share(disk.Bytes, percent)
}

// allocate takes the first size bytes of the file on the disk, without changing how
// long it is.
func (f *file) allocate(size int64) error {
	return f.v.do(operation{kind: "allocate", name: f.name}, func() error {
		for {
			err := unix.Fallocate(int(f.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
			if !errors.Is(err, syscall.EINTR) {
				return err
			}
		}
	})
}

// forget drops bytes of the file from the page cache, as far as they are on the
// disk: what is read next comes from there.
func (f *file) forget(off, n int64) {
	// Advice only: where it is not taken, the bytes in memory are what is read.
	_ = f.v.do(operation{kind: "forget", name: f.name, off: off}, func() error {
		return unix.Fadvise(int(f.f.Fd()), off, n, unix.FADV_DONTNEED)
	})
}

// Run looks after the store until ctx ends, and returns nil then: it gives up
// blobs that are too old, keeps what is taken below the watermarks, and scrubs. It
// is called once. A store without it holds its limit all the same.
func (s *Store) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.scrub(ctx)
	}()
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		s.tend()
		s.saveMarks()
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-s.created:
		}
	}
	<-done
	return nil
}

// tend gives up what is too old and what stands above a watermark.
func (s *Store) tend() {
	if s.cfg.MaxAge > 0 {
		s.evict(evictAge, s.expiredLocked)
	}
	s.evict(evictLimit, s.aboveLimitLocked)
	if s.cfg.KeepFree == 0 {
		return
	}
	disk, err := s.Disk()
	if err != nil {
		s.log.Warn("cannot tell how much of the disk is free; store.keepFree is not held", zap.Error(err))
		return
	}
	if disk.lacksBytes(s.cfg.KeepFree) == 0 && disk.lacksFiles(s.cfg.KeepFree) == 0 {
		return
	}
	n, files := disk.lacksBytes(s.cfg.KeepFree+spareFree), disk.lacksFiles(s.cfg.KeepFree+spareFree)
	s.evict(evictLow, func() []*Blob {
		victims, _, _, _ := s.victimsLocked(n, int((files+filesOfBlob-1)/filesOfBlob), true)
		return victims
	})
}

// evict gives up the blobs that pick names under the store's mutex.
func (s *Store) evict(reason string, pick func() []*Blob) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	victims := pick()
	var bytes int64
	for _, b := range victims {
		s.doomLocked(b, ErrRemoved, reason)
		bytes += b.costLocked()
	}
	s.mu.Unlock()
	if len(victims) == 0 {
		return
	}
	s.log.Info("evicted unused blobs", zap.String("reason", reason), zap.Int("blobs", len(victims)), zap.Int64("bytes", bytes))
	// expunge has logged what went wrong; such a blob is tried again later.
	_ = s.expunge(victims...)
}

// expiredLocked lists the unused blobs that nobody wanted for Config.MaxAge, but
// those that a runtime keeps as well: they cost nothing.
func (s *Store) expiredLocked() (victims []*Blob) {
	oldest := time.Now().Add(-s.cfg.MaxAge)
	for e := s.lru.Front(); e != nil; e = e.Next() {
		b := e.Value.(*Blob)
		if b.lastUse.After(oldest) {
			break
		}
		b.mu.Lock()
		if !b.pinned && b.refs == 0 && !b.free {
			victims = append(victims, b)
		}
		b.mu.Unlock()
	}
	return victims
}

func (s *Store) aboveLimitLocked() []*Blob {
	limit := s.cfg.MaxBytes
	if limit == 0 || s.used <= share(limit, highPercent) {
		return nil
	}
	need := s.used - share(limit, lowPercent)
	for b := range s.leaving {
		need -= b.costLocked()
	}
	victims, _, _, _ := s.victimsLocked(need, 0, false)
	return victims
}
