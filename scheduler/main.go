// Command scheduler decides which node reads which pieces from which source, and
// issues the certificates of its cluster. It is wiring; see scheduler/core and
// scheduler/server.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/scheduler/sim"
)

const defaultFile = "/etc/damselfly/scheduler.yaml"

func main() {
	if err := newRoot().ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(config.ExitCode(err))
	}
}

// newRoot is the command with everything below it. Settings are flags of the
// root, so that 'token create' finds the same state directory as 'serve'.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "scheduler",
		Short: "Run a Damselfly scheduler and look after its cluster",
		Long: `scheduler decides which node reads which pieces from which source. It moves no
image bytes and keeps nothing on disk but who belongs to the cluster: its CA, the
join tokens, denied nodes and its own certificate.

Settings come from flags, else from DAMSELFLY_* variables, else from the
configuration file: 'scheduler config defaults' prints a file with every setting
explained.`,
		Example: `  scheduler serve --state-dir /var/lib/damselfly-scheduler
  scheduler token create --role seed
  scheduler token create --uses 100`,
		Version:       config.ReadBuild().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	flags := root.PersistentFlags()
	file := flags.String("config", "", "configuration file, YAML (default "+defaultFile+" if it exists)")
	bound := DefaultConfig()
	if err := config.Bind(flags, &bound); err != nil {
		panic(err) // the struct tags of Config are wrong
	}
	options := func() config.Options {
		return config.Options{File: *file, DefaultFile: defaultFile, Env: os.Environ(), Flags: flags}
	}
	load := func() (Config, error) {
		cfg := DefaultConfig()
		_, err := config.Load(&cfg, options())
		return cfg, err
	}
	open := func(empty func(dir string) error) (*identity.CA, error) {
		cfg, err := load()
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(cfg.StateDir, "ca")
		if entries, err := os.ReadDir(dir); errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
			if err := empty(cfg.StateDir); err != nil {
				return nil, err
			}
		}
		return identity.OpenCA(dir)
	}
	openCA := func(*cobra.Command) (*identity.CA, error) {
		return open(func(dir string) error {
			return fmt.Errorf("there is no cluster in %s: name the directory of its scheduler with --state-dir", dir)
		})
	}
	makeCA := func(c *cobra.Command) (*identity.CA, error) {
		return open(func(dir string) error {
			fmt.Fprintf(c.ErrOrStderr(), "made a new cluster in %s; the token is for a scheduler with this --state-dir\n", dir)
			return nil
		})
	}
	root.AddCommand(
		newServeCommand(options),
		newTokenCommand(openCA, makeCA),
		newNodeCommand(openCA, load),
		newSimCommand(sim.Run),
		config.Command(func() any { c := DefaultConfig(); return &c }, options),
	)
	return root
}

func newServeCommand(options func() config.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run the scheduler",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg := DefaultConfig()
			return config.RunDaemon(c, &cfg, &cfg.Log, options(), func(ctx context.Context, log *zap.Logger) error {
				return serve(ctx, cfg, log)
			})
		},
	}
}
