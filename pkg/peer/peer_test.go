package peer_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/identity/identitytest"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tasks is what the clients of a holder are after.
type tasks struct {
	credentials map[blob.Digest]http.Header
	company     peer.Company

	mu  sync.Mutex
	met []peer.Holder
}

func (t *tasks) Credential(d blob.Digest, o *damselflyv1.Origin) (http.Header, bool) {
	if o.GetRegistry() != "r.example.com" {
		return nil, false
	}
	h, ok := t.credentials[d]
	return h, ok
}

func (t *tasks) Meet(_ blob.Digest, h peer.Holder) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.met = append(t.met, h)
}

func (t *tasks) Company(blob.Digest) peer.Company { return t.company }
func (t *tasks) Given(blob.Digest, int)           {}

// holder serves a store over real TLS on loopback.
type holder struct {
	peer.Holder
	server  *peer.Server
	tasks   *tasks
	store   *store.Store
	cluster *identitytest.TestCluster
	data    []byte
	digest  blob.Digest
	layout  blob.Layout
}

func newHolder(t testing.TB, reads int) *holder {
	t.Helper()
	h := newStore(t)
	h.server = peer.NewServer(h.store, h.tasks, reads, nil)
	h.Holder = serve(t, h, h.server)
	return h
}

// newStore is a holder that does not serve yet.
func newStore(t testing.TB) *holder {
	t.Helper()
	h := &holder{cluster: identitytest.Cluster(t), data: make([]byte, 6*blob.MinPieceLength+777)}
	_, _ = rand.NewChaCha8([32]byte{2}).Read(h.data)
	h.digest = blob.FromBytes(h.data)
	h.layout, _ = blob.NewLayout(int64(len(h.data)))
	var err error
	if h.store, err = store.Open(store.Config{Dir: t.TempDir()}, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.store.Close(); err != nil {
			t.Error(err)
		}
	})
	h.tasks = &tasks{credentials: map[blob.Digest]http.Header{h.digest: {"Authorization": {"Bearer secret"}}}}
	return h
}

// serve serves a Peer service as a node of h's cluster, until the test ends.
func serve(t testing.TB, h *holder, service damselflyv1.PeerServer) peer.Holder {
	t.Helper()
	id := h.cluster.Identity(t, identity.RoleNode)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	table := identity.MethodRoles()
	srv := grpc.NewServer(append(peer.ServerOptions(), grpc.Creds(peer.Buffered(id.ServerCredentials())),
		grpc.UnaryInterceptor(identity.UnaryInterceptor(table)), grpc.StreamInterceptor(identity.StreamInterceptor(table)))...)
	damselflyv1.RegisterPeerServer(srv, service)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return peer.Holder{ID: id.ID(), Address: lis.Addr().String()}
}

