package main

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Who attends a scheduler that runs is listed with what operators ask for, a node that
// has left and one that is denied too; and no node may ask for the list.
func TestNodeList(t *testing.T) {
	cfg := DefaultConfig()
	cfg.StateDir, cfg.Listen, cfg.Ops.Listen = t.TempDir(), freeAddress(t), ""
	list := func() ([]listedNode, error) {
		out, err := command(t, "node", "list", "--json", "--state-dir", cfg.StateDir, "--listen", cfg.Listen)
		var nodes []listedNode
		if err == nil {
			err = json.Unmarshal([]byte(out), &nodes)
		}
		return nodes, err
	}
	ca, err := identity.OpenCA(filepath.Join(cfg.StateDir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := list(); err == nil || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("with no scheduler: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, cfg, zap.NewNop()) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	wait(t, "the scheduler answers", func() bool { _, err := list(); return err == nil })

	node, err := ca.Self(t.TempDir(), identity.RoleNode, identity.Options{})
	if err != nil {
		t.Fatal(err)
	}
	cc, err := grpc.NewClient(cfg.Listen, grpc.WithTransportCredentials(node.ClientCredentials(identity.Expect{Roles: []identity.Role{identity.RoleScheduler}})))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cc.Close() }()
	client := damselflyv1.NewSchedulerClient(cc)
	if _, err := client.Nodes(ctx, &damselflyv1.NodesRequest{}); err == nil {
		t.Error("a node was given the list of nodes")
	}
	attending, leave := context.WithCancel(ctx)
	defer leave()
	st, err := client.Attend(attending)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&damselflyv1.NodeMessage{Events: []*damselflyv1.NodeEvent{{Event: &damselflyv1.NodeEvent_Attend{Attend: &damselflyv1.Attend{
		Protocol: 1, Address: "10.1.2.3:65010", Region: "eu", Zone: "eu-1", Release: "v9", Host: "worker-7",
	}}}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); err != nil {
		t.Fatal(err)
	}
	nodes, err := list()
	if err != nil || len(nodes) != 1 {
		t.Fatalf("listed %+v, %v", nodes, err)
	}
	n := nodes[0]
	if n.Node != node.ID() || n.Host != "worker-7" || n.Role != "node" || n.Zone != "eu-1" || n.Version != "v9" || n.Address != "10.1.2.3:65010" ||
		!n.Attends || n.LastSeen == nil || time.Since(*n.LastSeen) > time.Minute || n.Denied {
		t.Errorf("listed %+v", n)
	}
	leave()
	wait(t, "the node has left", func() bool { nodes, err := list(); return err == nil && len(nodes) == 1 && !nodes[0].Attends })
	const stranger = "12D3KooWNTbRwK74TD8WkkhrLpamPyNojepFiCHTMPJnkMGGSKCZ"
	for _, id := range []string{stranger, node.ID()} {
		if _, err := command(t, "node", "deny", id, "--state-dir", cfg.StateDir); err != nil {
			t.Fatal(err)
		}
	}
	out, err := command(t, "node", "list", "--state-dir", cfg.StateDir, "--listen", cfg.Listen)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err != nil || len(lines) != 3 || !strings.Contains(lines[0], "LAST SEEN") || !strings.HasPrefix(lines[1], stranger) ||
		!strings.Contains(lines[2], "worker-7") || !strings.Contains(lines[2], "eu/eu-1") || !strings.Contains(lines[2], "ago") || !strings.HasSuffix(lines[2], "denied") {
		t.Errorf("the table is\n%s%v", out, err)
	}
}

// What a node says of itself does no harm to a terminal.
func TestNodeNamesAreQuoted(t *testing.T) {
	var out bytes.Buffer
	if err := writeNodes(&out, []listedNode{{Node: "n", Host: "\x1b[2Jhost"}}, time.Now()); err != nil || strings.Contains(out.String(), "\x1b") {
		t.Errorf("%q, %v", out.String(), err)
	}
}
