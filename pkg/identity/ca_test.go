package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

func TestProcessesAgreeOnOneCA(t *testing.T) {
	dir := t.TempDir()
	roots := concurrently(t, 16, func() (string, error) {
		ca, err := OpenCA(dir)
		if err != nil {
			return "", err
		}
		if !ca.key.PublicKey.Equal(ca.cert.PublicKey) {
			return "", fmt.Errorf("key and certificate do not belong together")
		}
		return string(ca.cert.Raw), nil
	})
	for _, r := range roots {
		if r != roots[0] {
			t.Fatal("got two CAs")
		}
	}
	info, err := os.Stat(filepath.Join(dir, caKeyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("CA key has mode %v, %v", info.Mode(), err)
	}
}

func TestClusterIsNamedAfterTheCAKey(t *testing.T) {
	ca := testCA(t)
	pin := pinOf(ca.cert)
	if want := hex.EncodeToString(pin[:8]); ca.Cluster() != want {
		t.Fatalf("cluster is %s, want the start of the key's hash, %s", ca.Cluster(), want)
	}
	if ca.key.Curve != elliptic.P256() {
		t.Fatalf("CA key is on %s", ca.key.Curve.Params().Name)
	}
}

func TestLostCAKeyIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenCA(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, caKeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCA(dir); err == nil || !strings.Contains(err.Error(), "restore the key") {
		t.Fatalf("a directory that lost its key gave %v", err)
	}
}

func TestKeyAndCertificateOfTwoCAsAreRefused(t *testing.T) {
	a, b := testCA(t), testCA(t)
	if err := os.WriteFile(filepath.Join(a.dir, caCertFile), encodeCerts(b.cert), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCA(a.dir); err == nil || !strings.Contains(err.Error(), "one backup") {
		t.Fatalf("mixed pair gave %v", err)
	}
}

func TestCertificateLivesADayAndNotLongerThanTheCA(t *testing.T) {
	ca := testCA(t)
	key := testKey(t)
	now := time.Now()
	chain, err := ca.issue(publicOf(t, key), RoleNode, now)
	if err != nil {
		t.Fatal(err)
	}
	if left := chain[0].NotAfter.Sub(now); left > 24*time.Hour || left < 24*time.Hour-time.Minute {
		t.Errorf("certificate lives %s, want a day", left)
	}
	if early := now.Sub(chain[0].NotBefore); early < time.Minute || early > 10*time.Minute {
		t.Errorf("certificate is backdated by %s, want some minutes", early)
	}
	chain, err = ca.issue(publicOf(t, key), RoleNode, ca.cert.NotAfter.Add(-2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if chain[0].NotAfter.After(ca.cert.NotAfter) {
		t.Errorf("certificate lives until %s, its CA until %s", chain[0].NotAfter, ca.cert.NotAfter)
	}
	if _, err := ca.issue(publicOf(t, key), RoleNode, ca.cert.NotAfter); err == nil || !strings.Contains(err.Error(), "successor") {
		t.Errorf("an expired CA issued, or did not say what to do: %v", err)
	}
}

// TestForgedRequest asks for everything that a request can carry.
func TestForgedRequest(t *testing.T) {
	ca := testCA(t)
	address := serveCA(t, ca)
	token, err := ParseToken(testToken(t, ca, RoleNode, time.Hour, 10))
	if err != nil {
		t.Fatal(err)
	}
	key, victim := testKey(t), testKey(t)
	forged, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: victim.ID(), Organization: []string{"system:masters"}},
		URIs:        []*url.URL{Peer{ID: victim.ID(), Role: RoleScheduler, Cluster: ca.Cluster()}.uri()},
		DNSNames:    []string{"scheduler.example.com"},
		IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // CA:TRUE
		},
	}, key.Private())
	if err != nil {
		t.Fatal(err)
	}
	client := damselflyv1.NewIdentityClient(dial(t, address, anonymous()))
	answer, err := client.Join(t.Context(), &damselflyv1.JoinRequest{TokenId: token.ID, Secret: token.secret, Csr: forged})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(answer.GetChain()[0])
	if err != nil {
		t.Fatal(err)
	}
	p, err := peerOf(leaf)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Peer{ID: key.ID(), Role: RoleNode, Cluster: ca.Cluster()}); p != want {
		t.Errorf("certificate is for %s, want %s", p, want)
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 || leaf.IsCA || len(leaf.Subject.Organization) != 0 || leaf.Subject.CommonName != key.ID() {
		t.Errorf("names of the request came through: %v %v %v CA=%v", leaf.Subject, leaf.DNSNames, leaf.IPAddresses, leaf.IsCA)
	}
}

