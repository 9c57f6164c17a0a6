package server_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// caller takes the name and role that the test's client wrote into its headers:
// certificates are pkg/identity's business.
func caller(ctx context.Context) (id, role string, ok bool) {
	md, _ := metadata.FromIncomingContext(ctx)
	if len(md["node"]) == 0 {
		return "", "", false
	}
	return md["node"][0], md["role"][0], true
}

type world struct {
	t      *testing.T
	client damselflyv1.SchedulerClient
	trace  *bytes.Buffer // to be read after stop
	stop   func()
}

// newWorld runs a server over an in-memory connection until the test ends.
func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldWith(t, server.Config{})
}

func newWorldWith(t *testing.T, cfg server.Config) *world {
	t.Helper()
	return newWorldLogged(t, cfg, zapcore.NewNopCore())
}

// newWorldLogged is newWorldWith whose log goes to a core.
func newWorldLogged(t *testing.T, cfg server.Config, logs zapcore.Core) *world {
	t.Helper()
	w := &world{t: t, trace: &bytes.Buffer{}}
	cfg.Caller, cfg.Release = caller, "test"
	if cfg.Trace == nil {
		cfg.Trace = w.trace
	}
	s, err := server.New(cfg, zap.New(logs), nil)
	if err != nil {
		t.Fatal(err)
	}
	lis := bufconn.Listen(1 << 20)
	g := grpc.NewServer(grpc.ForceServerCodecV2(server.Codec()), grpc.MaxRecvMsgSize(64<<20))
	damselflyv1.RegisterSchedulerServer(g, s)
	ctx, cancel := context.WithCancel(context.Background())
	ran, served := make(chan error, 1), make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	go func() { served <- g.Serve(lis) }()
	cc, err := grpc.NewClient("passthrough:///scheduler", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	w.client = damselflyv1.NewSchedulerClient(cc)
	w.stop = sync.OnceFunc(func() {
		_ = cc.Close()
		cancel()
		if err := <-ran; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(w.stop)
	return w
}

type node struct {
	t *testing.T
	grpc.BidiStreamingClient[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage]
	waiting []*damselflyv1.Decision
	seeds   []*damselflyv1.Holder // that it was told of last
}

func (w *world) open(id, role string) *node {
	w.t.Helper()
	ctx := metadata.AppendToOutgoingContext(w.t.Context(), "node", id, "role", role)
	s, err := w.client.Attend(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return &node{t: w.t, BidiStreamingClient: s}
}

// attend opens a stream and is welcomed.
func (w *world) attend(id, role string) *node {
	w.t.Helper()
	n := w.open(id, role)
	n.tell(hello(id))
	if got := n.next(); got.GetWelcome().GetRelease() != "test" {
		w.t.Fatalf("%s is greeted with %v", id, got)
	}
	return n
}

func hello(id string) *damselflyv1.NodeEvent {
	return &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Attend{Attend: &damselflyv1.Attend{Protocol: server.Protocol, Address: id + ":1"}}}
}

func (n *node) tell(es ...*damselflyv1.NodeEvent) {
	n.t.Helper()
	if err := n.Send(&damselflyv1.NodeMessage{Events: es}); err != nil {
		n.t.Fatal(err)
	}
}

// next is the next decision for the node. What only tells of seeds is noted.
func (n *node) next() *damselflyv1.Decision {
	n.t.Helper()
	for {
		for len(n.waiting) == 0 {
			m, err := n.Recv()
			if err != nil {
				n.t.Fatal(err)
			}
			n.waiting = m.GetDecisions()
		}
		d := n.waiting[0]
		n.waiting = n.waiting[1:]
		if s := d.GetSchedulers(); s != nil {
			n.seeds = s.GetSeeds()
			if len(s.GetMembers()) == 0 {
				continue
			}
		}
		return d
	}
}

// answer is what the scheduler says next once it has taken all that came before.
func (n *node) answer() *damselflyv1.Decision {
	n.t.Helper()
	n.tell(ping(1))
	return n.next()
}

// refused is the status with which the scheduler ends the node's stream.
func (n *node) refused() *status.Status {
	n.t.Helper()
	for {
		if _, err := n.Recv(); err != nil {
			return status.Convert(err)
		}
	}
}

const size = 4 * blob.MinPieceLength

var digest = blob.FromBytes([]byte("a blob")).String()

func want() *damselflyv1.NodeEvent {
	return &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Want{Want: &damselflyv1.Want{
		Digest: digest, Size: size,
		Origin: &damselflyv1.Origin{Kind: damselflyv1.Origin_KIND_BLOB, Registry: "r.example.com", Repository: "app", Private: true},
	}}}
}

func have(first int, links []byte) *damselflyv1.NodeEvent {
	return &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Have{Have: &damselflyv1.Have{
		Digest: digest, Size: size, Runs: []*damselflyv1.Run{{First: uint32(first), Count: 1}}, FirstLink: uint32(first) + 1, Links: links,
	}}}
}

func ping(number uint64) *damselflyv1.NodeEvent {
	return &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Ping{Ping: &damselflyv1.Ping{Number: number}}}
}

