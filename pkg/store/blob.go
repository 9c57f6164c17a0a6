package store

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Blob is one blob of a store, whole or in part. It is safe for concurrent use.
//
// Whoever got it from Create, Get or Peek uses it until Release; meanwhile it is not
// evicted. It can still be removed or damaged: its methods then return an error
// that wraps ErrRemoved or ErrDamaged, and so do readers that are open.
type Blob struct {
	store  *Store
	digest blob.Digest
	layout blob.Layout

	// elem, lastUse, used and free belong to the store's mu.
	elem    *list.Element
	lastUse time.Time
	used    bool // since it fell idle, and not only looked at
	free    bool // the bytes are a runtime's too, and count nothing; see share.go

	// disk is held while the blob's names and its sidecar change on disk. It is
	// taken before mu and before the store's mu, and by one blob at a time.
	disk   sync.Mutex
	named  bool // data is under the name of a whole blob
	synced bool // data is that of the whole blob, and a power cut leaves it
	marked bool // the disk says that the blob is sealed, and a power cut leaves that
	found  bool // it said so when the store was opened; whether a power cut leaves it is not known
	gone   bool // files are deleted

	// proving is held while a blob that is shared is proven again. It is taken before disk.
	proving sync.Mutex

	mu       sync.Mutex
	change   *sync.Cond // writers, writing, resetting, checking or err changed
	refs     int
	err      error // why the blob has ended, with its name; nil while it lives
	pinned   bool
	inPart   bool // no room for all of it was set aside on the disk; does not change once it is loaded
	loaded   bool // held and claimed are known
	sealed   bool
	frozen   bool         // the data may be a file of a runtime: nobody writes to it
	adopted  bool         // it came from a runtime alone, and leaves with it
	changed  stamp        // of the file, when it was sealed; zero when that is not known
	places   []blob.Place // where an origin has served it
	gen      uint64       // counts losses: what was proven or held before one may not be after it
	resets   uint64       // counts Resets and Refutes
	stands   int64        // the last of these dropped nothing before this offset
	held     *blob.Bitmap // pieces on disk and verified; nil when sealed
	claims   *blob.Bitmap // pieces that the sidecar names and nobody has checked yet; may be nil
	checking map[int]bool // claims that are being checked
	chain    *blob.Chain  // nil when it is only on disk
	file     *file        // nil when closed
	dirty    bool         // the sidecar on disk is behind; then chain is not nil
	fresh    int          // pieces that came since the sidecar was written
	saved    time.Time    // when it was
	// writers counts who writes a piece, one for each that is in writing. Reset waits
	// until nobody does, and resetting keeps new ones out meanwhile.
	writers   int
	writing   map[int]bool
	resetting bool
	waits     map[int]chan struct{}
	fails     uint64 // counts calls of Fail
	failed    error  // what the last one said
}

func newBlob(s *Store, d blob.Digest, l blob.Layout) *Blob {
	b := &Blob{store: s, digest: d, layout: l}
	b.change = sync.NewCond(&b.mu)
	return b
}

// Digest is the blob's name.
func (b *Blob) Digest() blob.Digest { return b.digest }

// Size is the blob's size in bytes.
func (b *Blob) Size() int64 { return b.layout.Size() }

// Layout says how the blob is cut into pieces.
func (b *Blob) Layout() blob.Layout { return b.layout }

// Acquire marks the blob in use once more; the caller has it in use already.
// Each Acquire needs its Release.
func (b *Blob) Acquire() {
	b.mu.Lock()
	b.refs++
	b.mu.Unlock()
}

// Release ends a use that Create, Get, Peek or Acquire began. After the last one the
// blob may be evicted; what was not saved of its sidecar is saved now.
func (b *Blob) Release() {
	b.mu.Lock()
	if b.refs == 0 {
		b.mu.Unlock()
		panic("store: Release of a blob that is not in use")
	}
	b.refs--
	last := b.refs == 0
	b.mu.Unlock()
	if last {
		b.store.mu.Lock()
		if b.used {
			b.store.touchLocked(b)
			b.used = false
		}
		b.store.mu.Unlock()
		b.idle()
	}
}

// Sealed tells whether every piece is held and the digest is proven. A sealed
// blob stays so unless the disk loses a piece.
func (b *Blob) Sealed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sealed && b.err == nil
}

// Empty reports whether no piece is held, nor may be after a restart.
func (b *Blob) Empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.sealed && b.loaded && b.held.Count() == 0 && (b.claims == nil || b.claims.Count() == 0)
}

// Have returns the pieces that may be served to other nodes: those that are held
// and verified. The bitmap is a copy.
// Pieces found after a restart are not in it before they were checked (Verify).
func (b *Blob) Have() *blob.Bitmap {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.layout.Pieces()
	switch {
	case b.err != nil || !b.sealed && b.held == nil:
		return blob.NewBitmap(n)
	case b.sealed:
		have := blob.NewBitmap(n)
		have.SetRun(b.layout.All())
		return have
	default:
		return b.held.Clone()
	}
}

// Missing lists the pieces of r that are not held, in order: what is left to
// fetch. The last piece is held, and not missing, before the blob is sealed.
// Pieces of r found after a restart are checked first, which reads them. A blob
// that has ended misses nothing.
func (b *Blob) Missing(r blob.Run) []blob.Run {
	if b.verify(context.Background(), r) != nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || b.sealed {
		return nil
	}
	end := min(r.End(), b.layout.Pieces())
	var runs []blob.Run
	for i := b.held.NextClear(max(r.First, 0)); i < end; {
		next := min(b.held.NextSet(i), end)
		runs = append(runs, blob.Run{First: i, Count: next - i})
		i = b.held.NextClear(next)
	}
	return runs
}

