package identity

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// serveWith serves peers with other credentials or another table.
func serveWith(t *testing.T, creds credentials.TransportCredentials, table map[string][]Role) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(creds), grpc.UnaryInterceptor(UnaryInterceptor(table)), grpc.StreamInterceptor(StreamInterceptor(table)))
	damselflyv1.RegisterPeerServer(s, &peers{callers: make(chan Peer, 1)})
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(listener)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return listener.Addr().String()
}

// lax is an identity whose server lets any client certificate in.
type lax struct{ id *Identity }

func (l lax) credentials() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"h2"},
		ClientAuth:     tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return l.id.current.Load().tls, nil },
	})
}

// signed makes a certificate as issue does, but for what change does to it.
func signed(t *testing.T, ca *CA, key Key, change func(*x509.Certificate)) *Identity {
	t.Helper()
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	p := Peer{ID: key.ID(), Role: RoleNode, Cluster: ca.Cluster()}
	template := &x509.Certificate{
		SerialNumber: serial,
		URIs:         []*url.URL{p.uri()},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, publicOf(t, key), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	id := &Identity{key: key}
	id.current.Store(rawCredential(key, p, []*x509.Certificate{leaf, ca.cert}, []*x509.Certificate{ca.cert}))
	return id
}

// strangers are identities that nobody of the cluster may talk to, by the reason.
func strangers(t *testing.T, ca *CA) map[string]*Identity {
	other := testCA(t)
	now := time.Now()
	uri := func(p Peer) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.URIs = []*url.URL{p.uri()} }
	}
	someone := testKey(t).ID()
	foreign := testIdentity(t, other, RoleNode)
	c := foreign.current.Load()
	foreignWithRoot := &Identity{key: foreign.key}
	foreignWithRoot.current.Store(rawCredential(foreign.key, c.peer, []*x509.Certificate{c.leaf, ca.cert}, []*x509.Certificate{ca.cert}))
	return map[string]*Identity{
		"expired":                       issuedAt(t, ca, RoleNode, now.Add(-certLifetime-leeway-time.Second)),
		"not yet valid":                 issuedAt(t, ca, RoleNode, now.Add(backdate+leeway+5*time.Second)),
		"other cluster":                 foreign,
		"other cluster, showing our CA": foreignWithRoot,
		"other cluster's name":          signed(t, other, testKey(t), uri(Peer{ID: someone, Role: RoleNode, Cluster: ca.Cluster()})),
		"our CA, other cluster's name":  ourCAOtherName(t, ca, other),
		"someone else's ID":             signed(t, ca, testKey(t), uri(Peer{ID: someone, Role: RoleNode, Cluster: ca.Cluster()})),
		"no name":                       signed(t, ca, testKey(t), func(c *x509.Certificate) { c.URIs = nil }),
		"two names":                     signed(t, ca, testKey(t), func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }),
		"unknown role":                  signed(t, ca, testKey(t), func(c *x509.Certificate) { c.URIs[0].Path = strings.Replace(c.URIs[0].Path, "node", "root", 1) }),
		"a CA": signed(t, ca, testKey(t), func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		}),
		"for neither servers nor client": signed(t, ca, testKey(t), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }),
	}
}

func ourCAOtherName(t *testing.T, ca, other *CA) *Identity {
	key := testKey(t)
	return signed(t, ca, key, func(c *x509.Certificate) {
		c.URIs = []*url.URL{Peer{ID: key.ID(), Role: RoleNode, Cluster: other.Cluster()}.uri()}
	})
}

