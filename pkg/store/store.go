// Package store keeps pieces of blobs on disk and lets readers wait for bytes
// that have not come yet.
//
// Everything that fetches writes it (Blob.Put, Blob.Extend), everything that
// serves reads it (Blob.Reader, Blob.ReadAt, Blob.File). Put is the only door: it
// proves a piece against the hash chain while it takes it, so nothing unverified
// is ever held. The last piece of a blob is handed out only when the digest of
// the whole is proven, so nobody completes a wrong blob.
//
// The package does not know that peers, origins or schedulers exist. DESIGN.md
// beside it says what is on the disk, in which order it gets there, and what is
// trusted when.
package store

import (
	"container/list"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Config says where a store is and how large it may grow.
type Config struct {
	// Dir is the store's directory. It is made if it is not there and belongs to
	// one Store at a time. Any file system with sparse files and rename will do;
	// a local one is what it is built for.
	Dir string
	// MaxBytes bounds the bytes of all blobs together, each counted whole from
	// the moment it is created. 0 sets no bound: blobs are then given up only
	// when the disk is full. A bound near the disk's size leaves no room for
	// sidecars (about 0.02 % of the blobs) and for other users of the disk.
	MaxBytes int64
	// KeepFree is how much of the file system stays free for others, in percent of
	// its bytes and of its inodes: where less is, Run gives up unused blobs. It
	// refuses none. 0 leaves the disk to fill.
	KeepFree int
	// MaxAge is after how long without use Run gives up a blob. 0 means never.
	MaxAge time.Duration
	// ScrubRate is how many bytes a second Run proves again. 0 turns that off.
	ScrubRate int64
	// ScrubEvery is how long after a pass of the scrub began the next one begins.
	ScrubEvery time.Duration
	// OnDrop is told of each blob of which pieces that were held no longer are:
	// evicted, removed, started over or damaged. Get and Blob.Have say what is
	// left. It is called by the goroutine that caused the loss, with no lock of
	// the store held, and must not block for long. nil tells nobody.
	OnDrop func(blob.Digest)
	// Registerer takes the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	if c.Dir == "" {
		return errors.New("store: no directory is set")
	}
	if c.MaxBytes < 0 {
		return fmt.Errorf("store: limit of %d bytes: must be 0 (no limit) or more", c.MaxBytes)
	}
	if c.KeepFree < 0 || c.KeepFree > 90 {
		return fmt.Errorf("store: %d %% of the disk kept free: must be 0 to 90", c.KeepFree)
	}
	if c.MaxAge < 0 || c.ScrubRate < 0 || c.ScrubEvery < 0 {
		return errors.New("store: the age of blobs, the rate of the scrub and its interval must be 0 or more")
	}
	return nil
}

// maxChecks bounds how many pieces are read and hashed at once after a restart,
// and with it the memory that takes: 64 MiB with pieces of the largest length.
const maxChecks = 4

// Store holds blobs under one directory. It is safe for concurrent use. Open
// makes one; it starts no goroutine.
type Store struct {
	cfg     Config
	log     *zap.Logger
	vol     *volume
	flock   *flock.Flock
	metrics *metrics
	onDrop  func(blob.Digest)
	disk    func() (Disk, error)
	created chan struct{}         // tells Run of a new blob
	checks  chan struct{}         // a slot for each piece that may be in memory to be checked
	found   map[blob.Digest]stamp // what the last run saved; while a store opens
	marks   atomic.Bool           // stamps were proven that are not saved
	pieces  sync.Pool             // *[]byte as long as a piece
	copies  sync.Pool             // *[copyLength]byte

	sharing sync.Mutex // held while a file is proven and taken; before all others

	mu       sync.Mutex // taken before the mu of a blob
	closed   bool
	blobs    map[blob.Digest]*Blob
	lru      *list.List         // the blobs that are not leaving, least recently used first
	leaving  map[*Blob]struct{} // dropped, files not deleted yet
	used     int64              // bytes that count, of all blobs, leaving ones too
	free     int64              // bytes that do not, because a runtime keeps them
	scrubbed Scrub
}

// Info describes a blob that is held.
type Info struct {
	Digest  blob.Digest
	Size    int64 // bytes
	Pieces  int   // pieces of the blob
	Held    int   // pieces that are held and verified
	Claimed int   // pieces found on disk and not verified yet
	Sealed  bool  // all are held and the digest is proven
	Pinned  bool
	InUse   bool // by somebody who does more than look at it (Peek)
	Shared  bool // a runtime keeps the same bytes, so that they cost nothing here
	LastUse time.Time
}

