package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/damselfly-p2p/damselfly/dfget/partial"
)

// fileServer serves one file, with ranges and an ETag, unless a test says other.
type fileServer struct {
	*httptest.Server
	body     []byte
	etag     string
	cutAfter atomic.Int64 // bytes after which a response breaks; 0 = never
	fail     atomic.Int64 // status of all responses; 0 = none
	plain    bool         // no ranges, no validator
	ranges   atomic.Int64 // requests with a Range
	sent     atomic.Int64
	header   atomic.Pointer[http.Header] // of the latest request
}

func newFileServer(t *testing.T, body []byte) *fileServer {
	t.Helper()
	s := &fileServer{body: body, etag: `"v1"`}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Server.Close)
	return s
}

func (s *fileServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := r.Header.Clone()
	s.header.Store(&h)
	if code := s.fail.Load(); code != 0 {
		w.WriteHeader(int(code))
		return
	}
	off := 0
	if v, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && !s.plain {
		s.ranges.Add(1)
		if r.Header.Get("If-Range") == "" || r.Header.Get("If-Range") == s.etag {
			off, _ = strconv.Atoi(strings.TrimSuffix(v, "-"))
		}
	}
	if !s.plain {
		w.Header().Set("ETag", s.etag)
	}
	w.Header().Set("Content-Type", "application/x-test")
	rest := s.body[off:]
	w.Header().Set("Content-Length", strconv.Itoa(len(rest)))
	if off > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, len(s.body)-1, len(s.body)))
		w.WriteHeader(http.StatusPartialContent)
	}
	if n := int(s.cutAfter.Load()); n > 0 && n < len(rest) {
		rest = rest[:n]
	}
	n, _ := w.Write(rest)
	s.sent.Add(int64(n))
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func readJSON[T any](t *testing.T, r result) T {
	t.Helper()
	var v T
	dec := json.NewDecoder(strings.NewReader(r.out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("standard output is not the JSON object: %v\n%s", err, r.out)
	}
	return v
}

func TestGetURL(t *testing.T) {
	srv := newFileServer(t, noise(700_000, 1))
	path := filepath.Join(t.TempDir(), "f")
	dfget(t, "get", srv.URL+"/f?token=secret", "-O", path).want(t, exitOK, "683.6 KiB in", "from the origin", digestOf(srv.body))
	if !bytes.Equal(mustRead(t, path), srv.body) {
		t.Fatal("the file has other bytes")
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Fatalf("mode %v, %v; want what the umask leaves of 0666", info.Mode(), err)
	}
	if left := names(t, filepath.Dir(path)); len(left) != 1 {
		t.Fatalf("left beside the file: %v", left)
	}

	// An existing file is replaced and keeps its mode.
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	srv.body, srv.etag = noise(10, 2), `"v2"`
	r := dfget(t, "get", srv.URL+"/f?token=secret", "-O", path, "--output", "json")
	r.want(t, exitOK)
	got := readJSON[getReport](t, r)
	if got.Bytes != 10 || got.Fetched != 10 || got.Digest != digestOf(srv.body) || got.Source != "origin" || got.Seconds <= 0 ||
		got.Path != path || got.MediaType != "application/x-test" {
		t.Errorf("JSON object: %+v", got)
	}
	if strings.Contains(r.out+r.errOut, "secret") {
		t.Error("a URL's query, which may be a signature, is shown")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 || !bytes.Equal(mustRead(t, path), srv.body) {
		t.Errorf("after replacing: mode %v, %v", info.Mode(), err)
	}
}

func TestGetEmptyAndUnsizedFiles(t *testing.T) {
	dir := t.TempDir()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/chunked" {
			for range 3 {
				_, _ = w.Write(noise(100_000, 3))
				w.(http.Flusher).Flush()
			}
		}
	}))
	defer srv.Close()
	for name, size := range map[string]int{"empty": 0, "chunked": 300_000} {
		path := filepath.Join(dir, name)
		dfget(t, "get", srv.URL+"/"+name, "-O", path).want(t, exitOK)
		if got := len(mustRead(t, path)); got != size {
			t.Errorf("%s: %d bytes, want %d", name, got, size)
		}
	}
	path := filepath.Join(dir, "proven")
	dfget(t, "get", srv.URL+"/empty", "--digest", digestOf(nil), "-O", path).want(t, exitOK)
	if got := mustRead(t, path); len(got) != 0 {
		t.Errorf("%d bytes", len(got))
	}
}

