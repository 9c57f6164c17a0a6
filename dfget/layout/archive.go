package layout

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Archive describes a tar of an image layout.
type Archive struct {
	// Entry is the image's descriptor in index.json.
	Entry specs.Descriptor
	// Blobs are all blobs that Entry leads to, each once. Their order is the
	// order in the tar.
	Blobs []specs.Descriptor
	// Docker adds the manifest.json of Docker's save format for this image; nil
	// leaves it out.
	Docker *DockerImage
}

// DockerImage is an entry of Docker's manifest.json (the image spec of the
// moby project, v1.2). Paths in the tar are those of the layout's blobs.
type DockerImage struct {
	Config blob.Digest
	Layers []blob.Digest
	Tags   []string // as docker images shows them: "alpine:3"
}

// Pack writes the archive of d's blobs to w. The same image gives the same
// bytes, whenever and wherever it is packed.
func (d *Dir) Pack(w io.Writer, a Archive) error {
	buffered := bufio.NewWriterSize(w, 1<<20)
	t := &packer{tw: tar.NewWriter(buffered), dirs: map[string]bool{}}
	if err := t.documents(a); err != nil {
		return err
	}
	for _, desc := range a.Blobs {
		if err := d.packBlob(t, blob.Digest(desc.Digest), desc.Size); err != nil {
			return err
		}
	}
	if err := t.tw.Close(); err != nil {
		return fmt.Errorf("end of the archive: %w", err)
	}
	return buffered.Flush()
}

type packer struct {
	tw   *tar.Writer
	dirs map[string]bool
}

func (t *packer) documents(a Archive) error {
	x := specs.Index{MediaType: specs.MediaTypeImageIndex, Manifests: []specs.Descriptor{a.Entry}}
	x.SchemaVersion = 2
	if err := t.document(specs.ImageLayoutFile, specs.ImageLayout{Version: specs.ImageLayoutVersion}); err != nil {
		return err
	}
	if err := t.document(specs.ImageIndexFile, x); err != nil {
		return err
	}
	if a.Docker == nil {
		return nil
	}
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	e := entry{Config: blobPath(a.Docker.Config), RepoTags: a.Docker.Tags, Layers: []string{}}
	for _, l := range a.Docker.Layers {
		e.Layers = append(e.Layers, blobPath(l))
	}
	return t.document("manifest.json", []entry{e})
}

func blobPath(d blob.Digest) string {
	return path.Join(specs.ImageBlobsDir, d.Algorithm(), d.Hex())
}

func (t *packer) document(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := t.header(name, int64(len(raw))); err != nil {
		return err
	}
	_, err = t.tw.Write(raw)
	return err
}

func (t *packer) header(name string, size int64) error {
	return t.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644})
}

// folder writes the entries of a folder and those above it, once.
func (t *packer) folder(name string) error {
	if name == "." || t.dirs[name] {
		return nil
	}
	if err := t.folder(path.Dir(name)); err != nil {
		return err
	}
	t.dirs[name] = true
	return t.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
}

func (d *Dir) packBlob(t *packer, digest blob.Digest, size int64) error {
	name := blobPath(digest)
	dir, err := d.blobs(digest.Algorithm())
	if err != nil {
		return err
	}
	f, err := dir.Open(digest.Hex())
	if err != nil {
		return fmt.Errorf("open blob %s: %w", digest, err)
	}
	defer f.Close()
	if err := t.folder(path.Dir(name)); err != nil {
		return fmt.Errorf("pack %s: %w", digest, err)
	}
	if err := t.header(name, size); err != nil {
		return fmt.Errorf("pack %s: %w", digest, err)
	}
	n, err := io.Copy(t.tw, f)
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != size {
		return fmt.Errorf("pack %s: it has not the %d bytes any more that it had", digest, size)
	}
	if err != nil {
		return fmt.Errorf("pack %s: %w", digest, err)
	}
	return nil
}
