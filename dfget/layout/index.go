package layout

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-p2p/damselfly/dfget/partial"
)

// index reads index.json; an absent one is an empty index.
func (d *Dir) index() (specs.Index, error) {
	x := specs.Index{MediaType: specs.MediaTypeImageIndex}
	x.SchemaVersion = 2
	raw, err := d.root.ReadFile(specs.ImageIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return x, nil
	}
	if err != nil {
		return x, fmt.Errorf("read %s of %s: %w", specs.ImageIndexFile, d.path, err)
	}
	if err := json.Unmarshal(raw, &x); err != nil {
		return x, partial.Refuse("%s of %s is not an image index: %v", specs.ImageIndexFile, d.path, err)
	}
	return x, nil
}

// CheckName errs, wrapping ErrTaken, when the layout holds another image under
// the tag that entry would have.
func (d *Dir) CheckName(entry specs.Descriptor) error {
	x, err := d.index()
	if err != nil {
		return err
	}
	_, err = merge(x, entry, d.path)
	return err
}

// merge puts entry into x in the place of the same image's earlier entry.
func merge(x specs.Index, entry specs.Descriptor, where string) (specs.Index, error) {
	tag, name := entry.Annotations[specs.AnnotationRefName], entry.Annotations[AnnotationImageName]
	var out []specs.Descriptor
	for _, e := range x.Manifests {
		eTag, eName := e.Annotations[specs.AnnotationRefName], e.Annotations[AnnotationImageName]
		sameTag := tag != "" && eTag == tag
		if sameTag && eName != "" && eName != name {
			return x, fmt.Errorf("%w: %s already holds %s under the tag %s", ErrTaken, where, eName, tag)
		}
		if sameTag || tag == "" && eTag == "" && e.Digest == entry.Digest {
			continue
		}
		out = append(out, e)
	}
	x.Manifests = append(out, entry)
	return x, nil
}

// Commit names entry in the index and makes the layout durable under its path.
// Every blob that entry leads to has been put before.
func (d *Dir) Commit(entry specs.Descriptor) error {
	x, err := d.index()
	if err != nil {
		return err
	}
	if x, err = merge(x, entry, d.path); err != nil {
		return err
	}
	if err := d.write(specs.ImageLayoutFile, specs.ImageLayout{Version: specs.ImageLayoutVersion}); err != nil {
		return err
	}
	if err := d.write(specs.ImageIndexFile, x); err != nil {
		return err
	}
	if d.hidden == "" {
		return nil
	}
	if err := d.prune(); err != nil {
		return err
	}
	if err := d.root.Chmod(".", 0o777&^d.umask); err != nil {
		return fmt.Errorf("set the mode of %s: %w", d.path, err)
	}
	if _, err := d.parent.Lstat(d.name); !errors.Is(err, fs.ErrNotExist) {
		return partial.Refuse("%s has come to exist meanwhile", d.path)
	}
	if err := d.parent.Rename(d.hidden, d.name); err != nil {
		return fmt.Errorf("rename %s to %s: %w", d.hidden, d.path, err)
	}
	d.hidden = ""
	return partial.SyncDir(d.parent)
}

func (d *Dir) write(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := partial.Open(d.root, name, "layout")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Reset(); err != nil {
		return err
	}
	if _, err := f.Write(raw); err != nil {
		return err
	}
	return f.Commit(d.FileMode())
}

// prune drops from a staging folder what an earlier run fetched for an image
// that the tag does not name any more.
func (d *Dir) prune() error {
	return fs.WalkDir(d.root.FS(), specs.ImageBlobsDir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if d.kept[path.Join(path.Base(path.Dir(p)), path.Base(p))] {
			return nil
		}
		return d.root.Remove(p)
	})
}
