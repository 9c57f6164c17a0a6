package partial_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/damselfly-p2p/damselfly/dfget/partial"
)

func openRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func open(t *testing.T, root *os.Root, name string) *partial.File {
	t.Helper()
	f, err := partial.Open(root, name, "source")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func write(t *testing.T, f *partial.File, s string) {
	t.Helper()
	if _, err := f.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

func TestFileAppearsWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	root := openRoot(t, dir)
	f := open(t, root, "f")
	write(t, f, "hello ")
	hidden := partial.HiddenName("f", "source")
	if got := list(t, dir); got != hidden {
		t.Fatalf("before Commit there is %s", got)
	}
	if info, err := os.Stat(filepath.Join(dir, hidden)); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if err := f.SetNote([]byte("note")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	f = open(t, root, "f")
	if string(f.Note()) != "note" {
		t.Errorf("note is %q", f.Note())
	}
	h := sha256.New()
	if n, err := f.Resume(h); n != 6 || err != nil || !bytes.Equal(h.Sum(nil), sum("hello ")) {
		t.Fatalf("resumed %d bytes, %v", n, err)
	}
	write(t, f, "world")
	if err := f.Commit(0o640); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close after Commit: %v", err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "f")); string(got) != "hello world" || list(t, dir) != "f" {
		t.Errorf("%q in %s", got, list(t, dir))
	}
	if info, err := os.Stat(filepath.Join(dir, "f")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func sum(s string) []byte {
	b := sha256.Sum256([]byte(s))
	return b[:]
}

func TestNothingIsLeftOfNothing(t *testing.T) {
	dir := t.TempDir()
	root := openRoot(t, dir)
	if err := open(t, root, "f").Close(); err != nil {
		t.Fatal(err)
	}
	f := open(t, root, "f")
	write(t, f, "x")
	if err := f.SetNote([]byte("n")); err != nil {
		t.Fatal(err)
	}
	if err := f.Discard(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close after Discard: %v", err)
	}
	if got := list(t, dir); got != "" {
		t.Errorf("left: %s", got)
	}
}

func TestOneWriterAtATime(t *testing.T) {
	root := openRoot(t, t.TempDir())
	f := open(t, root, "f")
	write(t, f, "x")
	if _, err := partial.Open(root, "f", "source"); !errors.Is(err, partial.ErrBusy) {
		t.Errorf("a second writer: %v", err)
	}
	other, err := partial.Open(root, "f", "another source")
	if err != nil {
		t.Fatalf("another source has another hidden file: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if err := f.Commit(0o600); err != nil {
		t.Fatal(err)
	}
	f = open(t, root, "f")
	defer f.Close()
	if n, err := f.Resume(sha256.New()); n != 0 || err != nil {
		t.Errorf("a new file began with %d bytes, %v", n, err)
	}
}

func TestCommitRefusesAReplacedPartialFile(t *testing.T) {
	dir := t.TempDir()
	root := openRoot(t, dir)
	f := open(t, root, "f")
	write(t, f, "right")
	hidden := filepath.Join(dir, partial.HiddenName("f", "source"))
	if err := os.Remove(hidden); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hidden, []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(0o600); !errors.Is(err, partial.ErrRefused) {
		t.Errorf("Commit: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "f")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("bytes of somebody else have the final name")
	}
}

func TestNoteOfSomebodyElseIsNotRead(t *testing.T) {
	dir := t.TempDir()
	root := openRoot(t, dir)
	f := open(t, root, "f")
	defer f.Close()
	write(t, f, "x")
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	note := filepath.Join(dir, partial.HiddenName("f", "source")+".note")
	if err := os.Symlink(secret, note); err != nil {
		t.Fatal(err)
	}
	if got := f.Note(); got != nil {
		t.Errorf("a link was followed to %q", got)
	}
	if err := f.SetNote([]byte("mine")); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(secret); string(got) != "s" {
		t.Error("a link was written through")
	}
}

func TestLocate(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{dir + "/f": "f", dir + "/f///": "f", dir + "/./f": "f"} {
		root, name, err := partial.Locate(path)
		if err != nil || name != want {
			t.Errorf("%s: %q, %v", path, name, err)
			continue
		}
		root.Close()
	}
	for _, path := range []string{"", "/", "//", ".", "..", dir + "/.", dir + "/.."} {
		if root, name, err := partial.Locate(path); err == nil {
			if partial.Check(root, name) == nil {
				t.Errorf("%q is taken for the file %q", path, name)
			}
			root.Close()
		}
	}
}

func TestHiddenNamesFitAndDiffer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringN(1, 255, 255).Draw(t, "name")
		source := rapid.String().Draw(t, "source")
		hidden := partial.HiddenName(name, source)
		if len(hidden)+len(".note") > 255 || hidden[0] != '.' || hidden != partial.HiddenName(name, source) {
			t.Fatalf("%q", hidden)
		}
		if partial.HiddenName(name, source+"x") == hidden || partial.HiddenName(name+"x", source) == hidden {
			t.Fatal("two downloads share a hidden file")
		}
	})
}
