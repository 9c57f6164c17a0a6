package identity

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The directory may have something in it that is no CA, as a fresh file system does:
// there is none then, and no other cluster is started beside the one that is named.
func TestAdoptCAIntoAFileSystemOfItsOwn(t *testing.T) {
	ca := testCA(t)
	address := serveCA(t, ca)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := AdoptCA(t.Context(), dir, address, ""); !errors.Is(err, ErrNoToken) {
		t.Errorf("without a token: %v", err)
	}
	before, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := AdoptCA(t.Context(), dir, address, testToken(t, ca, RoleScheduler, time.Hour, 1))
	if err != nil || got.Cluster() != ca.Cluster() {
		t.Fatalf("with a token: %v", err)
	}
	if after, err := os.Stat(dir); err != nil || !os.SameFile(before, after) {
		t.Errorf("the directory is another one now, which that of a file system cannot be: %v", err)
	}
	// What was not put in place whole is no CA, and the next try completes it.
	if err := os.Remove(filepath.Join(dir, caKeyFile)); err != nil {
		t.Fatal(err)
	}
	if got, err = AdoptCA(t.Context(), dir, address, testToken(t, ca, RoleScheduler, time.Hour, 1)); err != nil || !got.key.Equal(ca.key) {
		t.Errorf("after a crash before the key was kept: %v", err)
	}
}

// A CA whose key was lost is not replaced by that of another cluster.
func TestAdoptCABesideAnother(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	if err := os.Remove(filepath.Join(other.dir, caKeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := AdoptCA(t.Context(), other.dir, serveCA(t, ca), testToken(t, ca, RoleScheduler, time.Hour, 1)); !errors.Is(err, ErrWrongCluster) {
		t.Errorf("over the certificate of another CA: %v", err)
	}
	if left, err := readCerts(filepath.Join(other.dir, caCertFile)); err != nil || !left[0].Equal(other.cert) {
		t.Errorf("the certificate was replaced, %v", err)
	}
}

// A node that is denied does not renew at a scheduler that got the CA since, before any
// gossip.
func TestAdoptedCAKnowsWhoIsDenied(t *testing.T) {
	ca := testCA(t)
	address := serveCA(t, ca)
	node, err := Join(t.Context(), t.TempDir(), address, testToken(t, ca, RoleNode, time.Hour, 1), Options{})
	if err != nil {
		t.Fatal(err)
	}
	back := testKey(t).ID()
	for _, err := range []error{ca.Deny(node.ID()), ca.Deny(back), ca.Allow(back)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	second, err := AdoptCA(t.Context(), filepath.Join(t.TempDir(), "ca"), address, testToken(t, ca, RoleScheduler, time.Hour, 1))
	if err != nil {
		t.Fatal(err)
	}
	want, err := ca.Statements()
	got, err2 := second.Statements()
	if err != nil || err2 != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("the second has the statements %v, the first %v; %v, %v", got, want, err, err2)
	}
	node.issuer = &anyOf{remoteIssuer{scheduler: serveCA(t, second)}, nil, eachLimit}
	if err := node.Renew(t.Context()); !errors.Is(err, ErrDenied) {
		t.Errorf("the denied node renews at the second: %v", err)
	}
}

// A scheduler starts with the token of its first start, though the CA was replaced
// since and the former one is trusted no more.
func TestTokenOfAFormerCA(t *testing.T) {
	ca := testCA(t)
	address := serveCA(t, ca)
	token := testToken(t, ca, RoleScheduler, time.Hour, 1)
	second, err := AdoptCA(t.Context(), filepath.Join(t.TempDir(), "ca"), address, token)
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(t.TempDir(), "next")
	if _, err := second.Successor(next); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(next, caRootsFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := AdoptCA(t.Context(), next, closedAddress(t), token); err != nil {
		t.Errorf("it does not start again: %v", err)
	}
	other := testToken(t, testCA(t), RoleScheduler, time.Hour, 1)
	if _, err := AdoptCA(t.Context(), next, address, other); !errors.Is(err, ErrWrongCluster) {
		t.Errorf("with a token of another cluster: %v", err)
	}
}

// DESIGN.md says how the CA of several schedulers is replaced: the successor's root
// goes into each scheduler's directory, and does so while they run.
func TestSuccessorOfSeveralSchedulers(t *testing.T) {
	ca := testCA(t)
	address := serveCA(t, ca)
	second, err := AdoptCA(t.Context(), filepath.Join(t.TempDir(), "ca"), address, testToken(t, ca, RoleScheduler, time.Hour, 1))
	if err != nil {
		t.Fatal(err)
	}
	at2 := serveCA(t, second)
	node, err := Join(t.Context(), t.TempDir(), at2, testToken(t, second, RoleNode, time.Hour, 1), Options{})
	if err != nil {
		t.Fatal(err)
	}
	next, err := ca.Successor(filepath.Join(t.TempDir(), "next"))
	if err != nil {
		t.Fatal(err)
	}
	after, _ := serve(t, testIdentity(t, next, RoleScheduler), nil)
	conn := dial(t, after, node.ClientCredentials(anyRole()))
	if err := node.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := holdings(t, conn); err == nil {
		t.Fatal("the successor is trusted already, so this test shows nothing")
	}
	roots, err := os.ReadFile(filepath.Join(ca.dir, caRootsFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(second.dir, caRootsFile), roots, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := node.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn = dial(t, after, node.ClientCredentials(anyRole()))
	if err := holdings(t, conn); err != nil {
		t.Errorf("a node that renewed at the second, which had the root by then: %v", err)
	}
}
