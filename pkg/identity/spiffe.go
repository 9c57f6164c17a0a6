package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Role is what a certificate entitles its holder to be.
type Role string

const (
	// RoleNode exchanges pieces.
	RoleNode Role = "node"
	// RoleSeed is a node that reads origins, also with the credentials of other
	// nodes' clients.
	RoleSeed Role = "seed"
	// RoleScheduler hands out leases and certificates.
	RoleScheduler Role = "scheduler"

	// Anybody stands in a method table for callers with any role and for those
	// without a certificate. No certificate carries it.
	Anybody Role = "*"
)

// ParseRole returns s as one of the roles that a certificate can carry.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case RoleNode, RoleSeed, RoleScheduler:
		return r, nil
	}
	return "", fmt.Errorf("role %q: want %s, %s or %s", clip(s), RoleNode, RoleSeed, RoleScheduler)
}

// Peer is what a verified certificate says of its holder.
type Peer struct {
	// ID is the libp2p peer ID of the holder's ed25519 key.
	ID string
	// Role was given when the holder joined.
	Role Role
	// Cluster is the ID of the cluster whose CA signed.
	Cluster string
}

// String is the peer's SPIFFE ID, spiffe://<cluster>/<role>/<peer ID> (SPIFFE-ID
// spec, section 2).
func (p Peer) String() string {
	return spiffeScheme + p.Cluster + "/" + string(p.Role) + "/" + p.ID
}

func (p Peer) uri() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: p.Cluster, Path: "/" + string(p.Role) + "/" + p.ID}
}

const (
	spiffeScheme = "spiffe://"
	// maxSPIFFELength is above the longest ID that Peer.String makes.
	maxSPIFFELength = 128
	clusterLength   = 16
)

// parseSPIFFE reads the one form that Peer.String writes, and nothing else.
func parseSPIFFE(s string) (Peer, error) {
	if len(s) > maxSPIFFELength {
		return Peer{}, fmt.Errorf("SPIFFE ID of %d bytes, at most %d are understood", len(s), maxSPIFFELength)
	}
	rest, ok := strings.CutPrefix(s, spiffeScheme)
	if !ok {
		return Peer{}, fmt.Errorf("URI %q: want %s<cluster>/<role>/<peer ID>", s, spiffeScheme)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 3 {
		return Peer{}, fmt.Errorf("SPIFFE ID %q: want <cluster>/<role>/<peer ID> after the scheme", s)
	}
	if err := checkCluster(parts[0]); err != nil {
		return Peer{}, fmt.Errorf("SPIFFE ID %q: %w", s, err)
	}
	role, err := ParseRole(parts[1])
	if err != nil {
		return Peer{}, fmt.Errorf("SPIFFE ID %q: %w", s, err)
	}
	if err := CheckID(parts[2]); err != nil {
		return Peer{}, fmt.Errorf("SPIFFE ID %q: %w", s, err)
	}
	return Peer{ID: parts[2], Role: role, Cluster: parts[0]}, nil
}

// peerOf reads the identity in a leaf certificate and checks that it belongs to
// the certificate's key. It does not check who signed.
func peerOf(leaf *x509.Certificate) (Peer, error) {
	if len(leaf.URIs) != 1 {
		return Peer{}, fmt.Errorf("certificate with %d URI names, want exactly one SPIFFE ID", len(leaf.URIs))
	}
	p, err := parseSPIFFE(leaf.URIs[0].String())
	if err != nil {
		return Peer{}, err
	}
	id, err := idOf(leaf.PublicKey)
	if err != nil {
		return Peer{}, err
	}
	if id != p.ID {
		return Peer{}, fmt.Errorf("certificate names %s but its key is that of %s", p.ID, id)
	}
	return p, nil
}

// clusterOf reads the cluster ID in a CA certificate: a SPIFFE ID without path
// (X509-SVID spec, section 3.2).
func clusterOf(root *x509.Certificate) (string, error) {
	if len(root.URIs) != 1 {
		return "", errors.New("CA certificate without exactly one URI name: it was not made by damselfly")
	}
	cluster, ok := strings.CutPrefix(root.URIs[0].String(), spiffeScheme)
	if !ok {
		return "", fmt.Errorf("CA certificate for %q, want %s<cluster>", clip(root.URIs[0].String()), spiffeScheme)
	}
	return cluster, checkCluster(cluster)
}

func checkCluster(s string) error {
	if len(s) != clusterLength || strings.Trim(s, "0123456789abcdef") != "" {
		return fmt.Errorf("cluster ID %q: want %d lower-case hex digits", clip(s), clusterLength)
	}
	return nil
}

func clip(s string) string {
	if len(s) > maxSPIFFELength {
		return s[:maxSPIFFELength] + "…"
	}
	return s
}
