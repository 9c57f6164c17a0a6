package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/server"
)

const (
	tracedNodes  = 6
	tracedPieces = 40
)

// liveTrace is the trace of a scheduler that nodes attended over gRPC until each had
// a blob.
func liveTrace(t *testing.T) []byte {
	t.Helper()
	var trace bytes.Buffer
	brain, err := server.New(server.Config{Trace: &trace, Caller: func(ctx context.Context) (string, string, bool) {
		md, _ := metadata.FromIncomingContext(ctx)
		return md["node"][0], md["role"][0], true
	}}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	listener := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(grpc.ForceServerCodecV2(server.Codec()))
	damselflyv1.RegisterSchedulerServer(srv, brain)
	ctx, cancel := context.WithCancel(t.Context())
	var serving errgroup.Group
	serving.Go(func() error { return brain.Run(ctx) })
	serving.Go(func() error { return srv.Serve(listener) })
	cc, err := grpc.NewClient("passthrough:///scheduler", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	var pulling errgroup.Group
	for i := range tracedNodes {
		name, role := fmt.Sprintf("n%d", i), "node"
		if i == 0 {
			role = "seed"
		}
		pulling.Go(func() error {
			return pullTraced(metadata.AppendToOutgoingContext(ctx, "node", name, "role", role), damselflyv1.NewSchedulerClient(cc), name)
		})
	}
	if err := pulling.Wait(); err != nil {
		t.Fatal(err)
	}
	_ = cc.Close()
	cancel()
	srv.Stop()
	if err := serving.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return trace.Bytes()
}

// pullTraced is a node that says to have whatever it is told to read.
func pullTraced(ctx context.Context, c damselflyv1.SchedulerClient, name string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.Attend(ctx)
	if err != nil {
		return err
	}
	digest, size := blob.FromBytes([]byte("a layer")), uint64(tracedPieces*blob.MinPieceLength)
	err = s.Send(&damselflyv1.NodeMessage{Events: []*damselflyv1.NodeEvent{
		{Event: &damselflyv1.NodeEvent_Attend{Attend: &damselflyv1.Attend{Protocol: server.Protocol, Address: name + ":1"}}},
		{Event: &damselflyv1.NodeEvent_Want{Want: &damselflyv1.Want{Digest: digest.String(), Size: size,
			Origin: &damselflyv1.Origin{Kind: damselflyv1.Origin_KIND_BLOB, Registry: "r.example.com", Repository: "app"}}}},
	}})
	for has := 0; has < tracedPieces && err == nil; {
		var m *damselflyv1.SchedulerMessage
		if m, err = s.Recv(); err != nil {
			break
		}
		reply := &damselflyv1.NodeMessage{}
		for _, d := range m.GetDecisions() {
			lease := d.GetLease()
			if lease == nil {
				continue
			}
			for p := lease.GetRun().GetFirst(); p < lease.GetRun().GetFirst()+lease.GetRun().GetCount(); p++ {
				have := &damselflyv1.Have{Digest: digest.String(), Size: size, Runs: []*damselflyv1.Run{{First: p, Count: 1}}}
				if lease.GetOrigin() != nil && p+1 < tracedPieces {
					have.FirstLink, have.Links = p+1, bytes.Repeat([]byte{byte(p)}, digest.LinkSize())
				}
				reply.Events = append(reply.Events, &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Have{Have: have}})
				has++
			}
			reply.Events = append(reply.Events, &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Done{Done: &damselflyv1.Done{Lease: lease.GetId()}}})
		}
		err = s.Send(reply)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func TestReplayOfALiveScheduler(t *testing.T) {
	trace := liveTrace(t)
	plain := filepath.Join(t.TempDir(), "scheduler.trace")
	if err := os.WriteFile(plain, trace, 0o600); err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	if _, err := w.Write(trace); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	packed := plain + ".gz"
	if err := os.WriteFile(packed, zipped.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{plain, packed} {
		out, err := command(t, "sim", "replay", name)
		if err != nil || !strings.Contains(out, "every decision is the same\n") {
			t.Errorf("%s: %v\n%s\n%s", name, err, out, trace)
		}
	}
	at := bytes.Index(trace, []byte("holder=n"))
	damaged := bytes.Clone(trace)
	damaged[at+len("holder=n")] = '9'
	line := fmt.Sprintf("line %d:", 1+bytes.Count(trace[:at], []byte("\n")))
	out, err := replayed(t, damaged, "--json")
	if err == nil || !strings.Contains(err.Error(), line) || !strings.Contains(err.Error(), "holder=n9") || !strings.Contains(out, `"same": false`) {
		t.Errorf("holder at %s changed: %v\n%s", line, err, out)
	}
}

// replayed runs the command with a trace on standard input.
func replayed(t *testing.T, trace []byte, args ...string) (string, error) {
	t.Helper()
	c := newReplayCommand()
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetArgs(append(args, "-"))
	c.SetIn(bytes.NewReader(trace))
	var out bytes.Buffer
	c.SetOut(&out)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestReplayOfOddTraces(t *testing.T) {
	long := []byte("# seed 1\n1 leave " + strings.Repeat("a", 2<<20) + "\n")
	for name, c := range map[string]struct {
		trace []byte
		want  string
	}{
		"empty":          {nil, "trace is empty"},
		"events only":    {[]byte("1 attend n1 address=a:1\n2 tick\n"), "events only"},
		"a long line":    {long, "every decision is the same"},
		"cut in a line":  {[]byte("# seed 1\n1 attend n1 address=a:1\n2 atte"), "note, line 3"},
		"nothing to say": {[]byte("# seed 1\n1 attend n1 address=a:1\n1000000001 tick\n"), "1 s"},
	} {
		if out, err := replayed(t, c.trace); err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	for name, c := range map[string]struct {
		trace []byte
		want  string
	}{
		"no trace":      {[]byte("nodes: 5\n"), "line 1"},
		"endless line":  {bytes.Repeat([]byte("x"), maxTraceLine+2<<20), "line 1 is longer"},
		"decision only": {[]byte("\tqueued n1\n"), "before any event"},
	} {
		if out, err := replayed(t, c.trace); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(out, "stopped") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	notZipped := filepath.Join(t.TempDir(), "trace.gz")
	if err := os.WriteFile(notZipped, []byte("# seed 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{notZipped, "/no/such/trace"} {
		if out, err := command(t, "sim", "replay", file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}
