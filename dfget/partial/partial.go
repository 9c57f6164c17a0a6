// Package partial writes a file beside its final name and gives it that name
// when it is whole. A download that is cut leaves its bytes in a hidden file
// with a predictable name, so the same command finds them and goes on.
//
// Everything happens relative to a directory opened once (os.Root): whoever
// renames or replaces that directory, or plants a symbolic link in it, cannot
// make this package write anywhere else. It fetches and verifies nothing; the
// commands and package layout of dfget call it.
package partial

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrBusy is wrapped by Open when another process holds the partial file.
var ErrBusy = errors.New("another dfget is writing it")

// ErrRefused is wrapped when what stands at a path is not something that may be
// replaced or continued: a symbolic link, a directory, a FIFO, a device, a file
// of another user.
var ErrRefused = errors.New("refused")

// Refuse is an error that reads as the format says and wraps ErrRefused.
func Refuse(format string, args ...any) error {
	return &refusal{fmt.Sprintf(format, args...)}
}

type refusal struct{ msg string }

func (r *refusal) Error() string { return r.msg }
func (r *refusal) Unwrap() error { return ErrRefused }

// maxStem bounds how much of the final name goes into the hidden one, so that
// the hidden name stays within the 255 bytes that file systems allow.
const maxStem = 200

// Locate opens the directory that path lies in and returns it with path's last
// element. The directory itself may be reached through symbolic links, as the
// caller's own path says; nothing below it is followed. The caller closes it.
func Locate(path string) (*os.Root, string, error) {
	if path == "" {
		return nil, "", Refuse("the path is empty")
	}
	if strings.HasSuffix(path, string(filepath.Separator)) {
		path = strings.TrimRight(path, string(filepath.Separator))
		if path == "" {
			return nil, "", Refuse("/ is a directory")
		}
	}
	name := filepath.Base(path)
	if name == "." || name == ".." {
		return nil, "", Refuse("%s is a directory", path)
	}
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, "", fmt.Errorf("open the directory of %s: %w", path, err)
	}
	return root, name, nil
}

// Check errs, wrapping ErrRefused, unless name is absent from dir or a regular
// file. It says what stands there.
func Check(dir *os.Root, name string) error {
	info, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", shown(dir, name), err)
	}
	if !info.Mode().IsRegular() {
		return Refuse("%s is %s, not a regular file", shown(dir, name), kind(info.Mode()))
	}
	return nil
}

func kind(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case m&fs.ModeDevice != 0:
		return "a device"
	case m&fs.ModeSocket != 0:
		return "a socket"
	}
	return "a special file"
}

func shown(dir *os.Root, name string) string { return filepath.Join(dir.Name(), name) }

// HiddenName is the name under which the bytes of name wait while they come
// from source. The same name and source give the same hidden name.
func HiddenName(name, source string) string {
	sum := sha256.Sum256([]byte(name + "\x00" + source))
	return "." + name[:min(len(name), maxStem)] + ".dfget-" + hex.EncodeToString(sum[:8])
}

// File is a file that is being written. It is not safe for concurrent use.
type File struct {
	dir    *os.Root
	name   string
	hidden string
	f      *os.File
}

// Open creates the partial file of name in dir, or opens the one that an
// earlier run left for the same source, and locks it until Commit, Discard or
// Close. It errs with ErrRefused when name, or the hidden file, is not a
// regular file that this user may trust, and with ErrBusy when another process
// has it. dir stays the caller's and must outlive the File.
func Open(dir *os.Root, name, source string) (*File, error) {
	if err := Check(dir, name); err != nil {
		return nil, err
	}
	p := &File{dir: dir, name: name, hidden: HiddenName(name, source)}
	// A second try suffices unless others keep finishing the same download.
	for range 10 {
		f, err := openOwn(dir, p.hidden)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("%s: %w", shown(dir, name), ErrBusy)
			}
			return nil, fmt.Errorf("lock %s: %w", shown(dir, p.hidden), err)
		}
		// Between open and lock the previous holder may have renamed the file to
		// its final name; then the lock is on a file that is not ours to write.
		if same(dir, p.hidden, f) {
			p.f = f
			return p, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("%s: %w", shown(dir, name), ErrBusy)
}