// One pull: the seed reads for the node that waits, and what it has goes on to
// that node with the links that prove it.
func TestSeedReadsAndNodeFollows(t *testing.T) {
	w := newWorld(t)
	seed, n := w.attend("seed", "seed"), w.attend("n1", "node")
	n.tell(want())
	lease := seed.next().GetLease()
	if lease.GetOrigin().GetRepository() != "app" || lease.GetRun().GetCount() != 4 || lease.GetOnBehalf().GetNode() != "n1" || lease.GetOnBehalf().GetAddress() != "n1:1" {
		t.Fatalf("the seed was told %v", lease)
	}
	if got := n.next(); got.GetQueued().GetDigest() != digest {
		t.Fatalf("the node was told %v", got)
	}
	seed.tell(have(0, bytes.Repeat([]byte{7}, 32)))
	got := n.next().GetLease()
	if got.GetHolder().GetNode() != "seed" || got.GetRun().GetFirst() != 0 || got.GetRun().GetCount() != 1 || len(got.GetLinks()) != 64 || got.GetFirstLink() != 0 {
		t.Fatalf("the node was told %v", got)
	}
}

func TestSeedThatLeavesIsReplaced(t *testing.T) {
	w := newWorld(t)
	seed, n := w.attend("seed", "seed"), w.attend("n1", "node")
	n.tell(want())
	if seed.next().GetLease() == nil {
		t.Fatal("the seed got no lease")
	}
	n.next()
	if err := seed.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if got := n.next().GetLease(); got.GetOrigin() == nil || got.GetOnBehalf() != nil {
		t.Fatalf("with no seed left the node was told %v", got)
	}
}

func TestPongComesAfterWhatCameBefore(t *testing.T) {
	w := newWorld(t)
	n := w.attend("n1", "node")
	n.tell(want(), ping(41))
	if got := n.next(); got.GetLease() == nil {
		t.Fatalf("first came %v", got)
	}
	if got := n.next(); got.GetPong().GetNumber() != 41 {
		t.Fatalf("then came %v", got)
	}
}

func TestSecondStreamReplacesTheFirst(t *testing.T) {
	w := newWorld(t)
	old := w.attend("n1", "node")
	fresh := w.attend("n1", "node")
	if st := old.refused(); st.Code() != codes.Aborted {
		t.Fatalf("the first stream ended with %v", st)
	}
	fresh.tell(ping(1))
	if got := fresh.next(); got.GetPong().GetNumber() != 1 {
		t.Fatalf("the second stream got %v: the end of the first took it along", got)
	}
}

func TestStrangersAndOtherVersionsAreRefused(t *testing.T) {
	w := newWorld(t)
	s, err := w.client.Attend(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a certificate: %v", err)
	}
	n := w.open("n1", "node")
	n.tell(&damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Attend{Attend: &damselflyv1.Attend{Protocol: 99}}})
	if st := n.refused(); st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), "99") {
		t.Errorf("another version: %v", st)
	}
	n = w.open("n1", "node")
	n.tell(want())
	if st := n.refused(); st.Code() != codes.InvalidArgument {
		t.Errorf("no attend: %v", st)
	}
	for _, address := range []string{"", "nowhere", ":1", "unix:/run/x.sock:1", "h:99999", "a b:1", "h/x:1"} {
		n = w.open("n1", "node")
		e := hello("n1")
		e.GetAttend().Address = address
		n.tell(e)
		if st := n.refused(); st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), "address") {
			t.Errorf("address %q: %v", address, st)
		}
	}
}

