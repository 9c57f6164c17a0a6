package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/config"
)

// What goes wrong while the daemon drains is told, not taken for the interruption
// that made it drain; a second signal shows in the exit code.
func TestDaemonErrorsAfterASignal(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := runWith(ctx, testEnv(), "daemon", "--data-dir", t.TempDir(), "--ops-listen", "", "--mirror-listen", "nowhere")
	r.want(t, exitOther, "--mirror-listen")
	f := explain(ctx, &daemonError{&config.Interrupted{Signal: syscall.SIGTERM}})
	if f.Code != 143 || f.Message == "interrupted" {
		t.Errorf("a second SIGTERM gives %+v", f)
	}
	dfget(t, "daemon", "nonsense").want(t, exitUsage, "nonsense")
}

// validate checks what a start would find out: files, and which line is wrong.
func TestDaemonConfigIsValidated(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, says string }{
		"right":            {"joinTokenFile: " + there + "\norigin:\n  hosts:\n  - name: a.example\n    caFile: " + there, ""},
		"token file":       {"# x\njoinTokenFile: /no/token", "joinTokenFile: open /no/token: no such file or directory (file FILE:2)"},
		"CA file":          {"origin:\n  hosts:\n  - name: a.example\n  - name: b.example\n    caFile: /no/ca", "origin.hosts[1].caFile: open /no/ca: no such file or directory (file FILE:5)"},
		"a directory":      {"origin:\n  dockerConfig: " + dir, "it is a directory (file FILE:2)"},
		"endpoint":         {"origin:\n  hosts:\n  - name: a.example\n  - name: b.example\n    endpoint: ftp://b", "(hosts[1].endpoint is set by file FILE:5)"},
		"a registry twice": {"origin:\n  hosts:\n  - name: a.example\n  - endpoint: https://b\n    name: a.example", "(hosts[1] is set by file FILE:4)"},
		"item of a list":   {"origin:\n  allow:\n  - 10.0.0.0/8\n  - nonsense", "(allow[1] is set by file FILE:4)"},
		"flow list":        {"origin:\n  allow: [10.0.0.0/8,\n    nonsense]", "(allow[1] is set by file FILE:3)"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "node.yaml")
			if err := os.WriteFile(file, []byte(c.text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			r := runWith(t.Context(), testEnv(), "daemon", "config", "validate", "--config", file)
			if want := strings.ReplaceAll(c.says, "FILE", file); (r.code == exitOK) != (want == "") || !strings.Contains(r.errOut, want) {
				t.Errorf("exit code %d, %s\nwant %s", r.code, r.errOut, want)
			}
		})
	}
}
