package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// stamp is how a file looks. Nobody writes to a file, puts another in its place or sets
// its times without another stamp: the time of change is the kernel's, and no call sets
// it. Links, renames and modes change it too, with the same bytes.
type stamp struct {
	Inode    uint64 `json:"inode"`
	Size     int64  `json:"size"`
	Modified int64  `json:"modified"` // Unix time in ns, as that of change
	Changed  int64  `json:"changed"`
}

// unproven is no file's stamp: whoever uses the blob next proves it.
func unproven() stamp { return stamp{Size: -1} }

func stampOf(info fs.FileInfo) stamp {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return unproven()
	}
	return stamp{Inode: st.Ino, Size: st.Size, Modified: st.Mtim.Nano(), Changed: st.Ctim.Nano()}
}

// tick is longer than the clock by which the kernel stamps files stands still (10 ms at
// most): a file that was changed less than that ago may be written once more and have
// the same stamp.
const tick = 25 * time.Millisecond

// settle waits until whatever changes the file of s from now on gives it another stamp.
func (s stamp) settle() {
	if left := tick - time.Since(time.Unix(0, s.Changed)); left > 0 {
		pause(context.Background(), min(left, tick))
	}
}

// lease keeps a file from being opened for writing, and knows when somebody tried.
type lease struct{ f *file }

// leased returns a lease on a file of the volume; ErrInUse where somebody can write to
// it, and a lease that does not hold where the file system, or this user, has none.
func (v *volume) leased(name string) (*lease, error) {
	f, err := v.openRead(name)
	if err != nil {
		return nil, err
	}
	err = f.control(func(fd int) error {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
		return err
	})
	if errors.Is(err, unix.EAGAIN) {
		return nil, errors.Join(fmt.Errorf("somebody has the file open for writing: %w", ErrInUse), f.close())
	}
	return &lease{f: f}, nil
}

// held reports whether nobody has opened the file for writing since.
func (l *lease) held() bool {
	err := l.f.control(func(fd int) error {
		kind, err := unix.FcntlInt(uintptr(fd), unix.F_GETLEASE, 0)
		if err == nil && kind != unix.F_RDLCK {
			err = ErrInUse
		}
		return err
	})
	return err == nil
}

func (l *lease) end() { _ = l.f.close() } // only read

func (f *file) control(do func(fd int) error) error {
	raw, err := f.f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	return errors.Join(raw.Control(func(fd uintptr) { failed = do(int(fd)) }), failed)
}

// moved is rename for the file of a blob whose stamp is known: it remembers the one that
// the rename gives it, unless somebody else wrote to it before. The caller holds disk.
func (b *Blob) moved(from, to string) error {
	before, known := b.store.vol.stat(from)
	if err := b.store.vol.rename(from, to); err != nil {
		return err
	}
	after, err := b.store.vol.stat(to)
	if err != nil || known != nil {
		return nil // in doubt, then, which costs a proof
	}
	was, is := stampOf(before), stampOf(after)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed == was && is.Inode == was.Inode && is.Size == was.Size && is.Modified == was.Modified {
		b.changed = is
	}
	return nil
}

// errWritten: the file of a blob is not what was proven.
var errWritten = errors.New("its file was written to")

// reprove proves a blob whose file a runtime has too, and which has another stamp: links
// that the runtime makes and removes change it. It reads the file once for each change. A
// file with other bytes is never mended, for it may be the runtime's: the blob is given up.
func (b *Blob) reprove() error {
	b.proving.Lock()
	defer b.proving.Unlock()
	if doubtful, err := b.doubtful(); err != nil || !doubtful {
		return err
	}
	if err := b.load(); err != nil {
		return err
	}
	// What is open may be our own file still, where a Share was cut short.
	f, err := b.store.vol.openRead(b.wholePath())
	if errors.Is(err, fs.ErrNotExist) {
		f, err = b.store.vol.openRead(b.partPath())
	}
	if err != nil {
		return fmt.Errorf("store: open %s: %w", b.digest, err)
	}
	defer func() { _ = f.close() }() // only read
	// What is mapped for writing gives the file a stamp with its next write only once it
	// is clean. Which error there is, if any, reading tells.
	_ = f.Sync()
	before, err := f.stamp()
	if err != nil {
		return err
	}
	before.settle()
	var p Proof
	if err := b.proveAll(context.Background(), f, &p); err != nil {
		return err
	}
	b.mu.Lock()
	ended := b.err
	b.mu.Unlock()
	if ended != nil {
		return ended
	}
	after, err := f.stamp()
	info, err2 := b.stat()
	if err := errors.Join(err, err2); err != nil {
		return fmt.Errorf("store: look at %s: %w", b.digest, err)
	}
	wrong := after != before || stampOf(info) != after || after.Size != b.layout.Size() || p.Rotten > 0
	if !wrong && p.Pieces != b.layout.Pieces() {
		return fmt.Errorf("store: %s: the disk did not give all of it this time", b.digest)
	}
	if wrong {
		return b.damaged(fmt.Errorf("store: %s: %w: %w", b.digest, ErrDamaged, errWritten))
	}
	b.remember(after)
	b.store.log.Debug("proven again: the file that is shared with the runtime has another stamp", zap.Stringer("digest", b.digest))
	return nil
}

func (f *file) stamp() (stamp, error) {
	info, err := f.f.Stat()
	if err != nil {
		return stamp{}, err
	}
	return stampOf(info), nil
}

// remember sets the stamp of a file that is proven.
func (b *Blob) remember(s stamp) {
	b.mu.Lock()
	b.changed = s
	b.mu.Unlock()
	b.store.marks.Store(true)
}

const (
	// marksFile holds, as JSON, the stamps of files that a runtime has too. A restart proves
	// what it does not name, so losing it costs reading.
	marksFile = "stamps"
	maxMarks  = 64 << 20
)

// readMarks returns the stamps that the last run saved.
func (s *Store) readMarks() map[blob.Digest]stamp {
	out := map[blob.Digest]stamp{}
	data, err := s.vol.readFile(marksFile, maxMarks)
	if errors.Is(err, fs.ErrNotExist) {
		return out
	}
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		s.log.Warn("cannot read what the runtime's files looked like; they are proven again when they are used", zap.Error(err))
		return map[blob.Digest]stamp{}
	}
	return out
}

// saveMarks saves the stamps of files that a runtime has too, if there are new ones.
func (s *Store) saveMarks() {
	if !s.marks.Swap(false) {
		return
	}
	s.mu.Lock()
	blobs := make([]*Blob, 0, len(s.blobs))
	for _, b := range s.blobs {
		blobs = append(blobs, b)
	}
	s.mu.Unlock()
	all := map[blob.Digest]stamp{}
	for _, b := range blobs {
		b.mu.Lock()
		if b.frozen && b.sealed && b.changed != (stamp{}) && b.changed != unproven() {
			all[b.digest] = b.changed
		}
		b.mu.Unlock()
	}
	data, err := json.Marshal(all)
	if err == nil {
		err = s.vol.replaceFile(marksFile, marksFile+".tmp", data, false)
	}
	if err != nil {
		s.log.Warn("cannot save what the runtime's files look like; a restart would prove them again when they are used", zap.Error(err))
	}
}