func TestRequestWithoutProofOfPossession(t *testing.T) {
	key := testKey(t)
	good, err := key.request()
	if err != nil {
		t.Fatal(err)
	}
	other := publicOf(t, testKey(t))
	stolen := bytes.Replace(good, publicOf(t, key), other, 1)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wrongType, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, ec)
	if err != nil {
		t.Fatal(err)
	}
	ca := testCA(t)
	address := serveCA(t, ca)
	token, err := ParseToken(testToken(t, ca, RoleNode, time.Hour, 1))
	if err != nil {
		t.Fatal(err)
	}
	client := damselflyv1.NewIdentityClient(dial(t, address, anonymous()))
	for name, csr := range map[string][]byte{
		"another node's key": stolen,
		"an ECDSA key":       wrongType,
		"nothing":            nil,
		"garbage":            []byte("hello"),
		"cut off":            good[:len(good)-1],
		"far too long":       make([]byte, 2*maxCSR),
	} {
		_, err := client.Join(t.Context(), &damselflyv1.JoinRequest{TokenId: token.ID, Secret: token.secret, Csr: csr})
		if err == nil || !strings.Contains(err.Error(), "InvalidArgument") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// None of them has cost the token its one use.
	if _, err := Join(t.Context(), t.TempDir(), address, token.reveal(), Options{}); err != nil {
		t.Errorf("the token no longer works: %v", err)
	}
}

func FuzzRequest(f *testing.F) {
	good, err := testKey(f).request()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		public, id, err := parseRequest(der)
		if err != nil {
			return
		}
		if want, err := idOf(public); err != nil || want != id {
			t.Fatalf("ID %s for the key of %s (%v)", id, want, err)
		}
	})
}

func TestSuccessorTakesOverWithoutAGap(t *testing.T) {
	old := testCA(t)
	oldAddress := serveCA(t, old)
	dir := t.TempDir()
	node, err := Join(t.Context(), dir, oldAddress, testToken(t, old, RoleNode, time.Hour, 1), Options{})
	if err != nil {
		t.Fatal(err)
	}
	next, err := old.Successor(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if next.Cluster() != old.Cluster() {
		t.Fatalf("cluster changed its ID from %s to %s", old.Cluster(), next.Cluster())
	}
	if bytes.Equal(next.cert.RawSubjectPublicKeyInfo, old.cert.RawSubjectPublicKeyInfo) {
		t.Fatal("the successor has the old key")
	}
	// The old CA still signs and makes the new one known.
	if err := node.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The scheduler changes over; nodes with certificates of either CA meet.
	newAddress := serveCA(t, next)
	moved, err := Join(t.Context(), dir, newAddress, "", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := moved.Renew(t.Context()); err != nil {
		t.Fatalf("a node of the old CA cannot renew at the new one: %v", err)
	}
	address, callers := serve(t, node, nil)
	if err := holdings(t, dial(t, address, moved.ClientCredentials(anyRole()))); err != nil {
		t.Fatalf("nodes of old and new CA do not understand each other: %v", err)
	}
	if got := <-callers; got != moved.Peer() {
		t.Fatalf("server saw %s, want %s", got, moved.Peer())
	}
	// A restart with the token of the old CA keeps the good certificate.
	stale := testToken(t, old, RoleNode, time.Hour, 1)
	if err := os.Remove(filepath.Join(next.dir, caRootsFile)); err != nil {
		t.Fatal(err)
	}
	if err := moved.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, err := Join(t.Context(), dir, newAddress, stale, Options{})
	if err != nil {
		t.Fatalf("a token for the former CA stops a node that has a good certificate: %v", err)
	}
	if again.NotAfter() != moved.NotAfter() {
		t.Fatal("the certificate that was kept is not used")
	}
}

func TestSuccessorNeedsADirectoryOfItsOwn(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	for _, dir := range []string{ca.dir, other.dir} {
		if _, err := ca.Successor(dir); err == nil || !strings.Contains(err.Error(), "empty directory") {
			t.Errorf("successor in a used directory: %v", err)
		}
	}
}
