package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-p2p/damselfly/dfget/image"
)

func TestPullOfAWrongLayerLeavesNothing(t *testing.T) {
	reg := newTestRegistry(t)
	img := reg.pushImage("app", "v1", "linux/amd64", 1000, 600_000)
	bad := bytes.Clone(img.bodies[img.layers[1].Digest])
	bad[len(bad)-1] ^= 1
	reg.misbehave(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, img.layers[1].Digest.String()) {
			http.ServeContent(w, r, "", zeroTime(), bytes.NewReader(bad))
			return
		}
		next.ServeHTTP(w, r)
	})
	dir := t.TempDir()
	for _, name := range []string{"app", "app.tar"} {
		path := filepath.Join(dir, name)
		dfget(t, "pull", reg.host+"/app:v1", "-O", path, "--plain-http", "--parallel", "1").want(t, exitIntegrity, img.layers[1].Digest.String())
		if _, err := os.Lstat(path); err == nil {
			t.Fatalf("%s exists", path)
		}
	}
	// What was right is kept for the next try.
	reg.misbehave(nil)
	dfget(t, "pull", reg.host+"/app:v1", "-O", filepath.Join(dir, "app"), "--plain-http").want(t, exitOK, "here already")
	if n := reg.count("GET /v2/app/blobs/" + img.layers[0].Digest.String()); n != 0 {
		t.Errorf("the right layer was fetched again")
	}
	checkLayout(t, filepath.Join(dir, "app"))
}

