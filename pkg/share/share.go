// Package share keeps the store and a container runtime from having the same bytes
// on the disk twice. It watches containerd's content store, where each blob that
// has been committed is a read-only file named by its digest, and has the store
// share those files: a blob that the store holds gives its own copy up, and one
// that it does not hold is adopted and told, so that other nodes get what this node
// pulled by any other way. When containerd lets go of a blob, the store hears of it.
//
// It only reads containerd's directories. Docker's and podman's stores keep layers
// unpacked and are of no use here. DESIGN.md of package store says what sharing
// means for the limit and for eviction.
package share

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

const (
	// contentDir is where containerd keeps blobs, below its root directory.
	contentDir = "io.containerd.content.v1.content/blobs"
	// lookEvery is how often the directories are looked at. Whether they have
	// changed takes one call a directory.
	lookEvery = 2 * time.Second
	// scanEvery is how often they are read although they have not changed, for
	// what has changed here.
	scanEvery = 5 * time.Minute
	// coarse is more than the steps in which file systems count the time of a
	// directory: a change within it may have left no trace.
	coarse = time.Second
	// rate is how many bytes a second are proven, and busyPart the part of it while
	// clients or other nodes' pulls keep this node busy.
	rate     = 64 << 20
	busyPart = 8
)

// Store is what is shared with; see store.Store for the contract of each.
type Store interface {
	Blobs() []store.Info
	Share(ctx context.Context, d blob.Digest, path string, pace func(context.Context, int64) error) error
	Unshare(d blob.Digest) error
}

// Sharer watches one runtime. New makes it; Run is called once.
type Sharer struct {
	dir   string
	store Store
	tell  func(blob.Digest)
	busy  func() bool
	log   *zap.Logger

	stamps  map[string]time.Time // when each directory had changed last, as of the last scan
	scanned time.Time            // when it began
	retry   time.Duration        // how long to wait for what could not be done yet; 0: nothing
	// settled is what needs no second try while the runtime keeps the same file.
	settled map[blob.Digest]verdict
	works   bool // a file has been shared, so that mounts and file systems allow it
	absent  bool // there was no content store at the last look
}

// verdict is what became of a file: shared once, and not again when somebody has
// removed it from the store, or of no use.
type verdict struct {
	file    fs.FileInfo
	useless bool
}

// of tells whether the verdict is of this very file, and it has not changed since.
func (v verdict) of(file fs.FileInfo) bool {
	return v.file != nil && os.SameFile(v.file, file) && v.file.ModTime().Equal(file.ModTime())
}

// New returns a Sharer for the runtime whose root directory is root, such as
// /var/lib/containerd. tell hears of each blob that the store holds without a task;
// busy tells whether this node has better things to do. An empty root makes the
// store let go of whatever it shares.
func New(root string, st Store, tell func(blob.Digest), busy func() bool, log *zap.Logger) *Sharer {
	dir := ""
	if root != "" {
		dir = filepath.Join(root, filepath.FromSlash(contentDir))
	}
	return &Sharer{
		dir: dir, store: st, tell: tell, busy: busy, log: log,
		stamps: map[string]time.Time{}, settled: map[blob.Digest]verdict{},
	}
}

