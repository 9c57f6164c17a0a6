package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// leeway is how far the clocks of two machines may differ before a certificate
// counts as expired or not yet valid.
const leeway = 60 * time.Second

// Expect says whom a client wants to reach.
type Expect struct {
	// Roles that the server may have; at least one, else nobody is accepted.
	Roles []Role
	// ID of the server's key; empty accepts any.
	ID string
}

// Reasons for a refusal, as values of a metric's label.
const (
	reasonMalformed   = "malformed"
	reasonAuthority   = "authority"
	reasonExpired     = "expired"
	reasonNotYetValid = "not_yet_valid"
	reasonRole        = "role"
	reasonID          = "peer_id"
	reasonMissing     = "missing"
	reasonDenied      = "denied"
)

// refusal is why a certificate was not accepted.
type refusal struct {
	reason string
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func refuse(reason, format string, args ...any) *refusal {
	return &refusal{reason: reason, err: fmt.Errorf(format, args...)}
}

// verifyChain checks that the first certificate is a leaf of one of the roots
// for the usage at the time now, give or take leeway, and that its identity is
// its key's and of the roots' cluster. Certificates after the first may link the
// leaf to a root; they are not trusted by themselves.
func verifyChain(chain, roots []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, refuse(reasonMissing, "the other end showed no certificate")
	}
	leaf := chain[0]
	p, err := peerOf(leaf)
	if err != nil {
		return Peer{}, refuse(reasonMalformed, "%w", err)
	}
	if leaf.IsCA {
		return Peer{}, refuse(reasonMalformed, "certificate of %s is a CA's, not a node's", p)
	}
	at, err := withinLeeway(leaf, now)
	if err != nil {
		return Peer{}, err
	}
	options := x509.VerifyOptions{
		Roots:         pool(roots),
		Intermediates: pool(chain[1:]),
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	}
	paths, err := leaf.Verify(options)
	if err != nil {
		return Peer{}, refuse(reasonAuthority, "certificate of %s is not signed by the CA of this cluster (%s): %w", p, describeRoots(roots), err)
	}
	for _, path := range paths {
		if cluster, err := clusterOf(path[len(path)-1]); err == nil && cluster == p.Cluster {
			return p, nil
		}
	}
	return Peer{}, refuse(reasonAuthority, "certificate names %s but was signed by the CA of another cluster", p)
}

// withinLeeway returns the time to verify the leaf at: now, or the nearest end of its
// validity when that is no further than leeway away.
func withinLeeway(leaf *x509.Certificate, now time.Time) (time.Time, error) {
	switch {
	case now.Before(leaf.NotBefore.Add(-leeway)):
		return now, refuse(reasonNotYetValid, "certificate is valid from %s on and the clock here says %s: compare the clocks of both machines",
			leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.After(leaf.NotAfter.Add(leeway)):
		return now, refuse(reasonExpired, "certificate expired at %s and the clock here says %s: compare the clocks of both machines",
			leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return leaf.NotBefore, nil
	case now.After(leaf.NotAfter):
		return leaf.NotAfter, nil
	}
	return now, nil
}

func (e Expect) check(p Peer) error {
	if !slices.Contains(e.Roles, p.Role) {
		return refuse(reasonRole, "%s has the role %s, want %s", p.ID, p.Role, joinRoles(e.Roles))
	}
	if e.ID != "" && e.ID != p.ID {
		return refuse(reasonID, "the other end is %s, want %s: another node has taken over its address", p.ID, e.ID)
	}
	return nil
}

func joinRoles(roles []Role) string {
	if len(roles) == 0 {
		return "none at all"
	}
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	return strings.Join(names, " or ")
}

// pinOf is the hash that a join token carries: of the CA's public key, so that
// it outlives a new certificate for the same key.
func pinOf(cert *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

func describeRoots(roots []*x509.Certificate) string {
	names := make([]string, 0, len(roots))
	for _, r := range roots {
		if cluster, err := clusterOf(r); err == nil && !slices.Contains(names, cluster) {
			names = append(names, cluster)
		}
	}
	return strings.Join(names, ", ")
}

// parseCerts parses DER certificates that came over the wire or from a file.
func parseCerts(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) > maxCerts {
		return nil, fmt.Errorf("%d certificates, at most %d are accepted", len(ders), maxCerts)
	}
	certs := make([]*x509.Certificate, 0, len(ders))
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

const maxCerts = 16

// checkRoots checks that roots are the CA certificates of one cluster and
// returns its ID.
func checkRoots(roots []*x509.Certificate) (string, error) {
	if len(roots) == 0 {
		return "", errors.New("no CA certificate")
	}
	var cluster string
	for _, r := range roots {
		if !r.IsCA {
			return "", errors.New("a CA certificate that is none")
		}
		c, err := clusterOf(r)
		if err != nil {
			return "", err
		}
		if cluster != "" && c != cluster {
			return "", fmt.Errorf("CA certificates of two clusters, %s and %s", cluster, c)
		}
		cluster = c
	}
	return cluster, nil
}