// openOwn opens hidden for reading and writing, creating it with mode 0600. A
// file that is there already must be one that only this user can have written:
// in a directory like /tmp its predictable name could be planted.
func openOwn(dir *os.Root, hidden string) (*os.File, error) {
	f, err := dir.OpenFile(hidden, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		return f, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create %s: %w", shown(dir, hidden), err)
	}
	if err := Check(dir, hidden); err != nil {
		return nil, err
	}
	f, err = dir.OpenFile(hidden, os.O_RDWR|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return openOwn(dir, hidden)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", shown(dir, hidden), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("look at %s: %w", shown(dir, hidden), err)
	}
	trusted := st.Mode&unix.S_IFMT == unix.S_IFREG && int(st.Uid) == os.Geteuid() && st.Mode&0o022 == 0
	// No link: the other name might be a file that must not be written. None at
	// all means that the file has just been removed; the caller looks again.
	if !trusted || st.Nlink > 1 {
		f.Close()
		return nil, Refuse("%s was not left by an earlier dfget of this user; remove it first", shown(dir, hidden))
	}
	return f, nil
}

// same tells whether name in dir is the file f itself, not a link to it.
func same(dir *os.Root, name string, f *os.File) bool {
	there, err := dir.Lstat(name)
	if err != nil {
		return false
	}
	opened, err := f.Stat()
	return err == nil && os.SameFile(there, opened)
}

// Resume feeds the bytes that are there to h, in order, and returns how many
// there are. Writes go on behind them.
func (p *File) Resume(h hash.Hash) (int64, error) {
	if _, err := p.f.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("read back %s: %w", shown(p.dir, p.hidden), err)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{p.f}, make([]byte, 1<<20))
	if err != nil {
		return 0, fmt.Errorf("read back %s: %w", shown(p.dir, p.hidden), err)
	}
	return n, nil
}

// Write appends b.
func (p *File) Write(b []byte) (int, error) {
	n, err := p.f.Write(b)
	if err != nil {
		return n, fmt.Errorf("write %s: %w", shown(p.dir, p.name), err)
	}
	return n, nil
}

// Reset drops the bytes written so far, so that the download starts again.
func (p *File) Reset() error {
	if err := p.f.Truncate(0); err != nil {
		return fmt.Errorf("empty %s: %w", shown(p.dir, p.hidden), err)
	}
	_, err := p.f.Seek(0, io.SeekStart)
	return err
}

// Commit makes the bytes durable and gives them their final name, replacing a
// regular file there and keeping that file's permission bits; a new file gets
// perm. It errs with ErrRefused, and keeps the bytes, when something else has
// come to stand at the name meanwhile. The File is closed.
func (p *File) Commit(perm fs.FileMode) error {
	defer p.f.Close()
	if err := Check(p.dir, p.name); err != nil {
		return err
	}
	if info, err := p.dir.Lstat(p.name); err == nil {
		perm = info.Mode().Perm()
	}
	if err := p.f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", shown(p.dir, p.hidden), err)
	}
	if err := p.f.Chmod(perm.Perm()); err != nil {
		return fmt.Errorf("set the mode of %s: %w", shown(p.dir, p.hidden), err)
	}
	if !same(p.dir, p.hidden, p.f) {
		return Refuse("%s was replaced while it was written", shown(p.dir, p.hidden))
	}
	if err := p.dir.Rename(p.hidden, p.name); err != nil {
		return fmt.Errorf("rename %s to %s: %w", shown(p.dir, p.hidden), p.name, err)
	}
	p.dropNote()
	return SyncDir(p.dir)
}

// Discard removes what was written. The File is closed.
func (p *File) Discard() error {
	defer p.f.Close()
	if err := p.dir.Remove(p.hidden); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", shown(p.dir, p.hidden), err)
	}
	p.dropNote()
	return nil
}

// Close keeps what was written for a later run, unless that is nothing. After
// Commit or Discard it does nothing.
func (p *File) Close() error {
	info, err := p.f.Stat()
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	if err == nil && info.Size() == 0 && same(p.dir, p.hidden, p.f) {
		return p.Discard()
	}
	return p.f.Close()
}

// SyncDir makes the names in dir durable.
func SyncDir(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir.Name(), err)
	}
	defer d.Close()
	// Some network file systems do not know fsync of a directory.
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("sync %s: %w", dir.Name(), err)
	}
	return nil
}