// Open locks the directory, reads what is in it and brings it within the limit.
// Sealed blobs are served at once; pieces of others are checked when they are
// first needed. What cannot be used is deleted or left alone, with a line in the
// log. The error wraps ErrLocked when another daemon has the directory. log may
// be nil.
func Open(cfg Config, log *zap.Logger) (*Store, error) {
	return open(cfg, log, nil)
}

func open(cfg Config, log *zap.Logger, t tap) (s *Store, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if log == nil {
		log = zap.NewNop()
	}
	s = &Store{
		cfg:     cfg,
		log:     log,
		created: make(chan struct{}, 1),
		checks:  make(chan struct{}, min(runtime.GOMAXPROCS(0), maxChecks)),
		blobs:   map[blob.Digest]*Blob{},
		lru:     list.New(),
		leaving: map[*Blob]struct{}{},
	}
	if s.vol, err = openVolume(filepath.Join(cfg.Dir, layoutVersion), t); err != nil {
		return nil, fmt.Errorf("store: open %s: %w", cfg.Dir, err)
	}
	if err := s.takeLock(); err != nil {
		return nil, errors.Join(err, s.vol.close())
	}
	s.disk = s.vol.statfs
	if s.metrics, err = newMetrics(cfg.Registerer, s.Disk); err != nil {
		return nil, errors.Join(fmt.Errorf("store: %w", err), s.flock.Unlock(), s.vol.close())
	}
	s.metrics.limit.Set(float64(cfg.MaxBytes))
	s.dropLinks()
	s.scan()
	s.shrink()
	s.onDrop = cfg.OnDrop // from here on somebody may have been told what is held
	return s, nil
}

func (s *Store) takeLock() error {
	s.flock = flock.New(filepath.Join(s.cfg.Dir, "lock"), flock.SetPermissions(0o600))
	ok, err := s.flock.TryLock()
	if err != nil {
		return fmt.Errorf("store: lock %s: %w", s.cfg.Dir, err)
	}
	if !ok {
		return fmt.Errorf("store: %s: %w: stop that daemon, or give this one a directory of its own", s.cfg.Dir, ErrLocked)
	}
	return nil
}

// Close ends all readers with ErrClosed, saves what a restart can use and gives
// the directory free. Calls after it return ErrClosed. It is idempotent.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	blobs := make([]*Blob, 0, len(s.blobs))
	for _, b := range s.blobs {
		blobs = append(blobs, b)
	}
	s.mu.Unlock()
	s.saveMarks()
	var errs []error
	for _, b := range blobs {
		if err := b.shut(); err != nil {
			errs = append(errs, fmt.Errorf("store: close %s: %w", b.digest, err))
		}
	}
	s.metrics.close()
	return errors.Join(append(errs, s.vol.close(), s.flock.Unlock())...)
}

// Create returns the blob, held already or new with room for all its bytes set
// aside, for which unused blobs are evicted. Where the disk is too small for that, and
// Config.KeepFree leaves something of it, the blob is kept in part: it takes pieces until
// Put says ErrNoSpace. The blob is in use until the caller calls Release. Safe for
// concurrent use.
//
// The error wraps ErrNoSpace when there is no room at all, ErrSize when the blob is held
// with another size (a blob that is not proven and not in use gives way instead),
// ErrBadDigest for an empty blob whose digest is not that of nothing, ErrRemoved
// when Remove overtook it, ErrClosed.
func (s *Store) Create(d blob.Digest, size int64) (*Blob, error) {
	layout, err := blob.NewLayout(size)
	if err == nil {
		_, err = blob.ParseDigest(string(d))
	}
	if err == nil && size == 0 && !d.Matches(nil) {
		err = fmt.Errorf("empty blob %s: %w", d, ErrBadDigest)
	}
	if err != nil {
		return nil, fmt.Errorf("store: create: %w", err)
	}
	for evicted, inPart := int64(0), false; ; {
		b, fresh, leaving, err := s.reserve(d, layout)
		if err != nil {
			return nil, err
		}
		if b == nil {
			if err := s.expunge(leaving...); err != nil {
				return nil, fmt.Errorf("store: make room for %s: %w", d, err)
			}
			continue
		}
		if fresh {
			b.mu.Lock()
			b.inPart = inPart
			b.mu.Unlock()
			err := b.create()
			if err == nil {
				s.wakeRun()
				return b, nil
			}
			if !isFull(err) {
				return nil, err
			}
			room := s.makeDiskRoom(size, evicted)
			if room == 0 && (inPart || !s.roomFor(layout.Length(0))) {
				s.metrics.refused.Inc()
				return nil, err
			}
			inPart = room == 0
			evicted += room
			continue
		}
		if err = b.prepare(); err == nil {
			return b, nil
		}
		b.Release()
		if !errors.Is(err, ErrRemoved) && !errors.Is(err, ErrDamaged) {
			return nil, err
		}
	}
}