func TestGetWrongDigestLeavesNothing(t *testing.T) {
	srv := newFileServer(t, noise(300_000, 4))
	dir := t.TempDir()
	r := dfget(t, "get", srv.URL, "-O", filepath.Join(dir, "f"), "--digest", digestOf([]byte("other")), "--output", "json")
	r.want(t, exitIntegrity, "wrong", digestOf(srv.body))
	if left := names(t, dir); len(left) > 0 {
		t.Fatalf("wrong bytes were left: %v", left)
	}
	got := readJSON[struct {
		Ref   string
		Error failure
	}](t, r)
	if got.Error.Code != exitIntegrity || got.Error.Kind != "integrity" || got.Error.Message == "" {
		t.Errorf("JSON of the error: %+v", got)
	}
	// A file that was there stays.
	path := filepath.Join(dir, "kept")
	if err := os.WriteFile(path, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	dfget(t, "get", srv.URL, "-O", path, "--digest", digestOf(nil)).want(t, exitIntegrity)
	if string(mustRead(t, path)) != "before" {
		t.Error("the file that was there was damaged")
	}
}

func TestGetStatusBecomesExitCode(t *testing.T) {
	for status, code := range map[int]int{
		401: exitAuth, 403: exitAuth, 404: exitNotFound, 410: exitNotFound, 429: exitOriginDown, 500: exitOriginDown, 503: exitOriginDown, 418: exitOther,
	} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			srv := newFileServer(t, nil)
			srv.fail.Store(int64(status))
			dir := t.TempDir()
			dfget(t, "get", srv.URL, "-O", filepath.Join(dir, "f")).want(t, code, strconv.Itoa(status))
			if left := names(t, dir); len(left) > 0 {
				t.Errorf("the failure left %v", left)
			}
		})
	}
	srv := newFileServer(t, nil)
	srv.Close()
	dfget(t, "get", srv.URL, "-O", filepath.Join(t.TempDir(), "f")).want(t, exitOriginDown, "refused")
}

func TestGetGoesOnAfterACut(t *testing.T) {
	srv := newFileServer(t, noise(1_000_000, 5))
	srv.cutAfter.Store(300_000)
	path := filepath.Join(t.TempDir(), "f")
	dfget(t, "get", srv.URL, "-O", path).want(t, exitOK)
	if !bytes.Equal(mustRead(t, path), srv.body) {
		t.Fatal("the joined parts have other bytes")
	}
	if srv.sent.Load() != 1_000_000 || srv.ranges.Load() != 3 {
		t.Errorf("%d bytes were sent in %d further ranges, want no byte twice", srv.sent.Load(), srv.ranges.Load())
	}
}

// interruptedGet lets a download break for good after the first part.
func interruptedGet(t *testing.T, srv *fileServer, path string, args ...string) {
	t.Helper()
	srv.cutAfter.Store(400_000)
	handler := srv.Config.Handler
	var n atomic.Int64
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) > 1 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		handler.ServeHTTP(w, r)
	})
	dfget(t, append([]string{"get", srv.URL, "-O", path}, args...)...).want(t, exitAuth, "403")
	srv.Config.Handler = handler
	srv.cutAfter.Store(0)
	srv.sent.Store(0)
	if _, err := os.Lstat(path); err == nil {
		t.Fatal("a file that is not whole has its final name")
	}
}

func TestGetResumesInALaterRun(t *testing.T) {
	for _, withDigest := range []bool{false, true} {
		srv := newFileServer(t, noise(1_000_000, 6))
		dir := t.TempDir()
		path := filepath.Join(dir, "f")
		var args []string
		if withDigest {
			args = []string{"--digest", digestOf(srv.body)}
		}
		interruptedGet(t, srv, path, args...)
		r := dfget(t, append([]string{"get", srv.URL, "-O", path, "--output", "json"}, args...)...)
		r.want(t, exitOK)
		got := readJSON[getReport](t, r)
		if got.Kept != 400_000 || got.Fetched != 600_000 || srv.sent.Load() != 600_000 {
			t.Errorf("digest %v: kept %d, fetched %d, sent %d; want what had come to be kept", withDigest, got.Kept, got.Fetched, srv.sent.Load())
		}
		if !bytes.Equal(mustRead(t, path), srv.body) {
			t.Error("the joined parts have other bytes")
		}
		if left := names(t, dir); len(left) != 1 {
			t.Errorf("left beside the file: %v", left)
		}
	}
}

func TestGetStartsAgainWhenTheFileChanged(t *testing.T) {
	srv := newFileServer(t, noise(1_000_000, 7))
	path := filepath.Join(t.TempDir(), "f")
	interruptedGet(t, srv, path)
	srv.body, srv.etag = noise(900_000, 8), `"v2"`
	dfget(t, "get", srv.URL, "-O", path).want(t, exitOK)
	if !bytes.Equal(mustRead(t, path), srv.body) {
		t.Fatal("bytes of two versions were mixed")
	}

	// Without a validator nobody can tell, so nothing is kept.
	srv.plain = true
	srv.body = noise(1_000_000, 9)
	interruptedGet(t, srv, path+"2")
	srv.body = noise(1_000_000, 10)
	dfget(t, "get", srv.URL, "-O", path+"2").want(t, exitOK)
	if !bytes.Equal(mustRead(t, path+"2"), srv.body) {
		t.Fatal("bytes of two versions were mixed")
	}
}

