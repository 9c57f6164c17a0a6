package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/damselfly-p2p/damselfly/dfget/partial"
)

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