func TestMalformedEventsEndTheStreamAndNameTheField(t *testing.T) {
	w := newWorld(t)
	run := func(first, count uint32) []*damselflyv1.Run { return []*damselflyv1.Run{{First: first, Count: count}} }
	for field, e := range map[string]*damselflyv1.NodeEvent{
		"attend":      hello("x"),
		"want.digest": {Event: &damselflyv1.NodeEvent_Want{Want: &damselflyv1.Want{Digest: "sha256:../..", Size: 1}}},
		"want.size":   {Event: &damselflyv1.NodeEvent_Want{Want: &damselflyv1.Want{Digest: digest, Size: 1 << 63}}},
		"want.runs":   {Event: &damselflyv1.NodeEvent_Want{Want: &damselflyv1.Want{Digest: digest, Size: size, Runs: run(1<<32-1, 1<<32-1)}}},
		"have.runs":   {Event: &damselflyv1.NodeEvent_Have{Have: &damselflyv1.Have{Digest: digest, Size: size, Runs: run(4, 1)}}},
		"have.links":  {Event: &damselflyv1.NodeEvent_Have{Have: &damselflyv1.Have{Digest: digest, Size: size, Links: make([]byte, 33)}}},
		"url":         {Event: &damselflyv1.NodeEvent_Want{Want: &damselflyv1.Want{Digest: digest, Size: 1, Origin: &damselflyv1.Origin{Url: strings.Repeat("u", 1<<16)}}}},
		"drop.digest": {Event: &damselflyv1.NodeEvent_Drop{Drop: &damselflyv1.Drop{}}},
	} {
		t.Run(field, func(t *testing.T) {
			n := w.attend("liar", "node")
			n.tell(e)
			if st := n.refused(); st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), strings.TrimSuffix(field, ".digest")) {
				t.Errorf("got %v", st)
			}
		})
	}
	w.attend("honest", "node") // nothing of it harmed the server
}

// A node that reads nothing is given up; the others do not notice it.
func TestSlowNodeDelaysNobody(t *testing.T) {
	w := newWorld(t)
	slow, quick := w.attend("slow", "node"), w.attend("quick", "node")
	said := []*damselflyv1.NodeEvent{want()}
	for i := range 4000 {
		said = append(said, ping(uint64(i)))
	}
	sent := make(chan struct{})
	go func() { // each ping is answered, and nobody takes the answers
		defer close(sent)
		for slow.Send(&damselflyv1.NodeMessage{Events: said}) == nil {
		}
	}()
	for i := range 200 {
		quick.tell(ping(uint64(i)))
		if got := quick.next(); got.GetPong().GetNumber() != uint64(i) {
			t.Fatalf("the quick node got %v", got)
		}
	}
	if st := slow.refused(); st.Code() != codes.ResourceExhausted {
		t.Errorf("the slow node's stream ended with %v", st)
	}
	<-sent
}

func TestSilentNodeIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		silent, n := w.attend("seed", "seed"), w.attend("n1", "node")
		n.tell(want())
		if silent.next().GetLease() == nil {
			t.Fatal("the seed got no lease")
		}
		n.next()
		started := time.Now()
		stop, stopped := make(chan struct{}), make(chan struct{})
		defer func() {
			close(stop)
			<-stopped
		}()
		go func() {
			defer close(stopped)
			for i := uint64(0); ; i++ {
				if n.Send(&damselflyv1.NodeMessage{Events: []*damselflyv1.NodeEvent{ping(i)}}) != nil {
					return
				}
				select {
				case <-stop:
					return
				case <-time.After(500 * time.Millisecond):
				}
			}
		}()
		for {
			if l := n.next().GetLease(); l != nil {
				if took := time.Since(started); l.GetOrigin() == nil || took > 10*time.Second {
					t.Fatalf("after %v the node was told %v", took, l)
				}
				break
			}
		}
		if st := silent.refused(); st.Code() != codes.DeadlineExceeded {
			t.Errorf("the silent seed's stream ended with %v", st)
		}
	})
}

// A seed that had nothing to do, and nothing to say, is not given up because it is
// asked for something just then.
func TestIdleNodeHasTimeToAnswerItsFirstLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		seed := w.attend("seed", "seed")
		time.Sleep(20 * time.Second)
		n := w.attend("n1", "node")
		n.tell(want())
		if seed.next().GetLease() == nil {
			t.Fatal("the seed got no lease")
		}
		time.Sleep(3 * time.Second)
		seed.tell(ping(1))
		if seed.next().GetCancel() == nil { // another reads the origin meanwhile
			t.Error("the silent seed keeps its lease")
		}
		if got := seed.next(); got.GetPong().GetNumber() != 1 {
			t.Errorf("the seed was told %v", got)
		}
	})
}
