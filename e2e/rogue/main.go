// Command rogue is a node of a real cluster that misbehaves towards other nodes, for
// the faults of the lab and of the end-to-end tests. It joins with a join token and
// attends the schedulers as every node does; only its Peer service lies (--lie).
//
// As a holder it is a node in full, built by pkg/node, which pulls what its clients
// ask its mirror for, and --blob. Its own Peer service stands in front of the node's,
// with the same certificate, so that other nodes meet the lie alone. With --claim it
// holds nothing: it tells the schedulers that it holds what --blob names, and no more
// of a node is there.
//
// It is configured as a node is (pkg/node, the same file and flags). Its ops address
// answers what a node's does, adds its own counters to /metrics, and takes POST
// /begin.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/node"
)

func main() {
	if err := command().ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "rogue:", err)
		os.Exit(config.ExitCode(err))
	}
}

func command() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use: "rogue --config FILE --lie LIE", Short: "A node that misbehaves towards other nodes",
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
	}
	flags := c.Flags()
	o.bind(flags)
	file := flags.String("config", "", "configuration file of a node, YAML")
	bound := node.DefaultConfig()
	if err := config.Bind(flags, &bound); err != nil {
		panic(err) // a flag of a node is called as one of this program
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := o.check(); err != nil {
			return err
		}
		cfg := node.DefaultConfig()
		if o.seed {
			cfg = node.DefaultSeedConfig()
		}
		loading := config.Options{File: *file, Env: os.Environ(), Flags: flags}
		return config.RunDaemon(c, &cfg, &cfg.Log, loading, func(ctx context.Context, log *zap.Logger) error {
			return run(ctx, o, cfg, log)
		})
	}
	return c
}
