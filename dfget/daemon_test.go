package main

import (
	"context"
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