// keep puts pieces 0 to n-1 of the blob into the holder's store.
func (h *holder) keep(t testing.TB, n int) {
	t.Helper()
	b, err := h.store.Create(h.digest, int64(len(h.data)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	for i := range n {
		if err := b.Extend(i, h.piece(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func (h *holder) piece(i int) []byte {
	return h.data[h.layout.Offset(i) : h.layout.Offset(i)+h.layout.Length(i)]
}

func (h *holder) client(t testing.TB, role identity.Role) *peer.Client {
	t.Helper()
	c, _ := h.clientAs(t, role)
	return c
}

// clientAs is a client and its peer ID.
func (h *holder) clientAs(t testing.TB, role identity.Role) (*peer.Client, string) {
	t.Helper()
	id := h.cluster.Identity(t, role)
	c := peer.NewClient(id)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, id.ID()
}

func (h *holder) read(t testing.TB, c *peer.Client, run blob.Run) ([]byte, identity.Role, error) {
	t.Helper()
	var got []byte
	var role identity.Role
	err := c.Read(t.Context(), h.Holder, h.digest, h.layout, run, whole(func(from peer.Sender, i int, piece []byte) error {
		role = from.Role
		if want := run.First + len(got)/blob.MinPieceLength; i != want {
			t.Errorf("piece %d came where %d was due", i, want)
		}
		got = append(got, piece...)
		return nil
	}), nil)
	return got, role, err
}

func TestReadGivesPiecesInOrder(t *testing.T) {
	h := newHolder(t, 2)
	h.keep(t, h.layout.Pieces())
	c := h.client(t, identity.RoleNode)
	for _, run := range []blob.Run{{First: 0, Count: h.layout.Pieces()}, {First: 2, Count: 3}, {First: h.layout.Pieces() - 1, Count: 1}} {
		got, role, err := h.read(t, c, run)
		if err != nil || role != identity.RoleNode {
			t.Fatalf("%v: role %q, %v", run, role, err)
		}
		if want := h.data[h.layout.Offset(run.First):][:h.layout.Bytes(run)]; !bytes.Equal(got, want) {
			t.Fatalf("%v: %d bytes, not those of the blob", run, len(got))
		}
	}
}

// Progress is told as it comes, inside of pieces too, and who looks after the upload
// slots hears of each read.
func TestProgressAndReadsAreTold(t *testing.T) {
	h := newHolder(t, 2)
	h.keep(t, h.layout.Pieces())
	began, ended := make(chan blob.Digest, 1), make(chan struct{}, 1)
	h.server.OnRead(func(d blob.Digest) func() {
		began <- d
		return func() { ended <- struct{}{} }
	})
	put, progress := 0, 0
	run := blob.Run{First: 1, Count: 3}
	err := h.client(t, identity.RoleNode).Read(t.Context(), h.Holder, h.digest, h.layout, run, whole(func(_ peer.Sender, _ int, piece []byte) error {
		put += len(piece)
		if progress != put {
			t.Errorf("%d bytes were told of before the piece that makes %d", progress, put)
		}
		return nil
	}), func(n int) { progress += n })
	if err != nil || int64(progress) != h.layout.Bytes(run) {
		t.Errorf("%d bytes of progress, %v", progress, err)
	}
	if d := <-began; d != h.digest {
		t.Errorf("a read of %s was told", d)
	}
	<-ended
}

func TestReadOfWhatIsNotThere(t *testing.T) {
	h := newHolder(t, 2)
	c := h.client(t, identity.RoleNode)
	if _, _, err := h.read(t, c, blob.Run{Count: 1}); !errors.Is(err, peer.ErrMissing) {
		t.Errorf("unknown blob: %v", err)
	}
	h.keep(t, 2)
	got, _, err := h.read(t, c, blob.Run{Count: 4})
	if !errors.Is(err, peer.ErrMissing) || len(got) != 2*blob.MinPieceLength {
		t.Errorf("half a run: %d bytes, %v; want the two pieces before the hole", len(got), err)
	}
	other, _ := blob.NewLayout(int64(len(h.data)) + 1)
	if err := c.Read(t.Context(), h.Holder, h.digest, other, blob.Run{Count: 1}, nil, nil); !errors.Is(err, peer.ErrMissing) {
		t.Errorf("another size: %v", err)
	}
}

// The last piece is given as soon as it has reached the digest, though the piece
// before it is missing: the reader proves the whole for itself.
func TestLastPieceIsGivenOnceItIsHeld(t *testing.T) {
	h := newHolder(t, 2)
	c := h.client(t, identity.RoleNode)
	last := blob.Run{First: h.layout.Pieces() - 1, Count: 1}
	b, err := h.store.Create(h.digest, int64(len(h.data)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	link := h.digest.FirstLink()
	for i := range last.First {
		if link, err = blob.Advance(h.digest, h.layout, i, link, h.piece(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.AddLinks(last.First, link); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.read(t, c, last); !errors.Is(err, peer.ErrMissing) {
		t.Fatalf("before: %v", err)
	}
	if err := b.Put(last.First, h.piece(last.First)); err != nil {
		t.Fatal(err)
	}
	if got, _, err := h.read(t, c, last); err != nil || !bytes.Equal(got, h.piece(last.First)) {
		t.Fatalf("after: %v", err)
	}
}

func TestBusyHolderSaysSoAtOnce(t *testing.T) {
	h := newHolder(t, 1)
	h.keep(t, h.layout.Pieces())
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	// A reader with the smallest window that takes one chunk and no more keeps
	// the holder's only slot.
	slow, err := h.plain(t).Read(ctx, h.request(h.layout.All()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.read(t, h.client(t, identity.RoleNode), blob.Run{Count: 1}); !errors.Is(err, peer.ErrBusy) {
		t.Fatalf("a second reader got %v", err)
	}
}

// plain is a client of the service with gRPC's own codec and settings.
func (h *holder) plain(t testing.TB) damselflyv1.PeerClient {
	t.Helper()
	id := h.cluster.Identity(t, identity.RoleNode)
	cc, err := grpc.NewClient("passthrough:///"+h.Address, grpc.WithInitialWindowSize(64<<10), grpc.WithTransportCredentials(
		id.ClientCredentials(identity.Expect{Roles: []identity.Role{identity.RoleNode}})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cc.Close(); err != nil {
			t.Error(err)
		}
	})
	return damselflyv1.NewPeerClient(cc)
}

func (h *holder) request(run blob.Run) *damselflyv1.ReadRequest {
	return &damselflyv1.ReadRequest{
		Digest: h.digest.String(), Size: uint64(len(h.data)), Run: &damselflyv1.Run{First: uint32(run.First), Count: uint32(run.Count)},
	}
}

func TestReadStopsWithItsContextAndItsTaker(t *testing.T) {
	h := newHolder(t, 2)
	h.keep(t, h.layout.Pieces())
	c := h.client(t, identity.RoleNode)
	stop := errors.New("enough")
	if err := c.Read(t.Context(), h.Holder, h.digest, h.layout, h.layout.All(), whole(func(peer.Sender, int, []byte) error { return stop }), nil); !errors.Is(err, stop) {
		t.Errorf("the taker's error came back as %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	err := c.Read(ctx, h.Holder, h.digest, h.layout, h.layout.All(), whole(func(peer.Sender, int, []byte) error {
		cancel(stop)
		return nil
	}), nil)
	if !errors.Is(err, stop) {
		t.Errorf("the context's cause came back as %v", err)
	}
}

func TestOnlyTheNamedNodeIsRead(t *testing.T) {
	h := newHolder(t, 2)
	h.keep(t, h.layout.Pieces())
	c := h.client(t, identity.RoleNode)
	wrong := h.Holder
	wrong.ID = h.cluster.Identity(t, identity.RoleNode).ID()
	if err := c.Read(t.Context(), wrong, h.digest, h.layout, blob.Run{Count: 1}, nil, nil); !errors.Is(err, peer.ErrUnreachable) {
		t.Errorf("another node at the address: %v", err)
	}
	stranger := newHolder(t, 2).client(t, identity.RoleNode)
	if err := stranger.Read(t.Context(), h.Holder, h.digest, h.layout, blob.Run{Count: 1}, nil, nil); !errors.Is(err, peer.ErrUnreachable) {
		t.Errorf("a node of another cluster: %v", err)
	}
}

func TestCredentialsAreForSeeds(t *testing.T) {
	h := newHolder(t, 2)
	from := &damselflyv1.Origin{Registry: "r.example.com"}
	header, err := h.client(t, identity.RoleSeed).Credential(t.Context(), h.Holder, h.digest, from)
	if err != nil || header.Get("Authorization") != "Bearer secret" {
		t.Errorf("a seed got %v, %v", header, err)
	}
	if header, err := h.client(t, identity.RoleNode).Credential(t.Context(), h.Holder, h.digest, from); err == nil {
		t.Errorf("a node got %v", header)
	}
	if _, err := h.client(t, identity.RoleSeed).Credential(t.Context(), h.Holder, blob.FromBytes(nil), from); !errors.Is(err, peer.ErrMissing) {
		t.Errorf("nobody waits: %v", err)
	}
}

// What no honest node sends is answered with an error; nothing panics.
func TestMalformedRequests(t *testing.T) {
	h := newHolder(t, 2)
	h.keep(t, h.layout.Pieces())
	client := h.plain(t)
	size := uint64(len(h.data))
	for name, req := range map[string]*damselflyv1.ReadRequest{
		"no digest":   {Size: size, Run: &damselflyv1.Run{Count: 1}},
		"path":        {Digest: "sha256:../../etc/passwd", Size: size, Run: &damselflyv1.Run{Count: 1}},
		"no run":      {Digest: h.digest.String(), Size: size},
		"beyond":      {Digest: h.digest.String(), Size: size, Run: &damselflyv1.Run{First: 7, Count: 1}},
		"both":        {Digest: h.digest.String(), Size: size, Run: &damselflyv1.Run{Count: 1}, Lacking: []*damselflyv1.Run{{Count: 1}}},
		"lacking":     {Digest: h.digest.String(), Size: size, Lacking: []*damselflyv1.Run{{Count: 1}, {First: 5, Count: 3}}},
		"many":        {Digest: h.digest.String(), Size: size, Lacking: slices.Repeat([]*damselflyv1.Run{{Count: 1}}, 8)},
		"overflowing": {Digest: h.digest.String(), Size: size, Run: &damselflyv1.Run{First: 1<<32 - 1, Count: 1<<32 - 1}},
	} {
		stream, err := client.Read(t.Context(), req)
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, address := range []string{"nowhere", ":1", "h:", strings.Repeat("h", 300) + ":1"} {
		_, err := client.Holdings(t.Context(), &damselflyv1.HoldingsRequest{Digest: h.digest.String(), Size: size, Address: address})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("address %q: %v", address, err)
		}
	}
	held, err := client.Holdings(t.Context(), &damselflyv1.HoldingsRequest{Digest: h.digest.String(), Size: size})
	if err != nil || !held.GetSealed() || len(held.GetRuns()) != 1 || len(held.GetLinks()) != 32*h.layout.Pieces() {
		t.Errorf("holdings: %v, %v", held, err)
	}
	// Any protobuf client reads the chunks.
	stream, err := client.Read(t.Context(), h.request(blob.Run{First: 6, Count: 1}))
	if err != nil {
		t.Fatal(err)
	}
	if chunk, err := stream.Recv(); err != nil || chunk.GetPiece() != 6 || !bytes.Equal(chunk.GetData(), h.piece(6)) {
		t.Errorf("a plain client got %v of piece %d", err, chunk.GetPiece())
	}
}

func BenchmarkRead(b *testing.B) {
	h := newHolder(b, 4)
	h.keep(b, h.layout.Pieces())
	c := h.client(b, identity.RoleNode)
	b.SetBytes(int64(len(h.data)))
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Read(b.Context(), h.Holder, h.digest, h.layout, h.layout.All(), func(peer.Sender, int) peer.Taker { return away{} }, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// Who asks for pieces and takes none keeps a slot from the others for a while only.
func TestReaderThatTakesNothingLosesItsSlot(t *testing.T) {
	h := newHolder(t, 1)
	h.server.SetPatience(100 * time.Millisecond)
	h.keep(t, h.layout.Pieces())
	id := h.cluster.Identity(t, identity.RoleNode)
	cc, err := grpc.NewClient("passthrough:///"+h.Address, grpc.WithTransportCredentials(
		credentials.NewTLS(id.ClientTLS(identity.Expect{Roles: []identity.Role{identity.RoleNode}, ID: h.ID}))))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cc.Close() }()
	stream, err := damselflyv1.NewPeerClient(cc).Read(t.Context(), &damselflyv1.ReadRequest{
		Digest: h.digest.String(), Size: uint64(len(h.data)), Run: &damselflyv1.Run{Count: uint32(h.layout.Pieces())},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil { // it has the slot
		t.Fatal(err)
	}
	c := h.client(t, identity.RoleNode)
	for {
		_, _, err := h.read(t, c, blob.Run{Count: 1})
		if err == nil {
			break
		}
		if !errors.Is(err, peer.ErrBusy) {
			t.Fatal(err)
		}
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the reader that took nothing was told %v", err)
	}
}
