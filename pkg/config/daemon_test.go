package config_test

import (
	"bytes"
	"context"
	"strings"
	"syscall"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
)

// Whoever reads a daemon's log sees that it was told to end, by what, and that it
// has.
func TestDaemonLogsItsEnd(t *testing.T) {
	var out bytes.Buffer
	c := &cobra.Command{}
	c.SetErr(&out)
	c.SetContext(t.Context())
	cfg := struct {
		Log config.Log `yaml:"log" doc:"What is logged."`
	}{config.DefaultLog()}
	err := config.RunDaemon(c, &cfg, &cfg.Log, config.Options{}, func(ctx context.Context, _ *zap.Logger) error {
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"msg":"stopping`, "received signal: terminated", `"msg":"stopped"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, &out)
		}
	}
}
