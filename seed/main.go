// Command seed runs a seed: a node that reads origins for the whole cluster and
// is given room. It is wiring; see pkg/node.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/node"
)

func main() {
	if err := newCommand().ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(config.ExitCode(err))
	}
}

func newCommand() *cobra.Command {
	return node.Command(&cobra.Command{
		Use:   "seed",
		Short: "Run a Damselfly seed",
		Long: `seed reads blobs from the registries, once for the whole cluster, and hands
their pieces on to the nodes while it still reads.

It needs a scheduler and a join token for the role seed. Settings come from
flags, else from DAMSELFLY_* variables, else from the configuration file:
'seed config defaults' prints a file with every setting explained.`,
		Example: `  # On the scheduler's machine: a token for one seed
  scheduler token create --role seed --uses 1 > seed.token

  # On the seed's machine
  seed --scheduler scheduler.example.com:65000 --join-token-file seed.token`,
		Version:       config.ReadBuild().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}, identity.RoleSeed, node.DefaultSeedConfig, "/etc/damselfly/seed.yaml")
}