func TestGetMendsADamagedPart(t *testing.T) {
	srv := newFileServer(t, noise(1_000_000, 11))
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	digest := digestOf(srv.body)
	interruptedGet(t, srv, path, "--digest", digest)
	part := filepath.Join(dir, partial.HiddenName("f", "digest "+digest))
	bytesThere := mustRead(t, part)
	bytesThere[1000] ^= 1
	if err := os.WriteFile(part, bytesThere, 0o600); err != nil {
		t.Fatal(err)
	}
	dfget(t, "get", srv.URL, "-O", path, "--digest", digest).want(t, exitOK, "fetching it again")
	if !bytes.Equal(mustRead(t, path), srv.body) {
		t.Fatal("the file has other bytes")
	}
}

func TestGetFromAServerWithoutRanges(t *testing.T) {
	srv := newFileServer(t, noise(1_000_000, 12))
	path := filepath.Join(t.TempDir(), "f")
	digest := digestOf(srv.body)
	srv.plain = true
	interruptedGet(t, srv, path, "--digest", digest)
	dfget(t, "get", srv.URL, "-O", path, "--digest", digest).want(t, exitOK)
	if !bytes.Equal(mustRead(t, path), srv.body) {
		t.Fatal("the file has other bytes")
	}
}

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

func TestGetInterruptedKeepsWhatCame(t *testing.T) {
	body := noise(1_000_000, 14)
	hang := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := true
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"x"`)
		if !first {
			http.ServeContent(w, r, "", zeroTime(), bytes.NewReader(body))
			return
		}
		first = false
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:600_000])
		w.(http.Flusher).Flush()
		<-hang
	}))
	defer srv.Close()
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	done := make(chan result)
	go func() { done <- runWith(ctx, testEnv(), "get", srv.URL, "-O", path, "--direct") }()
	waitForBytes(t, filepath.Join(dir, partial.HiddenName("f", "url "+srv.URL)), 600_000)
	cancel()
	r := <-done
	close(hang)
	r.want(t, exitInterrupted, "interrupted", "585.9 KiB of 976.6 KiB are kept", "same command")
	r = dfget(t, "get", srv.URL, "-O", path, "--output", "json")
	r.want(t, exitOK)
	if got := readJSON[getReport](t, r); got.Kept != 600_000 || !bytes.Equal(mustRead(t, path), body) {
		t.Errorf("%d bytes were kept, want 600000", got.Kept)
	}
}

func TestGetTimeout(t *testing.T) {
	hang := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("x"))
		w.(http.Flusher).Flush()
		<-hang
	}))
	defer srv.Close()
	defer close(hang)
	dfget(t, "get", srv.URL, "-O", filepath.Join(t.TempDir(), "f"), "--timeout", "100ms").want(t, exitTimeout, "--timeout")
}

func TestGetToStandardOutput(t *testing.T) {
	srv := newFileServer(t, noise(1_000_000, 15))
	srv.cutAfter.Store(300_000)
	r := dfget(t, "get", srv.URL, "-O", "-", "--progress", "bar")
	r.want(t, exitOK)
	if r.out != string(srv.body) {
		t.Fatal("standard output has other bytes")
	}
	// Whoever reads must not get to the end of wrong bytes.
	r = dfget(t, "get", srv.URL, "-O", "-", "--digest", digestOf(nil))
	r.want(t, exitIntegrity)
	if len(r.out) >= len(srv.body) {
		t.Error("all wrong bytes were passed on")
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	var errOut lockedBuffer
	code := run(t.Context(), []string{"get", srv.URL, "-O", "-", "--direct"}, process{Out: full, Err: &errOut, Env: testEnv()})
	result{code: code, errOut: errOut.String()}.want(t, exitNoSpace, "no space left", "free some space")
}

func TestGetHeadersStayWithTheOrigin(t *testing.T) {
	other := newFileServer(t, []byte("moved"))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Private-Token") != "t0p" || r.Header.Get("Authorization") != "Bearer b" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, other.URL, http.StatusFound)
	}))
	defer srv.Close()
	path := filepath.Join(t.TempDir(), "f")
	dfget(t, "get", srv.URL, "-O", path).want(t, exitAuth, `--header "Authorization: ..."`)
	dfget(t, "get", srv.URL, "-O", path, "-H", "Private-Token: t0p", "-H", "Authorization: Bearer b").want(t, exitOK)
	got := *other.header.Load()
	if got.Get("Private-Token") != "" || got.Get("Authorization") != "" {
		t.Errorf("the redirect's target was sent %v", got)
	}
	if string(mustRead(t, path)) != "moved" {
		t.Error("the redirect was not followed")
	}
}

func TestGetVerifiesCertificates(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("tls")) }))
	defer srv.Close()
	srv.Config.ErrorLog = nil
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	dfget(t, "get", srv.URL, "-O", path).want(t, exitOriginDown, "certificate", "--ca FILE")
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	dfget(t, "get", srv.URL, "-O", path, "--ca", ca).want(t, exitOK)
	if string(mustRead(t, path)) != "tls" {
		t.Error("the file has other bytes")
	}
}
