package peer_test

import (
	"context"
	"math"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/limit"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// bubble is a holder with an upload limit whose connections live in memory, so that
// time is virtual.
type bubble struct {
	*holder
	t      *testing.T
	id     *identity.Identity
	lines  *bufconn.Listener
	upload *limit.Bucket
}

// inBubble runs test with a holder that serves so many reads, perSecond bytes a second.
func inBubble(t *testing.T, reads int, perSecond int64, test func(b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{holder: newStore(t), t: t, lines: bufconn.Listen(1 << 20), upload: limit.New(perSecond)}
		b.id = b.cluster.Identity(t, identity.RoleNode)
		b.keep(t, b.layout.Pieces())
		b.server = peer.NewServer(b.store, b.tasks, reads, nil)
		b.server.Limit(b.upload)
		srv := grpc.NewServer(append(peer.ServerOptions(), grpc.Creds(peer.Buffered(b.id.ServerCredentials())))...)
		damselflyv1.RegisterPeerServer(srv, b.server)
		done := make(chan error, 1)
		go func() { done <- srv.Serve(b.lines) }()
		defer func() {
			srv.Stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		test(b)
	})
}

// node is another node that reads from the holder.
func (b *bubble) node() damselflyv1.PeerClient {
	b.t.Helper()
	id := b.cluster.Identity(b.t, identity.RoleNode)
	cc, err := grpc.NewClient("passthrough:///holder",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.lines.DialContext(ctx) }),
		grpc.WithTransportCredentials(credentials.NewTLS(id.ClientTLS(identity.Expect{Roles: []identity.Role{identity.RoleNode}, ID: b.id.ID()}))))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := cc.Close(); err != nil {
			b.t.Error(err)
		}
	})
	return damselflyv1.NewPeerClient(cc)
}

// read reads all of the blob once and adds to got what comes.
func (b *bubble) read(ctx context.Context, c damselflyv1.PeerClient, p damselflyv1.Want_Priority, got *atomic.Int64) error {
	req := b.request(b.layout.All())
	req.Priority = p
	stream, err := c.Read(ctx, req)
	for err == nil {
		var chunk *damselflyv1.Chunk
		if chunk, err = stream.Recv(); err == nil {
			got.Add(int64(len(chunk.GetData())))
		}
	}
	return err
}

// keepReading reads again and again, until the bubble ends.
func (b *bubble) keepReading(c damselflyv1.PeerClient, p damselflyv1.Want_Priority, got *atomic.Int64) {
	go func() {
		for b.t.Context().Err() == nil {
			_ = b.read(b.t.Context(), c, p, got)
		}
	}()
}

// over is what came within d.
func over(d time.Duration, counts ...*atomic.Int64) []float64 {
	out := make([]float64, len(counts))
	synctest.Wait()
	for i, c := range counts {
		out[i] = -float64(c.Load())
	}
	time.Sleep(d)
	synctest.Wait()
	for i, c := range counts {
		out[i] += float64(c.Load())
	}
	return out
}

func (b *bubble) near(what string, got, want, tolerance float64) {
	b.t.Helper()
	if math.Abs(got-want) > want*tolerance {
		b.t.Errorf("%s got %.0f bytes, want %.0f", what, got, want)
	}
}

// What a holder sends is its upload limit, for one reader or many, and when the limit
// changes while they read.
func TestUploadLimit(t *testing.T) {
	const perSecond = 5e6
	inBubble(t, 8, perSecond, func(b *bubble) {
		var one, other atomic.Int64
		c := b.node()
		b.keepReading(c, 0, &one)
		_ = over(time.Second, &one)
		b.near("one reader", over(5*time.Second, &one)[0], 5*perSecond, 0.05)
		b.keepReading(c, 0, &one)
		b.keepReading(b.node(), 0, &other)
		_ = over(time.Second, &one)
		got := over(5*time.Second, &one, &other)
		b.near("three readers", got[0]+got[1], 5*perSecond, 0.05)
		b.upload.Set(perSecond / 5)
		_ = over(time.Second, &one)
		got = over(10*time.Second, &one, &other)
		b.near("after the change", got[0]+got[1], 10*perSecond/5, 0.05)
	})
}

// A node that opens many reads gets no more than one that opens one.
func TestNodesShareTheUpload(t *testing.T) {
	const perSecond = 5e6
	inBubble(t, 8, perSecond, func(b *bubble) {
		var greedy, modest atomic.Int64
		c := b.node()
		for range 6 {
			b.keepReading(c, 0, &greedy)
		}
		b.keepReading(b.node(), 0, &modest)
		_ = over(2*time.Second, &greedy)
		got := over(10*time.Second, &greedy, &modest)
		b.near("the greedy node", got[0], 5*perSecond, 0.1)
		b.near("the modest node", got[1], 5*perSecond, 0.1)
	})
}

