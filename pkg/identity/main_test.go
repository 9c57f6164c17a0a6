package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testCA(t testing.TB) *CA {
	t.Helper()
	ca, err := OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// As if it had been made long ago: tests issue in the past.
	ca.cert.NotBefore = ca.cert.NotBefore.Add(-30 * 24 * time.Hour)
	return ca
}

func testIdentity(t testing.TB, ca *CA, role Role) *Identity {
	t.Helper()
	id, err := ca.Self(t.TempDir(), role, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func testKey(t testing.TB) Key {
	t.Helper()
	key, err := LoadOrCreateKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func testToken(t testing.TB, ca *CA, role Role, ttl time.Duration, uses int) string {
	t.Helper()
	token, err := ca.NewToken(role, ttl, uses)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// issuedAt makes an identity whose certificate the CA signed at that time,
// unchecked.
func issuedAt(t testing.TB, ca *CA, role Role, at time.Time) *Identity {
	t.Helper()
	id := testIdentity(t, ca, role)
	id.current.Store(credentialAt(t, ca, id.key, role, at))
	return id
}

func credentialAt(t testing.TB, ca *CA, key Key, role Role, at time.Time) *credential {
	t.Helper()
	chain, err := ca.issue(publicOf(t, key), role, at)
	if err != nil {
		t.Fatal(err)
	}
	return rawCredential(key, Peer{ID: key.ID(), Role: role, Cluster: ca.Cluster()}, chain, []*x509.Certificate{ca.cert})
}

// rawCredential presents any chain, also a forged one.
func rawCredential(key Key, p Peer, chain, roots []*x509.Certificate) *credential {
	c := &credential{peer: p, leaf: chain[0], roots: roots, installed: time.Now()}
	c.tls = &tls.Certificate{PrivateKey: key.private, Leaf: chain[0]}
	for _, cert := range chain {
		c.tls.Certificate = append(c.tls.Certificate, cert.Raw)
	}
	return c
}

// peers is a server of every service that answers everything, and tells who
// called.
type peers struct {
	damselflyv1.UnimplementedPeerServer
	damselflyv1.UnimplementedSchedulerServer
	callers chan Peer
}

func (p *peers) called(ctx context.Context) {
	caller, _ := PeerFromContext(ctx)
	select {
	case p.callers <- caller:
	default:
	}
}

func (p *peers) Read(_ *damselflyv1.ReadRequest, s grpc.ServerStreamingServer[damselflyv1.Chunk]) error {
	p.called(s.Context())
	return nil
}

func (p *peers) Holdings(ctx context.Context, _ *damselflyv1.HoldingsRequest) (*damselflyv1.HoldingsResponse, error) {
	p.called(ctx)
	return &damselflyv1.HoldingsResponse{}, nil
}

func (p *peers) Credential(ctx context.Context, _ *damselflyv1.CredentialRequest) (*damselflyv1.CredentialResponse, error) {
	p.called(ctx)
	return &damselflyv1.CredentialResponse{}, nil
}

func (p *peers) Nodes(context.Context, *damselflyv1.NodesRequest) (*damselflyv1.NodesResponse, error) {
	return &damselflyv1.NodesResponse{}, nil
}

func (p *peers) Attend(s grpc.BidiStreamingServer[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage]) error {
	p.called(s.Context())
	return nil
}

// serve runs every service of damselfly.v1 as id on loopback.
func serve(t testing.TB, id *Identity, service damselflyv1.IdentityServer) (address string, callers <-chan Peer) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(id.ServerCredentials()), grpc.InTapHandle(TapHandle(MethodRoles())), grpc.MaxConcurrentStreams(8),
		grpc.ChainUnaryInterceptor(UnaryInterceptor(MethodRoles())),
		grpc.ChainStreamInterceptor(StreamInterceptor(MethodRoles())))
	p := &peers{callers: make(chan Peer, 1)}
	damselflyv1.RegisterIdentityServer(s, service)
	damselflyv1.RegisterPeerServer(s, p)
	damselflyv1.RegisterSchedulerServer(s, p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(listener)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return listener.Addr().String(), p.callers
}

// serveCA runs a scheduler of the CA.
func serveCA(t testing.TB, ca *CA) string {
	t.Helper()
	service, err := ca.Server(Options{})
	if err != nil {
		t.Fatal(err)
	}
	address, _ := serve(t, testIdentity(t, ca, RoleScheduler), service)
	return address
}

func dial(t testing.TB, address string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// anonymous are credentials without a certificate, that accept any server.
func anonymous() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
}

func anyRole() Expect { return Expect{Roles: []Role{RoleNode, RoleSeed, RoleScheduler}} }

func holdings(t testing.TB, conn *grpc.ClientConn) error {
	t.Helper()
	_, err := damselflyv1.NewPeerClient(conn).Holdings(t.Context(), &damselflyv1.HoldingsRequest{})
	return err
}