func TestPullOfAWrongManifest(t *testing.T) {
	reg := newTestRegistry(t)
	img := reg.pushImage("app", "v1", "linux/amd64", 1000)
	dir := t.TempDir()
	path := filepath.Join(dir, "app")
	serve := func(body string) {
		reg.misbehave(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.Header().Set("Content-Type", specs.MediaTypeImageManifest)
				fmt.Fprint(w, body)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	serve(`{"schemaVersion":2,"config":{"digest":"sha256:aa","size":1},"layers":[]}`)
	dfget(t, "pull", reg.host+"/app:v1", "-O", path, "--plain-http").want(t, exitOther, "not an image manifest", "64 hex digits")
	dfget(t, "pull", reg.host+"/app@"+img.manifest.Digest.String(), "-O", path, "--plain-http").want(t, exitIntegrity)
	serve(strings.Repeat(" ", image.MaxManifestSize+1))
	dfget(t, "pull", reg.host+"/app:v1", "-O", path, "--plain-http").want(t, exitOther, "too large")
	serve(`{"schemaVersion":1,"fsLayers":[],"history":[]}`)
	dfget(t, "pull", reg.host+"/app:v1", "-O", path, "--plain-http").want(t, exitOther, "schema 1")
	if left := names(t, dir); len(left) > 0 {
		t.Errorf("failures left %v", left)
	}
}

// An index whose descriptor and manifest disagree must not be believed.
func TestPullVerifiesWhatAnIndexLeadsTo(t *testing.T) {
	reg := newTestRegistry(t)
	_, images := reg.pushIndex("multi", "v1")
	child := images["linux/arm64"].manifest.Digest.String()
	evil := reg.pushImage("multi", "evil", "linux/arm64", 5)
	reg.misbehave(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, child) {
			r.URL.Path = "/v2/multi/manifests/" + evil.manifest.Digest.String()
		}
		next.ServeHTTP(w, r)
	})
	dir := t.TempDir()
	dfget(t, "pull", reg.host+"/multi:v1", "-O", filepath.Join(dir, "x"), "--plain-http", "--platform", "linux/arm64").want(t, exitIntegrity)
	if left := names(t, dir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestPullGoesOnAfterAnInterrupt(t *testing.T) {
	for _, name := range []string{"app", "app.tar"} {
		reg := newTestRegistry(t)
		img := reg.pushImage("app", "v1", "linux/amd64", 500_000, 1_000_000)
		big := img.bodies[img.layers[1].Digest]
		ctx, cancel := context.WithCancel(t.Context())
		hang := make(chan struct{})
		reg.misbehave(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.HasSuffix(r.URL.Path, img.layers[1].Digest.String()) {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			_, _ = w.Write(big[:700_000])
			w.(http.Flusher).Flush()
			<-hang
		})
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		args := []string{"pull", reg.host + "/app:v1", "-O", path, "--plain-http", "--parallel", "1"}
		done := make(chan result)
		go func() { done <- runWith(ctx, testEnv(), append(args, "--direct")...) }()
		waitForTree(t, dir, 1_200_000)
		cancel()
		r := <-done
		close(hang)
		r.want(t, exitInterrupted, "are kept", "same command")
		if _, err := os.Lstat(path); err == nil {
			t.Fatal("an interrupted pull left something at PATH")
		}
		reg.misbehave(nil)
		r = dfget(t, append(args, "--output", "json")...)
		r.want(t, exitOK)
		got := readJSON[pullReport](t, r)
		if got.Kept < 1_200_000 || reg.count(img.layers[0].Digest.String()) != 0 {
			t.Errorf("%s: %d bytes were kept, want those of the first layer and of most of the second", name, got.Kept)
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("%s: left beside it: %v", name, left)
		}
		if name == "app" {
			checkLayout(t, path)
		} else {
			sameImage(t, "docker-archive:"+path, img)
		}
	}
}

func TestPullDropsBlobsOfATagThatMoved(t *testing.T) {
	reg := newTestRegistry(t)
	old := reg.pushImage("app", "v1", "linux/amd64", 500_000, 700)
	reg.misbehave(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, old.layers[1].Digest.String()) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
	path := filepath.Join(t.TempDir(), "app")
	dfget(t, "pull", reg.host+"/app:v1", "-O", path, "--plain-http", "--parallel", "1").want(t, exitAuth)
	reg.misbehave(nil)
	img := reg.pushImage("app", "v1", "linux/amd64", 900)
	dfget(t, "pull", reg.host+"/app:v1", "-O", path, "--plain-http").want(t, exitOK)
	if blobs := names(t, filepath.Join(path, "blobs/sha256")); len(blobs) != 3 {
		t.Errorf("%d blobs, want those of the image alone: %v", len(blobs), blobs)
	}
	sameImage(t, "oci:"+path+":v1", img)
}

func TestPullRefusesOtherPlaces(t *testing.T) {
	reg := newTestRegistry(t)
	reg.pushImage("app", "v1", "linux/amd64", 100)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.Mkdir(at("full"), 0o755), os.WriteFile(at("full/notes.txt"), nil, 0o600), os.WriteFile(at("file"), []byte("old"), 0o600),
		os.Mkdir(at("empty"), 0o755), os.Symlink(at("empty"), at("link")), os.Symlink(at("file"), at("link.tar")), os.Mkdir(at("folder.tar"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, says := range map[string]string{
		"full": "holds notes.txt", "file": "not a folder", "link": "a symbolic link", "link.tar": "a symbolic link", "folder.tar": "a directory",
	} {
		dfget(t, "pull", reg.host+"/app:v1", "-O", at(name), "--plain-http").want(t, exitOther, says)
	}
	if string(mustRead(t, at("file"))) != "old" || len(names(t, at("empty"))) != 0 || len(names(t, at("full"))) != 1 {
		t.Error("something was written where it was refused")
	}
	dfget(t, "pull", reg.host+"/app:v1", "-O", at("empty"), "--plain-http").want(t, exitOK)
	checkLayout(t, at("empty"))
}

func TestSecondPullToTheSamePathIsTold(t *testing.T) {
	reg := newTestRegistry(t)
	reg.pushImage("app", "v1", "linux/amd64", 100)
	begun, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	reg.misbehave(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if once.CompareAndSwap(false, true) {
			close(begun)
			<-release
		}
		next.ServeHTTP(w, r)
	})
	path := filepath.Join(t.TempDir(), "app")
	args := []string{"pull", reg.host + "/app:v1", "-O", path, "--plain-http", "--direct"}
	first := make(chan result)
	go func() { first <- runWith(context.Background(), testEnv(), args...) }()
	<-begun
	dfget(t, args...).want(t, exitOther, "another dfget is writing it")
	close(release)
	r := <-first
	r.want(t, exitOK)
	checkLayout(t, path)
}

func TestPullStatusBecomesExitCode(t *testing.T) {
	reg := newTestRegistry(t)
	dir := t.TempDir()
	dfget(t, "pull", reg.host+"/absent:v1", "-O", filepath.Join(dir, "x"), "--plain-http").want(t, exitNotFound, "404")
	dfget(t, "pull", reg.host+"/absent:v1", "-O", filepath.Join(dir, "x")).want(t, exitOriginDown, "--plain-http")
	if left := names(t, dir); len(left) > 0 {
		t.Errorf("failures left %v", left)
	}
}
