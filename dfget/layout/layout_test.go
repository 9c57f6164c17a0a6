package layout_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-p2p/damselfly/dfget/layout"
	"github.com/damselfly-p2p/damselfly/dfget/partial"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

const umask = 0o027

func open(t *testing.T, path string) *layout.Dir {
	t.Helper()
	d, err := layout.Open(path, "source", umask)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func entry(body, tag string) specs.Descriptor {
	d := specs.Descriptor{MediaType: specs.MediaTypeImageManifest, Digest: digest.FromString(body), Size: int64(len(body))}
	if tag != "" {
		d.Annotations = map[string]string{specs.AnnotationRefName: tag, layout.AnnotationImageName: "example.com/app:" + tag}
	}
	return d
}

func put(t *testing.T, d *layout.Dir, body string) {
	t.Helper()
	if err := d.Put(blob.FromBytes([]byte(body)), []byte(body)); err != nil {
		t.Fatal(err)
	}
}

func index(t *testing.T, path string) []specs.Descriptor {
	t.Helper()
	var x specs.Index
	raw, err := os.ReadFile(filepath.Join(path, "index.json"))
	if err == nil {
		err = json.Unmarshal(raw, &x)
	}
	if err != nil {
		t.Fatal(err)
	}
	return x.Manifests
}

func TestLayoutAppearsWholeOrNotAtAll(t *testing.T) {
	parent := t.TempDir()
	path := filepath.Join(parent, "app")
	d := open(t, path)
	put(t, d, "one")
	if _, err := os.Lstat(path); err == nil {
		t.Fatal("the folder exists before Commit")
	}
	if _, err := layout.Open(path, "source", umask); !errors.Is(err, partial.ErrBusy) {
		t.Fatalf("a second writer: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	d = open(t, path)
	if held, err := d.Holds(blob.FromBytes([]byte("one")), 3); !held || err != nil {
		t.Fatalf("what an earlier run fetched is gone: %v", err)
	}
	if err := d.Commit(entry("one", "v1")); err != nil {
		t.Fatal(err)
	}
	if got := index(t, path); len(got) != 1 {
		t.Errorf("%+v", got)
	}
	left, _ := os.ReadDir(parent)
	if len(left) != 1 {
		t.Errorf("beside the layout: %v", left)
	}
	for name, want := range map[string]os.FileMode{".": 0o750, "index.json": 0o640, "blobs/sha256/" + digest.FromString("one").Encoded(): 0o640} {
		if info, err := os.Stat(filepath.Join(path, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", name, info.Mode(), err, want)
		}
	}
}

func TestHoldsReadsTheBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app")
	d := open(t, path)
	put(t, d, "right")
	if err := d.Commit(entry("right", "v1")); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = open(t, path)
	file := filepath.Join(path, "blobs/sha256", digest.FromString("right").Encoded())
	for _, wrong := range []string{"wrong", "short"[:3], ""} {
		if err := os.WriteFile(file, []byte(wrong), 0o600); err != nil {
			t.Fatal(err)
		}
		if held, err := d.Holds(blob.FromBytes([]byte("right")), 5); held || err != nil {
			t.Errorf("%q passes for the blob, %v", wrong, err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", file); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Holds(blob.FromBytes([]byte("right")), 5); !errors.Is(err, partial.ErrRefused) {
		t.Errorf("a link in the place of a blob: %v", err)
	}
}

func TestIndexKeepsOtherImages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app")
	for _, c := range []struct {
		body, tag string
		entries   int
	}{{"one", "v1", 1}, {"two", "v2", 2}, {"three", "v1", 2}, {"four", "", 3}, {"four", "", 3}, {"two", "v2", 3}} {
		d := open(t, path)
		put(t, d, c.body)
		if err := d.Commit(entry(c.body, c.tag)); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if got := index(t, path); len(got) != c.entries {
			t.Errorf("after %+v: %d entries", c, len(got))
		}
	}
	d := open(t, path)
	other := entry("five", "v1")
	other.Annotations[layout.AnnotationImageName] = "example.com/other:v1"
	if err := d.CheckName(other); !errors.Is(err, layout.ErrTaken) {
		t.Errorf("another image of the same tag: %v", err)
	}
	if err := os.WriteFile(filepath.Join(path, "index.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(entry("one", "v1")); !errors.Is(err, partial.ErrRefused) {
		t.Errorf("an index that is none was replaced: %v", err)
	}
}

func TestPlantedStagingFolderIsRefused(t *testing.T) {
	for _, plant := range []func(victim, hidden string) error{
		os.Symlink,
		func(_, hidden string) error { return os.WriteFile(hidden, nil, 0o600) },
		func(_, hidden string) error {
			if err := os.Mkdir(hidden, 0o700); err != nil {
				return err
			}
			return os.Chmod(hidden, 0o777)
		},
	} {
		parent := t.TempDir()
		victim := filepath.Join(parent, "victim")
		if err := os.Mkdir(victim, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := plant(victim, filepath.Join(parent, partial.HiddenName("app", "source")+".d")); err != nil {
			t.Fatal(err)
		}
		if _, err := layout.Open(filepath.Join(parent, "app"), "source", umask); !errors.Is(err, partial.ErrRefused) {
			t.Errorf("Open: %v", err)
		}
		if left, _ := os.ReadDir(victim); len(left) > 0 {
			t.Error("a planted link was followed")
		}
	}
}

func TestPackFailsOnABlobThatChanged(t *testing.T) {
	d, err := layout.Stage(filepath.Join(t.TempDir(), "app.tar"), "source", umask)
	if err != nil {
		t.Fatal(err)
	}
	put(t, d, "one")
	var out bytes.Buffer
	desc := entry("one", "v1")
	if err := d.Pack(&out, layout.Archive{Entry: desc, Blobs: []specs.Descriptor{desc}}); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{2, 4} {
		desc.Size = size
		if err := d.Pack(&out, layout.Archive{Entry: desc, Blobs: []specs.Descriptor{desc}}); err == nil {
			t.Errorf("a blob of 3 bytes was packed as one of %d", size)
		}
	}
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
}
