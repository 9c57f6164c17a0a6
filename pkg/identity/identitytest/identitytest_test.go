package identitytest_test

import (
	"crypto/tls"
	"errors"
	"net"
	"testing"

	"go.uber.org/goleak"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/identity/identitytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func handshake(client, server *tls.Config) error {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	failed := make(chan error, 1)
	go func() {
		conn := tls.Server(ours, server)
		failed <- errors.Join(conn.Handshake(), ours.Close())
	}()
	conn := tls.Client(theirs, client)
	err := conn.Handshake()
	theirs.Close()
	return errors.Join(err, <-failed)
}

func TestIdentitiesOfOneClusterMeet(t *testing.T) {
	cluster, other := identitytest.Cluster(t), identitytest.Cluster(t)
	seed := cluster.Identity(t, identity.RoleSeed)
	node := cluster.Identity(t, identity.RoleNode)
	stranger := other.Identity(t, identity.RoleNode)
	if seed.ID() == node.ID() {
		t.Fatal("two identities are one")
	}
	expect := identity.Expect{Roles: []identity.Role{identity.RoleSeed}, ID: seed.ID()}
	if err := handshake(node.ClientTLS(expect), seed.ServerTLS()); err != nil {
		t.Fatal(err)
	}
	if err := handshake(stranger.ClientTLS(expect), seed.ServerTLS()); err == nil {
		t.Fatal("identities of two clusters met")
	}
}
