package main

import (
	"github.com/spf13/cobra"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/node"
)

// nodeFile is the daemon's configuration where no other is named.
const nodeFile = "/etc/damselfly/node.yaml"

// newDaemonCommand runs the node daemon: a mirror and proxy for the container
// runtimes of this machine that exchanges pieces with other nodes.
func newDaemonCommand() *cobra.Command {
	c := node.Command(&cobra.Command{
		Use:   "daemon",
		Short: "Run the node daemon: a registry mirror that shares what it pulls",
		Long: `daemon serves container runtimes on this machine as a registry mirror and
fetches what they pull from the other nodes of the cluster, so that the
registry sends each layer once.

Without a scheduler it works by itself, as a cache in front of the registries.
Settings come from flags, else from DAMSELFLY_* variables, else from the
configuration file: 'dfget daemon config defaults' prints a file with every
setting explained.`,
		Version: readVersion().String(),
		Example: `  # A node of a cluster
  dfget daemon --scheduler scheduler.example.com:65000 --join-token-file node.token

  # A cache for this machine alone
  dfget daemon --data-dir /tmp/damselfly

  # containerd: /etc/containerd/certs.d/_default/hosts.toml
  [host."http://127.0.0.1:65001"]
    capabilities = ["pull", "resolve"]`,
	}, identity.RoleNode, node.DefaultConfig, nodeFile)
	c.Args = noArgs
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := run(c, args); err != nil {
			return &daemonError{err}
		}
		return nil
	}
	return c
}

// daemonError is what ended the daemon. A signal is no excuse for it, as it is for
// a client: after the first one the daemon drains and ends without error.
type daemonError struct{ err error }

func (e *daemonError) Error() string { return e.err.Error() }
func (e *daemonError) Unwrap() error { return e.err }
