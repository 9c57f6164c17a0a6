package node

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
)

// Command fills in c, whose use and help texts are set, so that it runs a node or
// a seed: --config and a flag for each setting of Config, the sub-command
// config, and RunE, which follows the configuration file. defaults and defaultFile are
// what holds where the user says nothing.
func Command(c *cobra.Command, role identity.Role, defaults func() Config, defaultFile string) *cobra.Command {
	flags := c.PersistentFlags()
	file := flags.String("config", "", "configuration file, YAML (default "+defaultFile+" if it exists)")
	bound := defaults()
	if err := config.Bind(flags, &bound); err != nil {
		panic(err) // the struct tags of Config are wrong
	}
	options := func() config.Options {
		return config.Options{File: *file, DefaultFile: defaultFile, Env: os.Environ(), Flags: flags}
	}
	c.Args = cobra.NoArgs
	c.AddCommand(config.Command(func() any { d := defaults(); return &d }, options))
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg := defaults()
		err := config.RunDaemon(c, &cfg, &cfg.Log, options(), func(ctx context.Context, log *zap.Logger) error {
			return run(ctx, cfg, role, log, func(ctx context.Context, apply func(Config)) error {
				return config.Follow(ctx, log.Named("config"), cfg, defaults, options(), apply)
			})
		})
		if err != nil {
			return fmt.Errorf("%s: %w", role, err)
		}
		return nil
	}
	return c
}