// reserve returns the blob, in use. If fresh, its bytes are set aside and its
// disk lock is held: the caller creates it. When files have to be deleted first,
// it returns their blobs instead.
func (s *Store) reserve(d blob.Digest, layout blob.Layout) (b *Blob, fresh bool, leaving []*Blob, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false, nil, ErrClosed
	}
	if b := s.blobs[d]; b != nil {
		if b.layout != layout && !s.dropForSizeLocked(b) {
			return nil, false, nil, fmt.Errorf("store: create %s with %d bytes: %w: %d bytes", d, layout.Size(), ErrSize, b.layout.Size())
		}
		if !s.useLocked(b) {
			return nil, false, []*Blob{b}, nil
		}
		return b, false, nil, nil
	}
	leaving, err = s.makeRoomLocked(d, layout.Size())
	if err != nil {
		s.metrics.refused.Inc()
	}
	if err != nil || len(leaving) > 0 {
		return nil, false, leaving, err
	}
	b = newBlob(s, d, layout)
	b.disk.Lock() // nobody else knows the blob yet, so this does not wait
	b.refs = 1
	b.used = true
	s.addLocked(b)
	return b, true, nil, nil
}

// Get returns a blob that is held, whole or in part, and counts as a use of it.
// The blob is in use until the caller calls Release.
func (s *Store) Get(d blob.Digest) (*Blob, bool) {
	s.mu.Lock()
	b := s.blobs[d]
	ok := b != nil && !s.closed && s.useLocked(b)
	s.mu.Unlock()
	return b.got(ok)
}

// Peek is Get for who only looks: the blob stays where it is in the order of
// eviction, and grows as old as it would have.
func (s *Store) Peek(d blob.Digest) (*Blob, bool) {
	s.mu.Lock()
	b := s.blobs[d]
	ok := b != nil && !s.closed && b.hold() == nil
	s.mu.Unlock()
	return b.got(ok)
}

func (b *Blob) got(ok bool) (*Blob, bool) {
	if !ok {
		return nil, false
	}
	if err := b.prepare(); err != nil {
		b.Release()
		return nil, false
	}
	return b, true
}

// Blobs lists what is held, in the order of the digests.
func (s *Store) Blobs() []Info {
	s.mu.Lock()
	infos := make([]Info, 0, len(s.blobs))
	for e := s.lru.Front(); e != nil; e = e.Next() {
		infos = append(infos, e.Value.(*Blob).infoLocked())
	}
	s.mu.Unlock()
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return infos
}

// Limit is Config.MaxBytes.
func (s *Store) Limit() int64 { return s.cfg.MaxBytes }

// Pin keeps a blob from being evicted, also after a restart. The error wraps
// ErrNotHeld when the store has no such blob.
func (s *Store) Pin(d blob.Digest) error { return s.setPinned(d, true) }

// Unpin takes Pin back.
func (s *Store) Unpin(d blob.Digest) error { return s.setPinned(d, false) }

func (s *Store) setPinned(d blob.Digest, pinned bool) error {
	b, ok := s.Get(d)
	if !ok {
		return fmt.Errorf("store: pin or unpin %s: %w", d, ErrNotHeld)
	}
	defer b.Release()
	if err := b.setPinned(pinned); err != nil {
		return fmt.Errorf("store: pin or unpin %s: %w", d, err)
	}
	return nil
}

// Remove deletes a blob, pinned or in use as it may be: its readers end with
// ErrRemoved, and the disk has the space back when the last of them is closed.
// The error wraps ErrNotHeld when the store has no such blob.
func (s *Store) Remove(d blob.Digest) error { return s.remove(d, true) }

// Discard is Remove of a blob that nobody uses. The error wraps ErrInUse when
// somebody does.
func (s *Store) Discard(d blob.Digest) error { return s.remove(d, false) }

func (s *Store) remove(d blob.Digest, force bool) error {
	s.mu.Lock()
	b := s.blobs[d]
	closed := s.closed
	// Doomed under this lock, so that nobody begins a use of it in between.
	used := b != nil && !closed && !force && !s.doomUnusedLocked(b)
	s.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case b == nil:
		return fmt.Errorf("store: remove %s: %w", d, ErrNotHeld)
	case used:
		return fmt.Errorf("store: remove %s: %w", d, ErrInUse)
	}
	if err := s.drop(b, ErrRemoved, ""); err != nil {
		return fmt.Errorf("store: remove %s: %w", d, err)
	}
	return nil
}
