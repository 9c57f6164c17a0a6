package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

func TestJoinAndMeet(t *testing.T) {
	ca := testCA(t)
	address := serveCA(t, ca)
	node, err := Join(t.Context(), t.TempDir(), address, testToken(t, ca, "", time.Hour, 1), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want := (Peer{ID: node.ID(), Role: RoleNode, Cluster: ca.Cluster()}); node.Peer() != want {
		t.Fatalf("joined as %s, want %s", node.Peer(), want)
	}
	seed, err := Join(t.Context(), t.TempDir(), address, testToken(t, ca, RoleSeed, time.Hour, 1), Options{Role: RoleSeed})
	if err != nil {
		t.Fatal(err)
	}
	nodeAddress, callers := serve(t, node, nil)
	conn := dial(t, nodeAddress, seed.ClientCredentials(Expect{Roles: []Role{RoleNode}, ID: node.ID()}))
	if err := holdings(t, conn); err != nil {
		t.Fatal(err)
	}
	if got := <-callers; got != seed.Peer() {
		t.Fatalf("the node was called by %s, it saw %s", seed.Peer(), got)
	}
}

func TestJoinKeepsWhatIsValid(t *testing.T) {
	ca := testCA(t)
	address := serveCA(t, ca)
	dir := t.TempDir()
	token := testToken(t, ca, RoleNode, time.Hour, 1)
	first, err := Join(t.Context(), dir, address, token, Options{})
	if err != nil {
		t.Fatal(err)
	}
	// The token has no use left and the address is nobody's: neither is needed.
	for _, again := range []string{"", token} {
		id, err := Join(t.Context(), dir, closedAddress(t), again, Options{Role: RoleNode})
		if err != nil {
			t.Fatal(err)
		}
		if id.Peer() != first.Peer() || !id.NotAfter().Equal(first.NotAfter()) {
			t.Fatalf("restart came back as %s until %s", id.Peer(), id.NotAfter())
		}
	}
}

func TestJoinAgainWhenWhatIsKeptCannotBeUsed(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	address := serveCA(t, ca)
	yesterday := time.Now().Add(-25 * time.Hour)
	for name, spoil := range map[string]func(t *testing.T, dir string, key Key){
		"expired": func(t *testing.T, dir string, key Key) {
			keep(t, credentialAt(t, ca, key, RoleNode, yesterday), dir)
		},
		"other cluster": func(t *testing.T, dir string, key Key) {
			keep(t, credentialAt(t, other, key, RoleNode, time.Now()), dir)
		},
		"other key": func(t *testing.T, dir string, _ Key) {
			keep(t, credentialAt(t, ca, testKey(t), RoleNode, time.Now()), dir)
		},
		"other role": func(t *testing.T, dir string, key Key) {
			keep(t, credentialAt(t, ca, key, RoleSeed, time.Now()), dir)
		},
		"empty file": func(t *testing.T, dir string, _ Key) {
			if err := os.WriteFile(filepath.Join(dir, certFile), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"leaf alone": func(t *testing.T, dir string, key Key) {
			leaf := credentialAt(t, ca, key, RoleNode, time.Now()).leaf
			if err := os.WriteFile(filepath.Join(dir, certFile), encodeCerts(leaf), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			key, err := LoadOrCreateKey(dir)
			if err != nil {
				t.Fatal(err)
			}
			spoil(t, dir, key)
			if name != "other cluster" {
				if _, err := Join(t.Context(), dir, address, "", Options{Role: RoleNode}); !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), "token create") {
					t.Errorf("without a token: %v", err)
				}
			}
			id, err := Join(t.Context(), dir, address, testToken(t, ca, RoleNode, time.Hour, 1), Options{Role: RoleNode})
			if err != nil {
				t.Fatal(err)
			}
			if want := (Peer{ID: key.ID(), Role: RoleNode, Cluster: ca.Cluster()}); id.Peer() != want {
				t.Fatalf("joined as %s, want %s", id.Peer(), want)
			}
			if _, err := Join(t.Context(), dir, closedAddress(t), "", Options{Role: RoleNode}); err != nil {
				t.Fatalf("the new certificate was not kept: %v", err)
			}
		})
	}
}

func keep(t *testing.T, c *credential, dir string) {
	t.Helper()
	if err := c.keep(dir); err != nil {
		t.Fatal(err)
	}
}

func closedAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	return listener.Addr().String()
}

