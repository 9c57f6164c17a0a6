// Package identitytest makes clusters of identities for tests, without a
// network. Only tests import it.
package identitytest

import (
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
)

// TestCluster is a CA for one test.
type TestCluster struct {
	// CA lives in the test's temporary directory.
	CA *identity.CA
}

// Cluster makes a CA that goes away with the test.
func Cluster(t testing.TB) *TestCluster {
	t.Helper()
	ca, err := identity.OpenCA(t.TempDir())
	if err != nil {
		t.Fatalf("open CA: %v", err)
	}
	return &TestCluster{CA: ca}
}

// Identity makes a new identity of the cluster with the role: its own key, a
// certificate of 24 hours, and its own directory that goes away with the test.
func (c *TestCluster) Identity(t testing.TB, role identity.Role) *identity.Identity {
	t.Helper()
	id, err := c.CA.Self(t.TempDir(), role, identity.Options{})
	if err != nil {
		t.Fatalf("make identity: %v", err)
	}
	return id
}