// Front is the first piece that is not held; the number of pieces when none is.
// Its link is known: it is where a reader of the origin goes on with Extend.
// Pieces before it found after a restart are checked first, which reads them.
func (b *Blob) Front() int {
	for {
		b.mu.Lock()
		if b.sealed || b.held == nil || b.err != nil {
			b.mu.Unlock()
			return b.layout.Pieces()
		}
		front, end := b.held.NextClear(0), 0
		for end = front; b.claimedLocked(end); {
			end++
		}
		b.mu.Unlock()
		if end == front {
			return front
		}
		if b.verify(context.Background(), blob.Run{First: front, Count: end - front}) != nil {
			return front
		}
	}
}

// Places lists where an origin is known to have served the blob, MaxPlaces at most.
func (b *Blob) Places() []blob.Place {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.places)
}

// AddPlace notes that an origin serves the blob at p. seen: to this node itself; then an
// older place gives way where there are many. It outlives a restart where it was noted
// before the blob was whole.
func (b *Blob) AddPlace(p blob.Place, seen bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	places, changed := blob.AddPlace(b.places, p, seen)
	b.places = places
	b.dirty = b.dirty || changed && b.chain != nil && !b.sealed
}

// File opens the data of a sealed blob for reading. The descriptor is the
// caller's own, to read at any offset (sendfile) and to close. The error wraps
// ErrMissing when the blob is not sealed.
func (b *Blob) File() (*os.File, error) {
	if !b.Sealed() {
		return nil, fmt.Errorf("store: open %s: not sealed: %w", b.digest, ErrMissing)
	}
	// Whoever changes the name may be long at it, so this asks without the lock
	// first. The name changes when the seal gets onto the disk.
	f, err := b.store.vol.openRead(b.partPath())
	if errors.Is(err, fs.ErrNotExist) {
		f, err = b.store.vol.openRead(b.wholePath())
	}
	if errors.Is(err, fs.ErrNotExist) {
		b.disk.Lock()
		f, err = b.store.vol.openRead(b.dataPath())
		b.disk.Unlock()
	}
	if err == nil {
		return f.f, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, b.damaged(err)
	}
	return nil, fmt.Errorf("store: open %s: %w", b.digest, err)
}

// Fail ends with err every reader and every Wait that is open now, once it
// needs bytes that are not here. The blob and what it holds stay, and readers
// that are opened later wait anew: it tells of a task that gave up.
func (b *Blob) Fail(err error) {
	if err == nil {
		err = ErrMissing
	}
	b.mu.Lock()
	b.failLocked(err)
	b.mu.Unlock()
}

func (b *Blob) failLocked(err error) {
	b.fails++
	b.failed = err
	b.wakeAllLocked()
}

// endLocked ends the blob for everybody; why is what they are told.
func (b *Blob) endLocked(why error) {
	b.err = fmt.Errorf("store: %s: %w", b.digest, why)
	b.wakeAllLocked()
	b.change.Broadcast()
}

// wakeLocked wakes who waits for piece i.
func (b *Blob) wakeLocked(i int) {
	if wait, ok := b.waits[i]; ok {
		close(wait)
		delete(b.waits, i)
	}
}

func (b *Blob) wakeAllLocked() {
	for i := range b.waits {
		b.wakeLocked(i)
	}
}

// hasLocked tells whether piece i is held and verified.
func (b *Blob) hasLocked(i int) bool { return b.sealed || b.held != nil && b.held.Has(i) }

func (b *Blob) claimedLocked(i int) bool { return b.claims != nil && b.claims.Has(i) }

// infoLocked describes the blob; the store's mu is held.
func (b *Blob) infoLocked() Info {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := Info{
		Digest: b.digest, Size: b.layout.Size(), Pieces: b.layout.Pieces(), LastUse: b.lastUse,
		Sealed: b.sealed, Pinned: b.pinned, InUse: b.refs > 0 && b.used, Shared: b.free,
	}
	switch {
	case b.sealed:
		i.Held = i.Pieces
	case b.held != nil:
		i.Held = b.held.Count()
	}
	if b.claims != nil {
		i.Claimed = b.claims.Count()
	}
	return i
}

func (b *Blob) damaged(cause error) error { return b.store.damaged(b, cause) }

func (b *Blob) warn(message string, err error) {
	b.store.log.Warn(message, zap.Stringer("digest", b.digest), zap.Error(err))
}

// dataPath is where the data is; disk is held.
func (b *Blob) dataPath() string {
	if b.named {
		return b.wholePath()
	}
	return b.partPath()
}

// Paths are made of a parsed digest and nothing else.

func (b *Blob) dir() string       { return path.Join(b.digest.Algorithm(), b.digest.Hex()[:2]) }
func (b *Blob) wholePath() string { return path.Join(b.dir(), b.digest.Hex()) }
func (b *Blob) partPath() string  { return b.wholePath() + partSuffix }
func (b *Blob) metaPath() string  { return b.wholePath() + metaSuffix }
func (b *Blob) tempPath() string  { return b.wholePath() + tempSuffix }