func TestJoinUnreachable(t *testing.T) {
	token := testToken(t, testCA(t), RoleNode, time.Hour, 1)
	closed := closedAddress(t)
	// One that accepts connections, but speaks no TLS.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plain := grpc.NewServer()
	done := make(chan struct{})
	go func() {
		defer close(done)
		plain.Serve(listener)
	}()
	defer func() {
		plain.Stop()
		<-done
	}()
	for name, address := range map[string]string{"nobody listens": closed, "no TLS": listener.Addr().String()} {
		_, err := Join(t.Context(), t.TempDir(), address, token, Options{})
		if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), address) || !strings.Contains(err.Error(), "check that it runs") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, address := range []string{"", "scheduler", "http://scheduler:1", ":1", "host:"} {
		if _, err := Join(t.Context(), t.TempDir(), address, token, Options{}); err == nil || !strings.Contains(err.Error(), "host:port") {
			t.Errorf("address %q: %v", address, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Join(ended, t.TempDir(), closed, token, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a join that was given up: %v", err)
	}
}

// secretThief is an Identity service that wants to see tokens.
type secretThief struct {
	damselflyv1.UnimplementedIdentityServer
	secrets chan string
}

func (s *secretThief) Join(_ context.Context, r *damselflyv1.JoinRequest) (*damselflyv1.Certificate, error) {
	s.secrets <- r.GetSecret()
	return nil, status.Error(codes.Internal, "thank you")
}

func TestJoinTellsTheSecretToTheSchedulerAlone(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	token := testToken(t, ca, RoleNode, time.Hour, 1)
	thief := &secretThief{secrets: make(chan string, 1)}

	// A scheduler of another cluster that shows our public root besides its own.
	withRoot := testIdentity(t, other, RoleScheduler)
	c := withRoot.current.Load()
	withRoot.current.Store(rawCredential(withRoot.key, c.peer, []*x509.Certificate{c.leaf, other.cert, ca.cert}, c.roots))

	for name, c := range map[string]struct {
		impostor *Identity
		want     error
	}{
		"another cluster":           {testIdentity(t, other, RoleScheduler), ErrWrongCluster},
		"another cluster with root": {withRoot, ErrWrongCluster},
		"a node of this cluster":    {testIdentity(t, ca, RoleNode), ErrWrongCluster},
		"a seed of this cluster":    {testIdentity(t, ca, RoleSeed), ErrWrongCluster},
		"an expired scheduler":      {issuedAt(t, ca, RoleScheduler, time.Now().Add(-25*time.Hour)), ErrClock},
		"a scheduler of tomorrow":   {issuedAt(t, ca, RoleScheduler, time.Now().Add(24*time.Hour)), ErrClock},
	} {
		address, _ := serve(t, c.impostor, thief)
		_, err := Join(t.Context(), t.TempDir(), address, token, Options{})
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), address) {
			t.Errorf("%s: %v", name, err)
		}
		select {
		case <-thief.secrets:
			t.Errorf("%s was sent the secret", name)
		default:
		}
	}
}

