package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

const (
	// listTimeout bounds the call to the scheduler of this machine.
	listTimeout = 10 * time.Second
	// mostList is more than a full list takes.
	mostList = 64 << 20
)

// listedNode is a node as 'scheduler node list' shows it. Of a denied node that has not
// attended lately only its ID is known.
type listedNode struct {
	Node     string     `json:"node"`
	Host     string     `json:"host,omitempty"`
	Role     string     `json:"role,omitempty"`
	Region   string     `json:"region,omitempty"`
	Zone     string     `json:"zone,omitempty"`
	Rack     string     `json:"rack,omitempty"`
	Version  string     `json:"version,omitempty"`
	Address  string     `json:"address,omitempty"`
	Attends  bool       `json:"attends"`
	LastSeen *time.Time `json:"lastSeen,omitempty"`
	Denied   bool       `json:"denied"`
}

// newNodeListCommand asks the scheduler that runs with the same settings.
func newNodeListCommand(openCA caOpener, load func() (Config, error)) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "list",
		Short: "List the nodes and seeds that attend the scheduler of this machine, did within a day, or are denied",
		Long: `list asks the scheduler that runs on this machine, at its --listen address and with the
certificate in its --state-dir. Every node attends every scheduler of the cluster, so
that one of them knows them all. Host, zone and version are what nodes say themselves.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ca, err := openCA(c)
			if err != nil {
				return err
			}
			cfg, err := load()
			if err != nil {
				return err
			}
			nodes, err := listNodes(c.Context(), ca, cfg)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(nodes)
			}
			return writeNodes(c.OutOrStdout(), nodes, time.Now())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return c
}

func listNodes(ctx context.Context, ca *identity.CA, cfg Config) ([]listedNode, error) {
	denied, err := ca.DeniedIDs()
	if err != nil {
		return nil, err
	}
	id, err := ca.Self(filepath.Join(cfg.StateDir, "identity"), identity.RoleScheduler, identity.Options{})
	if err != nil {
		return nil, config.NameDirectory(err, "--state-dir")
	}
	said, err := askNodes(ctx, id, own(cfg.Listen))
	if err != nil {
		return nil, fmt.Errorf("asking the scheduler at %s: %w; it must run, and --listen must be as it runs with", own(cfg.Listen), err)
	}
	now := time.Now()
	nodes := make([]listedNode, 0, len(said))
	for _, n := range said {
		seen := now.Add(-time.Duration(n.GetSeenMillisecondsAgo()) * time.Millisecond).UTC().Truncate(time.Second)
		role := identity.RoleNode
		if n.GetSeed() {
			role = identity.RoleSeed
		}
		nodes = append(nodes, listedNode{
			Node: n.GetNode(), Host: n.GetHost(), Role: string(role), Region: n.GetRegion(), Zone: n.GetZone(), Rack: n.GetRack(),
			Version: n.GetRelease(), Address: n.GetAddress(), Attends: n.GetAttends(), LastSeen: &seen,
		})
	}
	for _, one := range denied {
		at := slices.IndexFunc(nodes, func(n listedNode) bool { return n.Node == one })
		if at < 0 {
			at, nodes = len(nodes), append(nodes, listedNode{Node: one})
		}
		nodes[at].Denied = true
	}
	slices.SortFunc(nodes, func(a, b listedNode) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Node, b.Node))
	})
	return nodes, nil
}

// own is the address at which this machine reaches a scheduler that listens at listen.
func own(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}

func askNodes(ctx context.Context, id *identity.Identity, address string) (_ []*damselflyv1.NodeInfo, err error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	expect := identity.Expect{Roles: []identity.Role{identity.RoleScheduler}}
	cc, err := grpc.NewClient("dns:///"+address, grpc.WithTransportCredentials(id.ClientCredentials(expect)), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(mostList)))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cc.Close()) }()
	answer, err := damselflyv1.NewSchedulerClient(cc).Nodes(ctx, &damselflyv1.NodesRequest{})
	return answer.GetNodes(), err
}

// writeNodes is for people. What nodes say of themselves reaches a terminal, so that
// it is quoted where it holds anything but printable letters.
func writeNodes(out io.Writer, nodes []listedNode, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, err := fmt.Fprintln(w, "NODE\tHOST\tROLE\tZONE\tVERSION\tADDRESS\tLAST SEEN\tDENIED")
	for _, n := range nodes {
		seen := "-"
		switch {
		case n.Attends:
			seen = "now"
		case n.LastSeen != nil:
			seen = now.Sub(*n.LastSeen).Round(time.Second).String() + " ago"
		}
		denied := ""
		if n.Denied {
			denied = "denied"
		}
		place := strings.Join(slices.DeleteFunc([]string{n.Region, n.Zone, n.Rack}, func(s string) bool { return s == "" }), "/")
		cells := []string{n.Node, shown(n.Host), shown(n.Role), shown(place), shown(n.Version), shown(n.Address), seen, denied}
		_, e := fmt.Fprintln(w, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
		err = errors.Join(err, e)
	}
	return errors.Join(err, w.Flush())
}

func shown(text string) string {
	if text == "" {
		return "-"
	}
	if quoted := fmt.Sprintf("%q", text); quoted != `"`+text+`"` {
		return quoted
	}
	return text
}
