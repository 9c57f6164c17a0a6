package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/damselfly-p2p/damselfly/e2e/fabric"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func shell(t *testing.T, script string) Spec {
	return Spec{Name: "shell", Path: "/bin/sh", Args: []string{"-c", script}, Dir: t.TempDir()}
}

// started starts a shell script and waits for the file "ready" that it makes.
func started(t *testing.T, script string) *Process {
	t.Helper()
	spec := shell(t, script)
	p, err := Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Ready(t.Context(), func(context.Context) error {
		_, err := os.Stat(filepath.Join(spec.Dir, "ready"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestStop(t *testing.T) {
	for _, row := range []struct {
		name, script string
		grace        time.Duration
		want         string // in the error, "" for none
	}{
		{"ends well", `trap 'exit 0' TERM; >ready; while :; do sleep 0.01; done`, time.Minute, ""},
		{"ends with a code", `trap 'exit 3' TERM; >ready; while :; do sleep 0.01; done`, time.Minute, "exit status 3"},
		{"dies of the signal", `>ready; exec sleep 1000`, time.Minute, "terminated"},
		{"does not end", `trap '' TERM; >ready; while :; do sleep 0.01; done`, 50 * time.Millisecond, "did not end"},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := started(t, row.script).Stop(row.grace)
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("Stop: %v, want %q", err, row.want)
			}
		})
	}
}

func TestEndsBeforeReady(t *testing.T) {
	p, err := Start(shell(t, "echo last words; exit 1"))
	if err != nil {
		t.Fatal(err)
	}
	err = p.Ready(t.Context(), func(context.Context) error { return errors.New("no") })
	if err == nil || !strings.Contains(err.Error(), "last words") || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("Ready: %v, want the exit code and what the process wrote", err)
	}
}

func TestRun(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://192.0.2.1:1")
	out, err := Run(t.Context(), shell(t, `echo "proxy=$HTTPS_PROXY"; echo warning >&2`))
	if err != nil || out != "proxy=\n" {
		t.Errorf("Run: %q, %v; want standard output alone and no settings of the caller", out, err)
	}
	_, err = Run(t.Context(), shell(t, `echo reason >&2; exit 2`))
	if err == nil || !strings.Contains(err.Error(), "reason") {
		t.Errorf("Run: %v, want the reason", err)
	}
}

// A program that is started in a namespace runs there, under the ID that is told, with
// mounts of its own or without.
func TestNetns(t *testing.T) {
	f, err := fabric.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	port, err := f.Add("p", fabric.Link{})
	if err != nil {
		t.Fatal(err)
	}
	want := inode(t, port.Path())
	for name, mounts := range map[string][]string{"alone": nil, "mounts": {"mount -t tmpfs tmpfs ."}} {
		t.Run(name, func(t *testing.T) {
			spec := shell(t, `echo said; exec sleep 1000`)
			spec.Netns, spec.Mounts = port.Path(), mounts
			p, err := Start(spec)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Kill()
			if err := p.Ready(t.Context(), func(context.Context) error {
				if said := p.Tail(1); said != "said" {
					return errors.New(said)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if got := inode(t, fmt.Sprintf("/proc/%d/ns/net", p.ID())); got != want {
				t.Errorf("process %d runs in the namespace %d, want %d", p.ID(), got, want)
			}
		})
	}
}

// inode tells namespaces apart.
func inode(t *testing.T, file string) uint64 {
	t.Helper()
	var stat syscall.Stat_t
	if err := syscall.Stat(file, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}

func TestFreeAddr(t *testing.T) {
	addr, err := FreeAddr()
	if err != nil || !strings.HasPrefix(addr, "127.0.0.1:") {
		t.Errorf("FreeAddr: %q, %v", addr, err)
	}
}