func TestJoinWithABadToken(t *testing.T) {
	ca := testCA(t)
	core, logs := observer.New(zapcore.DebugLevel)
	service, err := ca.Server(Options{Log: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	address, _ := serve(t, testIdentity(t, ca, RoleScheduler), service)

	usedUp := testToken(t, ca, RoleNode, time.Hour, 1)
	if _, err := Join(t.Context(), t.TempDir(), address, usedUp, Options{}); err != nil {
		t.Fatal(err)
	}
	revoked := parsedToken(t, ca, time.Hour, 1)
	if err := ca.RevokeToken(revoked.ID); err != nil {
		t.Fatal(err)
	}
	wrong := parsedToken(t, ca, time.Hour, 1)
	wrong.secret = strings.Repeat("A", 43)
	expired := parsedToken(t, ca, time.Hour, 1)
	record, err := ca.tokens.read(expired.ID)
	if err != nil {
		t.Fatal(err)
	}
	record.Expires = time.Now().Add(-time.Second)
	if err := ca.tokens.write(record); err != nil {
		t.Fatal(err)
	}

	messages := make(map[string]bool)
	for want, token := range map[error]string{
		errTokenUsedUp:  usedUp,
		errTokenUnknown: revoked.reveal(),
		errTokenSecret:  wrong.reveal(),
		errTokenExpired: expired.reveal(),
	} {
		logs.TakeAll()
		_, err := Join(t.Context(), t.TempDir(), address, token, Options{})
		if !errors.Is(err, ErrTokenRefused) || !strings.Contains(err.Error(), "token create") {
			t.Fatalf("%v: %v", want, err)
		}
		messages[err.Error()] = true
		refused := logs.FilterMessage("refused a join").All()
		if len(refused) != 1 || refused[0].ContextMap()["error"] != want.Error() {
			t.Errorf("%v: the log says %v", want, refused)
		}
		secret := token[strings.LastIndex(token, ".")+1:]
		for _, entry := range logs.All() {
			for _, value := range entry.ContextMap() {
				if s, ok := value.(string); ok && strings.Contains(s, secret) {
					t.Errorf("the log shows the secret: %v", entry)
				}
			}
		}
	}
	if len(messages) != 1 {
		t.Errorf("callers can tell why a token is refused: %v", messages)
	}
}

func TestJoinWithTheWrongRole(t *testing.T) {
	ca := testCA(t)
	dir := t.TempDir()
	_, err := Join(t.Context(), dir, serveCA(t, ca), testToken(t, ca, RoleNode, time.Hour, 1), Options{Role: RoleSeed})
	if !errors.Is(err, ErrWrongRole) || !strings.Contains(err.Error(), "make a token for that role") {
		t.Fatalf("a seed with a node's token: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, certFile)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the certificate for the wrong role was kept: %v", err)
	}
}

func TestDeniedNode(t *testing.T) {
	ca := testCA(t)
	address := serveCA(t, ca)
	node, err := Join(t.Context(), t.TempDir(), address, testToken(t, ca, RoleNode, time.Hour, 1), Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := node.NotAfter()
	// By another process.
	admin, err := OpenCA(ca.dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := admin.Deny(node.ID()); err != nil {
			t.Fatal(err)
		}
	}
	if err := node.Renew(t.Context()); !errors.Is(err, ErrDenied) {
		t.Fatalf("a denied node renewed: %v", err)
	}
	if !node.NotAfter().Equal(before) {
		t.Fatal("a failed renewal changed the certificate")
	}
	if err := os.Remove(filepath.Join(node.dir, certFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), node.dir, address, testToken(t, ca, RoleNode, time.Hour, 1), Options{}); !errors.Is(err, ErrDenied) {
		t.Fatalf("a denied node joined: %v", err)
	}
	if ids, err := ca.DeniedIDs(); err != nil || len(ids) != 1 || ids[0] != node.ID() {
		t.Fatalf("denied are %v, %v", ids, err)
	}
	if err := admin.Allow(node.ID()); err != nil {
		t.Fatal(err)
	}
	if err := node.Renew(t.Context()); err != nil {
		t.Fatalf("a node that is allowed again: %v", err)
	}
	for _, id := range []string{"", "..", "../ca.key", strings.Repeat("a", 300)} {
		if err := ca.Deny(id); err == nil {
			t.Errorf("denied %q", clip(id))
		}
		if denied, err := ca.Denied(id); err == nil || !denied {
			t.Errorf("%q is not denied", clip(id))
		}
	}
}

func TestMetricsFollowTheCertificate(t *testing.T) {
	ca := testCA(t)
	reg := prometheus.NewRegistry()
	o := Options{Registerer: reg}
	dir := t.TempDir()
	token := testToken(t, ca, RoleNode, time.Hour, 1)
	// A try that fails leaves nothing behind that a second one trips over.
	if _, err := Join(t.Context(), dir, closedAddress(t), token, o); !errors.Is(err, ErrUnreachable) {
		t.Fatal(err)
	}
	node, err := Join(t.Context(), dir, serveCA(t, ca), token, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := gather(t, reg, "damselfly_identity_cert_expiry_timestamp_seconds"), float64(node.NotAfter().Unix()); got != want {
		t.Errorf("expiry is %v, want %v", got, want)
	}
	if got := gather(t, reg, "damselfly_identity_renewals_total"); got != 1 {
		t.Errorf("%v renewals counted, want 1", got)
	}
}

// gather sums the samples of a metric.
func gather(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			found = true
		}
	}
	if !found {
		t.Fatalf("no metric %s", name)
	}
	return sum
}
