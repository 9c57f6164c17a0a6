package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/damselfly-p2p/damselfly/dfget/partial"
)

func TestGetRefusesWhatIsNoFile(t *testing.T) {
	srv := newFileServer(t, []byte("new"))
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.Symlink(victim, at("link")), os.Symlink(at("absent"), at("dangling")), os.Mkdir(at("folder"), 0o755), syscall.Mkfifo(at("fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, says := range map[string]string{"link": "a symbolic link", "dangling": "a symbolic link", "folder": "a directory", "fifo": "a FIFO"} {
		dfget(t, "get", srv.URL, "-O", at(name)).want(t, exitOther, says)
	}
	dfget(t, "get", srv.URL, "-O", "/dev/null").want(t, exitOther, "a device")
	dfget(t, "get", srv.URL, "-O", dir+"/").want(t, exitOther, "a directory")
	dfget(t, "get", srv.URL, "-O", at("missing/f")).want(t, exitOther, "no such file or directory")
	if string(mustRead(t, victim)) != "old" {
		t.Error("the link was followed")
	}
	if _, err := os.Lstat(at("absent")); err == nil {
		t.Error("the dangling link was followed")
	}
	// The folder itself may be a link: that is the user's own path.
	if err := os.Symlink(at("folder"), at("shortcut")); err != nil {
		t.Fatal(err)
	}
	dfget(t, "get", srv.URL, "-O", at("shortcut/f")).want(t, exitOK)
	if string(mustRead(t, at("folder/f"))) != "new" {
		t.Error("the file did not arrive")
	}
}

// A file in /tmp has a hidden name that others can foresee and plant.
func TestGetRefusesAPlantedPartialFile(t *testing.T) {
	srv := newFileServer(t, []byte("new"))
	for _, plant := range []func(victim, hidden string) error{
		os.Symlink,
		os.Link,
		func(_, hidden string) error { return syscall.Mkfifo(hidden, 0o600) },
		func(_, hidden string) error {
			if err := os.WriteFile(hidden, []byte("x"), 0o600); err != nil {
				return err
			}
			return os.Chmod(hidden, 0o666)
		},
	} {
		dir := t.TempDir()
		victim := filepath.Join(dir, "victim")
		if err := os.WriteFile(victim, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		hidden := filepath.Join(dir, partial.HiddenName("f", "url "+srv.URL))
		if err := plant(victim, hidden); err != nil {
			t.Fatal(err)
		}
		r := dfget(t, "get", srv.URL, "-O", filepath.Join(dir, "f"))
		if r.code != exitOther || !strings.Contains(r.errOut, hidden) {
			t.Errorf("exit code %d, %s", r.code, r.errOut)
		}
		if string(mustRead(t, victim)) != "old" {
			t.Error("a planted name was written through")
		}
	}
}

// While bytes come, somebody swaps the folder for a link to another one, and
// plants a link at the final name.
func TestGetIsNotRedirectedByASwap(t *testing.T) {
	base := t.TempDir()
	folder, moved, evil := filepath.Join(base, "folder"), filepath.Join(base, "moved"), filepath.Join(base, "evil")
	for _, d := range []string{folder, evil} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	body := noise(500_000, 13)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(body[:1000])
		w.(http.Flusher).Flush()
		if err := os.Rename(folder, moved); err != nil {
			t.Error(err)
		}
		if err := os.Symlink(evil, folder); err != nil {
			t.Error(err)
		}
		_, _ = w.Write(body[1000:])
	}))
	defer srv.Close()
	dfget(t, "get", srv.URL, "-O", filepath.Join(folder, "f")).want(t, exitOK)
	if left := names(t, evil); len(left) > 0 {
		t.Fatalf("written through the swapped folder: %v", left)
	}
	if !bytes.Equal(mustRead(t, filepath.Join(moved, "f")), body) {
		t.Fatal("the file is not in the folder that was named")
	}
}

func TestGetRefusesALinkThatCameMeanwhile(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := os.Symlink(victim, filepath.Join(dir, "f")); err != nil {
			t.Error(err)
		}
		_, _ = w.Write([]byte("new"))
	}))
	defer srv.Close()
	dfget(t, "get", srv.URL, "-O", filepath.Join(dir, "f")).want(t, exitOther, "a symbolic link")
	if string(mustRead(t, victim)) != "old" {
		t.Error("the link was followed")
	}
}

func TestSecondGetOfTheSamePathIsTold(t *testing.T) {
	release := make(chan struct{})
	begun := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("some"))
		w.(http.Flusher).Flush()
		close(begun)
		<-release
	}))
	defer srv.Close()
	path := filepath.Join(t.TempDir(), "f")
	first := make(chan result)
	go func() { first <- runWith(context.Background(), testEnv(), "get", srv.URL, "-O", path, "--direct") }()
	<-begun
	dfget(t, "get", srv.URL, "-O", path).want(t, exitOther, "another dfget is writing it")
	close(release)
	r := <-first
	r.want(t, exitOK)
	if string(mustRead(t, path)) != "some" {
		t.Error("the second run damaged the first one's file")
	}
}
