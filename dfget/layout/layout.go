// Package layout writes an image as an OCI image layout: a folder
// (image-layout.md of the OCI image spec), or a tar of one that Docker loads
// too.
//
// A folder that does not exist yet is built in a hidden place beside its name
// and appears whole or not at all; in one that exists only index.json decides
// what it holds, and that is replaced last. The package fetches nothing: its
// caller, the pull command of dfget, writes blobs through partial.File.
package layout

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"syscall"

	specs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/damselfly-p2p/damselfly/dfget/partial"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// AnnotationImageName is where containerd and Docker keep an image's full name
// in an index; the OCI annotation ref.name holds the tag.
const AnnotationImageName = "io.containerd.image.name"

// ErrTaken is wrapped when a layout already holds another image under a tag.
var ErrTaken = errors.New("tag is taken")

// Dir is an image layout that is being written. Blob, Put and Holds may be
// called concurrently for different digests.
type Dir struct {
	umask  fs.FileMode
	path   string
	parent *os.Root
	name   string
	hidden string // name of the staging folder, "" when writing in place
	root   *os.Root
	lock   *os.File
	locked bool

	mu   sync.Mutex
	algs map[string]*os.Root
	kept map[string]bool // blobs that belong to the image, as algorithm/hex
}

// Open prepares the folder at path for an image. When there is nothing at path,
// blobs collect in a staging folder beside it whose name follows from source, so
// that a later run with the same source goes on; Commit gives it its name. An
// empty folder or an image layout is written in place. Anything else is refused
// (partial.ErrRefused), and so is a folder that another dfget writes
// (partial.ErrBusy).
func Open(path, source string, umask fs.FileMode) (*Dir, error) {
	parent, name, err := partial.Locate(path)
	if err != nil {
		return nil, err
	}
	d := &Dir{umask: umask, path: path, parent: parent, name: name, algs: map[string]*os.Root{}, kept: map[string]bool{}}
	if err := d.open(source); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Stage opens the staging folder of the file at path, in which the blobs of an
// archive collect. It never takes path's name; Remove ends it.
func Stage(path, source string, umask fs.FileMode) (*Dir, error) {
	parent, name, err := partial.Locate(path)
	if err != nil {
		return nil, err
	}
	d := &Dir{umask: umask, path: path, parent: parent, name: name, algs: map[string]*os.Root{}, kept: map[string]bool{}}
	err = partial.Check(parent, name)
	if err == nil {
		err = d.stage(source)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Dir) open(source string) error {
	info, err := d.parent.Lstat(d.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d.stage(source)
	case err != nil:
		return fmt.Errorf("look at %s: %w", d.path, err)
	case info.Mode()&fs.ModeSymlink != 0:
		return partial.Refuse("%s is a symbolic link; name the folder it leads to", d.path)
	case !info.IsDir():
		return partial.Refuse("%s exists and is not a folder; an image layout is one (name it *.tar for an archive)", d.path)
	}
	if err := d.enter(d.name, info); err != nil {
		return err
	}
	_, err = d.root.Lstat(specs.ImageLayoutFile)
	if err == nil {
		return nil
	}
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("read %s: %w", d.path, err)
	}
	for _, e := range entries {
		// What an interrupted run in place leaves.
		if e.Name() != specs.ImageBlobsDir {
			return partial.Refuse("%s holds %s and is no OCI image layout; name an empty or a new folder", d.path, e.Name())
		}
	}
	return nil
}

// stage makes or finds the staging folder.
func (d *Dir) stage(source string) error {
	d.hidden = partial.HiddenName(d.name, source) + ".d"
	err := d.parent.Mkdir(d.hidden, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make a folder beside %s: %w", d.path, err)
	}
	info, err := d.parent.Lstat(d.hidden)
	if err != nil {
		return fmt.Errorf("look at %s: %w", d.hidden, err)
	}
	if !info.IsDir() || !own(info) || info.Mode().Perm()&0o022 != 0 {
		return partial.Refuse("%s beside %s was not left by an earlier dfget of this user; remove it first", d.hidden, d.path)
	}
	return d.enter(d.hidden, info)
}

func own(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// enter opens the folder name, which must be the one that info describes, and
// locks it.
func (d *Dir) enter(name string, info fs.FileInfo) error {
	root, err := d.parent.OpenRoot(name)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.path, err)
	}
	d.root = root
	if d.lock, err = root.Open("."); err != nil {
		return fmt.Errorf("open %s: %w", d.path, err)
	}
	opened, err := d.lock.Stat()
	if err != nil {
		return fmt.Errorf("look at %s: %w", d.path, err)
	}
	if !os.SameFile(info, opened) {
		return partial.Refuse("%s was replaced meanwhile", d.path)
	}
	err = unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s: %w", d.path, partial.ErrBusy)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", d.path, err)
	}
	// Whoever held the lock before may have given the folder its final name, or
	// removed it.
	if now, err := d.parent.Lstat(name); err != nil || !os.SameFile(now, opened) {
		return fmt.Errorf("%s: %w", d.path, partial.ErrBusy)
	}
	d.locked = true
	return nil
}

