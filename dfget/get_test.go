package main

import (
	"bytes"
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
	"testing"
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
	s.sent.Add(int64(len(rest))) // before the client has them and may look
	_, _ = w.Write(rest)
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