func TestServerRefusesStrangers(t *testing.T) {
	ca := testCA(t)
	reg := prometheus.NewRegistry()
	server, err := ca.Self(t.TempDir(), RoleNode, Options{Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	address, _ := serve(t, server, nil)
	strangers := strangers(t, ca)
	for name, stranger := range strangers {
		stranger.current.Load().roots = []*x509.Certificate{ca.cert}
		if err := holdings(t, dial(t, address, stranger.ClientCredentials(anyRole()))); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := gather(t, reg, "damselfly_identity_refused_connections_total"); got < float64(len(strangers)) {
		t.Errorf("%v refused connections counted, want %d", got, len(strangers))
	}
	if err := holdings(t, dial(t, address, testIdentity(t, ca, RoleNode).ClientCredentials(anyRole()))); err != nil {
		t.Errorf("and a node of the cluster: %v", err)
	}
}

func TestClientRefusesStrangers(t *testing.T) {
	ca := testCA(t)
	client := testIdentity(t, ca, RoleNode)
	for name, stranger := range strangers(t, ca) {
		address := serveWith(t, lax{stranger}.credentials(), MethodRoles())
		if err := holdings(t, dial(t, address, client.ClientCredentials(anyRole()))); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClientRefusesWhomItDoesNotExpect(t *testing.T) {
	ca := testCA(t)
	server, client := testIdentity(t, ca, RoleNode), testIdentity(t, ca, RoleNode)
	address, _ := serve(t, server, nil)
	for name, c := range map[string]struct {
		expect Expect
		says   string
	}{
		"this node":    {Expect{Roles: []Role{RoleNode, RoleSeed}, ID: server.ID()}, ""},
		"any node":     {Expect{Roles: []Role{RoleNode}}, ""},
		"another node": {Expect{Roles: []Role{RoleNode}, ID: client.ID()}, "the other end is " + server.ID()},
		"a scheduler":  {Expect{Roles: []Role{RoleScheduler}}, "has the role node, want scheduler"},
		"a seed":       {Expect{Roles: []Role{RoleSeed}, ID: server.ID()}, "has the role node, want seed"},
		"nobody":       {Expect{}, "none at all"},
		"only an ID":   {Expect{ID: server.ID()}, "none at all"},
	} {
		err := holdings(t, dial(t, address, client.ClientCredentials(c.expect)))
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClocksMayDifferByAMinute(t *testing.T) {
	ca := testCA(t)
	key := testKey(t)
	issued := time.Unix(2_000_000_000, 0)
	ca.cert.NotBefore = issued.Add(-time.Hour)
	ca.cert.NotAfter = issued.Add(caLifetime)
	chain, err := ca.issue(publicOf(t, key), RoleNode, issued)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		now    time.Time
		reason string
	}{
		"at issue":              {issued, ""},
		"a minute early":        {chain[0].NotBefore.Add(-leeway), ""},
		"more than a minute":    {chain[0].NotBefore.Add(-leeway - time.Second), reasonNotYetValid},
		"a minute late":         {chain[0].NotAfter.Add(leeway), ""},
		"more than that late":   {chain[0].NotAfter.Add(leeway + time.Second), reasonExpired},
		"an hour ahead, middle": {issued.Add(time.Hour), ""},
	} {
		_, err := verifyChain(chain, []*x509.Certificate{ca.cert}, x509.ExtKeyUsageClientAuth, c.now)
		refused, ok := errors.AsType[*refusal](err)
		if c.reason == "" && err != nil || c.reason != "" && (!ok || refused.reason != c.reason) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCertificatesRotateWithoutRestart(t *testing.T) {
	ca := testCA(t)
	server, client := testIdentity(t, ca, RoleNode), testIdentity(t, ca, RoleNode)
	address, _ := serve(t, server, nil)
	config := client.ClientTLS(anyRole())
	serial := func() (shown []byte) {
		conn, err := tls.Dial("tcp", address, config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Raw
	}
	before := serial()
	for _, id := range []*Identity{server, client} {
		if err := id.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after := serial(); bytes.Equal(before, after) || !bytes.Equal(after, server.current.Load().leaf.Raw) {
		t.Fatal("the server still shows its old certificate")
	}
	// The client's old certificate runs out; a connection made now shows the new.
	client.current.Store(credentialAt(t, ca, client.key, RoleNode, time.Now().Add(-25*time.Hour)))
	if err := holdings(t, dial(t, address, client.ClientCredentials(anyRole()))); err == nil {
		t.Fatal("an expired certificate was taken")
	}
	creds := client.ClientCredentials(anyRole())
	if err := client.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := holdings(t, dial(t, address, creds)); err != nil {
		t.Fatalf("credentials made before the renewal: %v", err)
	}
}

func TestOnlyTLS13AndNoSessionTickets(t *testing.T) {
	ca := testCA(t)
	server, client := testIdentity(t, ca, RoleNode), testIdentity(t, ca, RoleNode)
	address, _ := serve(t, server, nil)

	old := client.ClientTLS(anyRole())
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if conn, err := tls.Dial("tcp", address, old); err == nil {
		conn.Close()
		t.Error("the server speaks TLS 1.2")
	}

	resume := client.ClientTLS(anyRole())
	resume.SessionTicketsDisabled = false
	resume.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	resume.ServerName = "node"
	for range 3 {
		conn, err := tls.Dial("tcp", address, resume)
		if err != nil {
			t.Fatal(err)
		}
		state := conn.ConnectionState()
		if state.DidResume {
			t.Error("a session was resumed: it would outlive its certificate")
		}
		if state.NegotiatedProtocol != "h2" {
			t.Errorf("protocol is %q", state.NegotiatedProtocol)
		}
		// The server's first frame comes after the tickets that it could send.
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}

// TestResumedSessionsAreVerified is for servers that some day turn tickets on:
// a resumed session passes the same check.
func TestResumedSessionsAreVerified(t *testing.T) {
	ca := testCA(t)
	server := testIdentity(t, ca, RoleNode)
	client := testIdentity(t, ca, RoleNode)
	config := server.ServerTLS()
	config.SessionTicketsDisabled = false
	config.GetConfigForClient = nil
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	outcome := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, err = conn.Write([]byte("x"))
			outcome <- err
			conn.Close()
		}
	}()
	resume := client.ClientTLS(anyRole())
	resume.SessionTicketsDisabled = false
	resume.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	resume.ServerName = "node"
	connect := func() (resumed bool, err error) {
		conn, err := tls.Dial("tcp", listener.Addr().String(), resume)
		if err != nil {
			<-outcome
			return false, err
		}
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
		return conn.ConnectionState().DidResume, errors.Join(err, <-outcome)
	}
	if resumed, err := connect(); err != nil || resumed {
		t.Fatal(resumed, err)
	}
	if resumed, err := connect(); err != nil || !resumed {
		t.Fatalf("the session is not resumed (%v), so this test shows nothing: %v", resumed, err)
	}
	// The server stops trusting the client's CA.
	c := *server.current.Load()
	c.roots = []*x509.Certificate{testCA(t).cert}
	server.current.Store(&c)
	if _, err := connect(); err == nil {
		t.Fatal("a resumed session was taken without a check")
	}
	listener.Close()
	<-done
}

// TestConnectionEndsWithItsCertificate runs a day in no time.
func TestConnectionEndsWithItsCertificate(t *testing.T) {
	for name, c := range map[string]struct {
		anonymous bool
		want      time.Duration
	}{
		"node":      {false, certLifetime + leeway},
		"anonymous": {true, strangerLifetime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := testCA(t)
				server, client := testIdentity(t, ca, RoleNode), testIdentity(t, ca, RoleNode)
				config := client.ClientTLS(anyRole())
				if c.anonymous {
					config.GetClientCertificate = nil
				}
				ours, theirs := net.Pipe()
				failed := make(chan error, 1)
				go func() {
					_, _, err := server.ServerCredentials().Clone().ServerHandshake(ours)
					failed <- err
				}()
				conn := tls.Client(theirs, config)
				if err := conn.Handshake(); err != nil {
					t.Fatal(err)
				}
				if err := <-failed; err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				if lived := time.Since(start); lived > c.want || lived < c.want-2*time.Second {
					t.Fatalf("connection lived %s, want %s", lived, c.want)
				}
				conn.Close()
			})
		})
	}
}

func TestClosedConnectionLeavesNoTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		fired := false
		c := &serverConn{Conn: ours, timer: time.AfterFunc(time.Hour, func() { fired = true }), connections: &connections{}}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * time.Hour)
		if fired {
			t.Fatal("the timer of a closed connection is kept until it fires")
		}
	})
}

func BenchmarkHandshake(b *testing.B) {
	ca := testCA(b)
	server, client := testIdentity(b, ca, RoleNode), testIdentity(b, ca, RoleNode)
	serverConfig, clientConfig := server.ServerTLS(), client.ClientTLS(anyRole())
	for b.Loop() {
		ours, theirs := net.Pipe()
		failed := make(chan error, 1)
		go func() { failed <- tls.Server(ours, serverConfig).Handshake() }()
		if err := errors.Join(tls.Client(theirs, clientConfig).Handshake(), <-failed); err != nil {
			b.Fatal(fmt.Errorf("handshake: %w", err))
		}
		ours.Close()
		theirs.Close()
	}
}