// What a client waits for goes first, on whatever node; what nobody waits for goes on.
func TestClientsGoFirst(t *testing.T) {
	const perSecond = 5e6
	inBubble(t, 8, perSecond, func(b *bubble) {
		var client, background atomic.Int64
		for range 3 {
			b.keepReading(b.node(), damselflyv1.Want_PRIORITY_BACKGROUND, &background)
		}
		_ = over(time.Second, &client)
		c := b.node()
		b.keepReading(c, damselflyv1.Want_PRIORITY_UNSPECIFIED, &client)
		b.keepReading(c, damselflyv1.Want_PRIORITY_UNSPECIFIED, &client)
		_ = over(time.Second, &client)
		got := over(10*time.Second, &client, &background)
		b.near("the client", got[0], 10*perSecond*15/16, 0.05)
		b.near("the background", got[1], 10*perSecond/16, 0.3)
	})
}

// A read that is cancelled frees its slot and the line at that moment, though all that
// it asked for was still to come.
func TestCancelFreesTheLine(t *testing.T) {
	const perSecond = 256 << 10
	inBubble(t, 1, perSecond, func(b *bubble) {
		var left, next atomic.Int64
		first, second := b.node(), b.node()
		ctx, cancel := context.WithCancel(b.t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- b.read(ctx, first, 0, &left) }()
		time.Sleep(time.Second)
		if err := b.read(b.t.Context(), second, 0, &next); status.Code(err) != codes.ResourceExhausted {
			b.t.Fatalf("beside the first read: %v", err)
		}
		started := time.Now()
		cancel()
		<-ended
		synctest.Wait()
		b.keepReading(second, 0, &next)
		synctest.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := float64(next.Load()); got < 0.75*perSecond || time.Since(started) > time.Second {
			b.t.Errorf("%.0f bytes in the %v after the cancel", got, time.Since(started))
		}
		_ = over(0, &left)
		if got := left.Load(); got > 2*perSecond {
			b.t.Errorf("the cancelled read got %d bytes", got)
		}
	})
}

// A reader does not lose its slot for what this node's limit takes.
func TestLimitIsNoFaultOfTheReader(t *testing.T) {
	inBubble(t, 1, 16<<10, func(b *bubble) { // a quarter of what a reader must take
		b.server.SetPatience(time.Second)
		var got atomic.Int64
		err := b.read(b.t.Context(), b.node(), 0, &got)
		if got.Load() != int64(len(b.data)) {
			b.t.Errorf("%d bytes of %d, %v", got.Load(), len(b.data), err)
		}
	})
}

// One node never has all slots: some are left for those that have none.
func TestNoNodeTakesAllSlots(t *testing.T) {
	inBubble(t, 4, 1, func(b *bubble) { // nothing ends
		busy := func(c damselflyv1.PeerClient) string {
			failed := make(chan error, 1)
			go func() {
				var got atomic.Int64
				failed <- b.read(b.t.Context(), c, 0, &got)
			}()
			time.Sleep(time.Second)
			synctest.Wait()
			select {
			case err := <-failed:
				if status.Code(err) != codes.ResourceExhausted {
					b.t.Errorf("it ended with %v", err)
				}
				return err.Error()
			default:
				return ""
			}
		}
		greedy := b.node()
		for i := range 4 {
			if why := busy(greedy); why != "" {
				b.t.Fatalf("read %d: %s", i, why)
			}
		}
		if why := busy(greedy); !strings.Contains(why, "4 reads of the caller") {
			b.t.Errorf("a fifth read: %q", why)
		}
		modest := b.node()
		if why := busy(modest); why != "" {
			b.t.Errorf("another node: %s", why)
		}
		if why := busy(modest); !strings.Contains(why, "every upload slot") {
			b.t.Errorf("a second read of another node: %q", why)
		}
	})
}

// A reader keeps within its own download limit.
func TestDownloadLimit(t *testing.T) {
	h := newHolder(t, 4)
	h.keep(t, h.layout.Pieces())
	c := h.client(t, identity.RoleNode)
	const perSecond = 4e6
	download := limit.New(perSecond)
	c.Limit(download)
	run := blob.Run{Count: h.layout.Pieces()}
	started, bytes := time.Now(), 0
	for range 3 {
		data, _, err := h.read(t, c, run)
		if err != nil {
			t.Fatal(err)
		}
		bytes += len(data)
	}
	const burst = 80e3 // 20 ms
	if d := time.Since(started); d.Seconds() < (float64(bytes)-burst)/perSecond {
		t.Errorf("%d bytes came in %v", bytes, d)
	}
	// A read that waits for the limit ends with its context.
	download.Set(1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Read(ctx, h.Holder, h.digest, h.layout, run, func(peer.Sender, int) peer.Taker { return away{} }, nil); err != context.DeadlineExceeded {
		t.Errorf("it ended with %v", err)
	}
}
