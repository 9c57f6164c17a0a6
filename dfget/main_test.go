package main

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Connections of http.DefaultClient, with which the tests push, stay idle
		// until their servers close.
		goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"),
		goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"))
}

// result is what a user sees of a run.
type result struct {
	code        int
	out, errOut string
}

// lockedBuffer lets the command's goroutines and the test share a buffer.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// env is an environment in which no daemon runs and there is no credential.
func testEnv(pairs ...string) func(string) string {
	env := map[string]string{"HOME": "/nonexistent", "DAMSELFLY_MIRROR": ""}
	for i := 0; i < len(pairs); i += 2 {
		env[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return env[name] }
}

func runWith(ctx context.Context, env func(string) string, args ...string) result {
	var out, errOut lockedBuffer
	code := run(ctx, args, process{In: strings.NewReader(""), Out: &out, Err: &errOut, Env: env, Umask: 0o022, Pause: time.Millisecond})
	return result{code, out.String(), errOut.String()}
}

// dfget runs a command line without a daemon.
func dfget(t *testing.T, args ...string) result {
	t.Helper()
	if !slices.Contains(args, "--mirror") && !slices.Contains(args, "--direct") && len(args) > 0 && (args[0] == "get" || args[0] == "pull") {
		args = append(args, "--direct")
	}
	return runWith(t.Context(), testEnv(), args...)
}

// want fails the test unless the run ended with code and told each of texts.
func (r result) want(t *testing.T, code int, texts ...string) {
	t.Helper()
	if r.code != code {
		t.Fatalf("exit code %d, want %d\nstdout: %s\nstderr: %s", r.code, code, r.out, r.errOut)
	}
	for _, s := range texts {
		if !strings.Contains(r.out+r.errOut, s) {
			t.Fatalf("nothing says %q\nstdout: %s\nstderr: %s", s, r.out, r.errOut)
		}
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// names lists all names below dir.
func names(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); rel != "." {
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUsageErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"pul"}, "did you mean: dfget pull"},
		{[]string{"https://example.com/f"}, "dfget get URL"},
		{[]string{"get"}, "no URL or IMAGE"},
		{[]string{"get", "a", "b"}, "one URL or IMAGE at a time"},
		{[]string{"get", "https://example.com/f"}, "-O PATH"},
		{[]string{"get", "https://example.com/f", "--nope"}, "--nope"},
		{[]string{"get", "https://example.com/f", "-O", path, "--digest", "sha256:12"}, "64 hex digits"},
		{[]string{"get", "ftp://example.com/f", "-O", path}, "http or https"},
		{[]string{"get", "https://u:secret@example.com/f", "-O", path}, "Authorization"},
		{[]string{"get", "alpine:a b", "-O", path}, "alpine:a b"},
		{[]string{"get", "alpine", "-O", path, "-H", "X-Y: z"}, "registries get only"},
		{[]string{"get", "https://example.com/f", "-O", path, "-H", "Range: bytes=0-1"}, "sets this header itself"},
		{[]string{"get", "https://example.com/f", "-O", path, "-H", "no colon"}, `"Name: value"`},
		{[]string{"get", "https://example.com/f", "-O", path, "--direct", "--mirror-only"}, "exclude"},
		{[]string{"get", "https://example.com/f", "-O", path, "--mirror", "nonsense"}, "scheme://host:port"},
		{[]string{"get", "https://example.com/f", "-O", path, "--progress", "loud"}, "auto, bar, plain or none"},
		{[]string{"get", "https://example.com/f", "-O", path, "--output", "xml"}, "text or json"},
		{[]string{"get", "https://example.com/f", "-O", "-", "--output", "json"}, "standard output"},
		{[]string{"get", "https://example.com/f", "-O", path, "--ca", "/nonexistent/ca"}, "--ca"},
		{[]string{"get", "https://example.com/f", "-O", path, "--timeout", "-1s"}, "--timeout"},
		{[]string{"pull", "https://example.com/f", "-O", path}, "not an image"},
		{[]string{"pull", "alpine", "-O", "-"}, "standard output"},
		{[]string{"pull", "alpine", "-O", path + ".tar.gz"}, path + ".tar"},
		{[]string{"pull", "alpine", "-O", path, "--platform", "amd64"}, "os/arch"},
		{[]string{"pull", "alpine", "-O", path, "--format", "zip"}, "oci-archive"},
		{[]string{"pull", "alpine", "-O", path, "--format", "docker-archive", "--all-platforms"}, "one platform"},
		{[]string{"pull", "alpine", "-O", path, "--platform", "linux/amd64", "--all-platforms"}, "exclude"},
		{[]string{"pull", "alpine", "-O", path, "--parallel", "0"}, "1 to 64"},
		{[]string{"pull", "alpine", "-O", path, "--insecure-registry", "http://x"}, "--insecure-registry"},
		{[]string{"version", "extra"}, "not expected"},
	} {
		args := c.args
		r := runWith(t.Context(), testEnv(), args...)
		if r.code != exitUsage || !strings.Contains(r.errOut, c.says) {
			t.Errorf("dfget %s\nexit code %d, stderr: %swant code 2 and %q", strings.Join(args, " "), r.code, r.errOut, c.says)
		}
		if strings.Contains(r.errOut, "secret") {
			t.Errorf("the password of a URL is shown: %s", r.errOut)
		}
	}
	if left := names(t, filepath.Dir(path)); len(left) > 0 {
		t.Errorf("usage errors left %v", left)
	}
}

func TestHelpSaysWhatTheExitCodesMean(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"get", "--help"}, {"pull", "--help"}} {
		r := dfget(t, append(args, "--help")...)
		r.want(t, exitOK, "130  interrupted", "Examples:")
		if r.errOut != "" {
			t.Errorf("help went to standard error: %s", r.errOut)
		}
	}
	dfget(t).want(t, exitOK, "Available Commands:")
}

func TestVersion(t *testing.T) {
	dfget(t, "version").want(t, exitOK, "dfget ", "linux/")
	want := dfget(t, "version").out
	if got := dfget(t, "--version").out; got != want {
		t.Errorf("--version prints %q, the command %q", got, want)
	}
	dfget(t, "daemon", "--version").want(t, exitOK, "linux/")
	r := dfget(t, "version", "--output", "json")
	r.want(t, exitOK, `"version":`, `"go":`, `"platform":`)
}

func TestCompletion(t *testing.T) {
	dfget(t, "completion", "bash").want(t, exitOK, "complete")
	dfget(t, "__complete", "pull", "--format", "").want(t, exitOK, "oci-archive", "docker-archive")
	dfget(t, "__complete", "get", "--progress", "").want(t, exitOK, "plain")
}
