package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
)

// schedulerTTL is how long a token for a scheduler can be used where nothing is
// said: it buys the whole CA.
const schedulerTTL = time.Hour

// caOpener opens the CA in the command's state directory.
type caOpener func(*cobra.Command) (*identity.CA, error)

// newTokenCommand makes, lists and revokes join tokens in the CA's directory,
// beside a scheduler that runs or before one does. makeCA makes a CA where there
// is none, openCA errs then.
func newTokenCommand(openCA, makeCA caOpener) *cobra.Command {
	c := &cobra.Command{
		Use:   "token",
		Short: "Make, list and revoke join tokens",
		Long: `A join token lets seeds and nodes into the cluster: it names the cluster's CA,
so that they join no other, and buys a certificate that renews itself. Run these
commands on the scheduler's machine, with its --state-dir. Of several schedulers only
the one that made a token knows it: seeds and nodes join there, and attend all.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newTokenCreateCommand(makeCA), newTokenListCommand(openCA), newTokenRevokeCommand(openCA))
	return c
}

func newTokenCreateCommand(makeCA caOpener) *cobra.Command {
	var (
		role string
		ttl  time.Duration
		uses int
	)
	c := &cobra.Command{
		Use:   "create",
		Short: "Print a new join token",
		Example: `  # 100 nodes may join within a day
  scheduler token create --uses 100 > node.token

  # One seed, within the hour
  scheduler token create --role seed --ttl 1h > seed.token

  # One more scheduler, within the hour
  scheduler token create --role scheduler > scheduler.token`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			parsed, err := identity.ParseRole(role)
			if err != nil {
				return err
			}
			if parsed == identity.RoleScheduler && !c.Flags().Changed("ttl") {
				ttl = schedulerTTL
			}
			ca, err := makeCA(c)
			if err != nil {
				return err
			}
			token, err := ca.NewToken(parsed, ttl, uses)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), token)
			return err
		},
	}
	c.Flags().StringVar(&role, "role", string(identity.RoleNode), "what joins with it: node, seed, or scheduler, which gets the cluster's CA")
	config.DurationVar(c.Flags(), &ttl, "ttl", 24*time.Hour, "how long it can be used; 1h for a scheduler where nothing is said")
	c.Flags().IntVar(&uses, "uses", 1, "how many may join with it")
	return c
}

func newTokenListCommand(openCA caOpener) *cobra.Command {
	output := "table"
	c := &cobra.Command{
		Use:   "list",
		Short: "List the join tokens, without their secrets",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("--output %q: must be table or json", output)
			}
			ca, err := openCA(c)
			if err != nil {
				return err
			}
			tokens, err := ca.Tokens()
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(tokens)
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			_, err = fmt.Fprintln(w, "ID\tROLE\tUSES LEFT\tEXPIRES")
			for _, t := range tokens {
				_, e := fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", t.ID, t.Role, t.Uses, t.Expires.Format(time.RFC3339))
				err = errors.Join(err, e)
			}
			return errors.Join(err, w.Flush())
		},
	}
	c.Flags().StringVarP(&output, "output", "o", output, "table or json")
	return c
}

func newTokenRevokeCommand(openCA caOpener) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke a join token; who joined with it stays in",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ca, err := openCA(c)
			if err != nil {
				return err
			}
			return ca.RevokeToken(args[0])
		},
	}
}

// newNodeCommand lists nodes, shuts them out of the cluster and lets them in again.
func newNodeCommand(openCA caOpener, load func() (Config, error)) *cobra.Command {
	c := &cobra.Command{
		Use:   "node",
		Short: "List nodes, shut one out of the cluster, or let it in again",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	deny := &cobra.Command{
		Use:   "deny PEER-ID",
		Short: "Cut a node off from all others, within seconds, and let it neither join nor renew",
		Long: `Cut a node off from all others, within seconds, and let it neither join nor renew.

Schedulers tell nodes and seeds, which end its connections and keep the denial. Its own
clients are served from the registries. Its machine can join again under a new key while
it has a join token that is good: see 'scheduler token list' and 'scheduler token revoke'.`,
		Args: cobra.ExactArgs(1),
	}
	allow := &cobra.Command{Use: "allow PEER-ID", Short: "Take a deny back", Args: cobra.ExactArgs(1)}
	for cmd, do := range map[*cobra.Command]func(*identity.CA, string) error{deny: (*identity.CA).Deny, allow: (*identity.CA).Allow} {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			ca, err := openCA(c)
			if err != nil {
				return err
			}
			return do(ca, args[0])
		}
	}
	c.AddCommand(newNodeListCommand(openCA, load), deny, allow)
	return c
}