// Run shares until ctx ends, and returns nil then. Where the store and the runtime
// cannot share bytes it says so once, lets go of what they shared, and waits: mounts
// change with a restart.
func (s *Sharer) Run(ctx context.Context) error {
	over := s.dir == ""
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		for !over && s.due() && ctx.Err() == nil {
			if err := s.scan(ctx); errors.Is(err, store.ErrCannotShare) {
				s.log.Warn("blobs are kept twice on this machine; not trying again before a restart", zap.String("runtime", s.dir), zap.Error(err))
				over = true
			}
		}
		if over && !s.release(nil) {
			<-ctx.Done()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// due tells whether there may be something to do.
func (s *Sharer) due() bool {
	since := time.Since(s.scanned)
	return since >= scanEvery || s.retry > 0 && since >= s.retry || s.changed()
}

// changed tells whether the runtime's directories may be other than at the last
// scan.
func (s *Sharer) changed() bool {
	for _, algorithm := range algorithms() {
		last := s.stamps[algorithm]
		if now := stamp(filepath.Join(s.dir, algorithm)); !now.Equal(last) ||
			!last.IsZero() && s.scanned.Sub(last) < coarse && time.Since(last) >= coarse {
			return true
		}
	}
	return false
}

func algorithms() []string { return []string{"sha256", "sha512"} }

// stamp is when names in a directory changed last, zero when it is not there.
func stamp(dir string) time.Time {
	info, err := os.Stat(dir)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// candidate is a file of the runtime.
type candidate struct {
	digest blob.Digest
	path   string
	held   bool // whole; in a file of the store's own, unless it is shared already
	file   fs.FileInfo
}

// scan brings the store up to what the runtime has. It ends early when the runtime
// has got something new, so that this need not wait. The error is ErrCannotShare or
// ctx's; whatever else fails concerns one blob and is tried again.
func (s *Sharer) scan(ctx context.Context) error {
	for _, algorithm := range algorithms() {
		s.stamps[algorithm] = stamp(filepath.Join(s.dir, algorithm))
	}
	s.scanned = time.Now()
	theirs, err := s.list()
	if err != nil {
		s.retryLater()
		return nil
	}
	late := s.release(theirs)
	var replaced, taken int
	defer func() {
		if replaced+taken > 0 {
			s.log.Info("shares files of the runtime", zap.Int("replaced", replaced), zap.Int("adopted", taken))
		}
	}()
	for _, c := range s.candidates(theirs) {
		done, read, err := s.share(ctx, c)
		switch {
		case errors.Is(err, store.ErrNoSpace): // nor for the next
			s.log.Warn("cannot share files of the runtime; trying again", zap.Stringer("digest", c.digest), zap.Error(err))
			s.retryLater()
			return nil
		case err != nil:
			return err
		case !done:
			late = true
			continue
		case !read:
			continue
		case c.held:
			replaced++
		default:
			taken++
		}
		if s.changed() {
			return nil
		}
	}
	if late {
		s.retryLater()
	} else {
		s.retry = 0
	}
	return nil
}

// retryLater has the next scan come by itself, after longer each time.
func (s *Sharer) retryLater() { s.retry = max(lookEvery, min(2*s.retry, scanEvery)) }

// list is the runtime's blobs: none when its directory is not there, for what it
// kept on this file system is then deleted. An error says that they are not known.
func (s *Sharer) list() (map[blob.Digest]fs.DirEntry, error) {
	_, err := os.Stat(s.dir)
	if absent := errors.Is(err, fs.ErrNotExist); absent != s.absent {
		s.absent = absent
		if absent {
			s.log.Warn("there is no content store of containerd; store.share must name containerd's root directory, as this process sees it", zap.Error(err))
		}
	}
	theirs := map[blob.Digest]fs.DirEntry{}
	for _, algorithm := range algorithms() {
		entries, err := os.ReadDir(filepath.Join(s.dir, algorithm))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("cannot read the runtime's blobs; trying again. This process must be root to read them", zap.Error(err))
			return nil, err
		}
		for _, e := range entries {
			if d, err := blob.ParseDigest(algorithm + ":" + e.Name()); err == nil {
				theirs[d] = e
			}
		}
	}
	return theirs, nil
}

// release makes the store let go of what the runtime has let go of, or has only in a
// file of no use. It tells whether some of that has to wait.
func (s *Sharer) release(theirs map[blob.Digest]fs.DirEntry) (late bool) {
	for _, info := range s.store.Blobs() {
		if !info.Shared || theirs[info.Digest] != nil && !s.settled[info.Digest].useless {
			continue
		}
		err := s.store.Unshare(info.Digest)
		if err != nil && !errors.Is(err, store.ErrInUse) {
			s.log.Warn("cannot let go of a blob that the runtime does not keep any more", zap.Stringer("digest", info.Digest), zap.Error(err))
		}
		late = late || err != nil
	}
	for d := range s.settled {
		if theirs[d] == nil {
			delete(s.settled, d)
		}
	}
	return late
}

// candidates lists what is not shared yet, as far as is known: first what takes its
// room twice, then what the runtime got last. A blob that shared a file which the
// runtime has replaced since takes its room twice too.
func (s *Sharer) candidates(theirs map[blob.Digest]fs.DirEntry) []candidate {
	held := map[blob.Digest]store.Info{}
	for _, info := range s.store.Blobs() {
		held[info.Digest] = info
	}
	var out []candidate
	for d, e := range theirs {
		file, err := e.Info()
		if err != nil {
			continue // it has just gone
		}
		info, ok := held[d]
		if last := s.settled[d]; last.of(file) && (last.useless || info.Shared || !ok) {
			continue
		}
		out = append(out, candidate{digest: d, path: filepath.Join(s.dir, d.Algorithm(), d.Hex()), held: info.Sealed, file: file})
	}
	slices.SortFunc(out, func(a, b candidate) int {
		if a.held != b.held {
			if a.held {
				return -1
			}
			return 1
		}
		return cmp.Or(b.file.ModTime().Compare(a.file.ModTime()), cmp.Compare(a.digest, b.digest))
	})
	return out
}

// share shares one file. It tells whether that is settled now, and whether the file
// was read for it; the error is one that ends the scan.
func (s *Sharer) share(ctx context.Context, c candidate) (done, read bool, err error) {
	err = s.store.Share(ctx, c.digest, c.path, func(ctx context.Context, n int64) error {
		read = true
		return s.pace(ctx, n)
	})
	log := s.log.With(zap.Stringer("digest", c.digest))
	switch {
	case err == nil:
		s.settled[c.digest] = verdict{file: c.file}
		s.works = s.works || read
		if !c.held {
			s.tell(c.digest)
		}
		return true, read, nil
	case ctx.Err() != nil:
		return false, read, fmt.Errorf("share: %w", context.Cause(ctx))
	case errors.Is(err, store.ErrCannotShare) && !s.works, errors.Is(err, store.ErrNoSpace):
		return false, read, err
	case errors.Is(err, store.ErrCannotShare): // others could be shared, so it is this file alone
		s.settled[c.digest] = verdict{file: c.file, useless: true}
		log.Warn("a file of the runtime cannot be shared; the blob is kept twice", zap.String("file", c.path), zap.Error(err))
	case errors.Is(err, fs.ErrNotExist):
		// The runtime's garbage collection was faster; the next scan settles it.
	case errors.Is(err, store.ErrInUse):
		log.Debug("a file of the runtime is shared later", zap.Error(err))
	case errors.Is(err, store.ErrBadDigest):
		s.settled[c.digest] = verdict{file: c.file, useless: true}
		log.Warn("a file of the runtime has not the bytes that its name says; it is not shared. Remove and pull its image again", zap.String("file", c.path))
	default:
		log.Warn("cannot share a file of the runtime; trying again", zap.Error(err))
	}
	return false, read, nil
}

// pace waits as long as n bytes may take.
func (s *Sharer) pace(ctx context.Context, n int64) error {
	d := time.Duration(float64(n) / rate * float64(time.Second))
	if s.busy() {
		d *= busyPart
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