// blobs is the folder of one digest algorithm.
func (d *Dir) blobs(alg string) (*os.Root, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r, ok := d.algs[alg]; ok {
		return r, nil
	}
	at := path.Join(specs.ImageBlobsDir, alg)
	if err := d.root.MkdirAll(at, 0o777); err != nil {
		return nil, fmt.Errorf("make %s in %s: %w", at, d.path, err)
	}
	r, err := d.root.OpenRoot(at)
	if err != nil {
		return nil, fmt.Errorf("open %s in %s: %w", at, d.path, err)
	}
	d.algs[alg] = r
	return r, nil
}

func (d *Dir) keep(digest blob.Digest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.kept[path.Join(digest.Algorithm(), digest.Hex())] = true
}

// Holds tells whether the blob is there, whole and right: it is read and hashed.
// A wrong one is left for Blob to replace.
func (d *Dir) Holds(digest blob.Digest, size int64) (bool, error) {
	d.keep(digest)
	dir, err := d.blobs(digest.Algorithm())
	if err != nil {
		return false, err
	}
	info, err := dir.Lstat(digest.Hex())
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular() && info.Size() != size {
		return false, nil
	}
	if err == nil {
		err = partial.Check(dir, digest.Hex())
	}
	if err != nil {
		return false, err
	}
	f, err := dir.Open(digest.Hex())
	if err != nil {
		return false, fmt.Errorf("open blob %s in %s: %w", digest, d.path, err)
	}
	defer f.Close()
	h := digest.Hash()
	if err := copyHash(h, f); err != nil {
		return false, fmt.Errorf("read blob %s in %s: %w", digest, d.path, err)
	}
	return blob.Of(digest.Algorithm(), h) == digest, nil
}

func copyHash(h hash.Hash, r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{r}, make([]byte, 1<<20))
	return err
}

// Blob opens the partial file of a blob. Its Commit puts the blob into the
// layout; the caller has proven the bytes before.
func (d *Dir) Blob(digest blob.Digest) (*partial.File, error) {
	d.keep(digest)
	dir, err := d.blobs(digest.Algorithm())
	if err != nil {
		return nil, err
	}
	return partial.Open(dir, digest.Hex(), "blob "+string(digest))
}

// Put writes a small blob that the caller has proven.
func (d *Dir) Put(digest blob.Digest, body []byte) error {
	ok, err := d.Holds(digest, int64(len(body)))
	if ok || err != nil {
		return err
	}
	f, err := d.Blob(digest)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Reset(); err != nil {
		return err
	}
	if _, err := f.Write(body); err != nil {
		return err
	}
	return f.Commit(d.FileMode())
}

// FileMode is the mode of a file that everybody may read whom the umask lets.
func (d *Dir) FileMode() fs.FileMode { return 0o666 &^ d.umask }

// Remove deletes a staging folder and closes it.
func (d *Dir) Remove() error {
	hidden := d.hidden
	if hidden == "" {
		return d.Close()
	}
	err := d.parent.RemoveAll(hidden)
	return errors.Join(err, d.Close())
}

// Close releases the folder. What was fetched stays for a later run; an empty
// staging folder goes.
func (d *Dir) Close() error {
	if d.hidden != "" && d.locked {
		// Remove deletes a folder only when nothing is in it.
		_ = d.parent.Remove(path.Join(d.hidden, specs.ImageBlobsDir, "sha256"))
		_ = d.parent.Remove(path.Join(d.hidden, specs.ImageBlobsDir))
		_ = d.parent.Remove(d.hidden)
	}
	for _, r := range d.algs {
		r.Close()
	}
	if d.lock != nil {
		d.lock.Close()
	}
	if d.root != nil {
		d.root.Close()
	}
	return d.parent.Close()
}
