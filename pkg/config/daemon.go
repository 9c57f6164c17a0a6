package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
)

// RunDaemon is the RunE of a command that runs until it is told to stop: it loads
// cfg, of which log is a part, and calls run with a logger and a context that the
// first SIGTERM or SIGINT ends. The log says when that was, and when everything
// has ended. It returns what Load, NewLogger or RunUntilSignal say.
func RunDaemon(c *cobra.Command, cfg any, log *Log, o Options, run func(context.Context, *zap.Logger) error) error {
	loaded, err := Load(cfg, o)
	if err != nil {
		return err
	}
	logger, err := NewLogger(*log, c.ErrOrStderr())
	if err != nil {
		return err
	}
	defer func() { _ = logger.Sync() }() // standard error cannot be synced everywhere
	for _, warning := range loaded.Warnings {
		logger.Warn("configuration", zap.String("warning", warning))
	}
	return RunUntilSignal(c.Context(), func(ctx context.Context) error {
		stopping := sync.OnceFunc(func() {
			logger.Info("stopping; a second signal ends the process at once", zap.NamedError("why", context.Cause(ctx)))
		})
		stop := context.AfterFunc(ctx, stopping)
		err := run(ctx, logger)
		stop()
		if ctx.Err() != nil { // run may be faster than AfterFunc
			stopping()
			logger.Info("stopped")
		}
		return err
	})
}

// ExitCode is what a daemon exits with after err: 1, or what a shell reports of a
// process that a second signal ended.
func ExitCode(err error) int {
	if interrupted := (*Interrupted)(nil); errors.As(err, &interrupted) {
		return interrupted.ExitCode()
	}
	return 1
}

// NameDirectory adds to an error of the file system which setting names another
// directory. Other errors, and nil, come back as they are.
func NameDirectory(err error, setting string) error {
	var path *fs.PathError
	if !errors.As(err, &path) {
		return err
	}
	return fmt.Errorf("%w; name a directory that this user may write with %s", err, setting)
}
