// Package identity says who is who in a cluster, and keeps it true: the ed25519
// key of a node, whose libp2p peer ID is the node's name; the cluster's small CA;
// join tokens; certificates of 24 hours that renew themselves; the tls.Config of
// every connection between parts; and the one table of which role may call which
// method.
//
// It does not decide who may read which image, and it knows nothing of blobs.
// The scheduler opens the CA, serves Join and Renew and has its own certificate
// from Self; nodes and seeds call Join. All of them run Identity.Run and build
// their servers and clients with ServerCredentials and ClientCredentials.
// DESIGN.md beside this file says what is trusted and why.
package identity

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// certFile holds the certificate with what it chains to: PEM, the leaf first,
// then the cluster's roots.
const certFile = "node.crt"

// Options are what Join, CA.Self and CA.Server need besides their arguments.
// The zero value is ready to use.
type Options struct {
	// Log is written to; nil discards.
	Log *zap.Logger
	// Registerer gets the metrics; nil keeps none. One identity and one server
	// can be registered on it.
	Registerer prometheus.Registerer
	// Role is the role that the caller of Join must come out with; empty takes
	// whatever the token gives.
	Role Role
	// Others are the addresses of further schedulers, for Join and for renewals, which
	// ask again each time; nil: there are none. A renewal can be had from any
	// scheduler, a join only from the one that made the token.
	Others func() []string
}

func (o Options) log() *zap.Logger {
	if o.Log == nil {
		return zap.NewNop()
	}
	return o.Log
}

// Identity is a node's key with its present certificate and the roots it trusts.
// Certificate and roots change while it runs; what it hands out follows them at
// the next handshake. Safe for concurrent use.
type Identity struct {
	key     Key
	dir     string
	log     *zap.Logger
	metrics *metrics
	refused *refusedLog
	issuer  issuer
	current atomic.Pointer[credential]

	connections connections
	denials     *denials
}

// issuer gets certificates: over the network for those who joined, straight from
// the CA for those who have it.
type issuer interface {
	// renew gets a new certificate for the key, in place of the present one (nil
	// when there is none yet).
	renew(ctx context.Context, key Key, present *credential) (*credential, error)
}

// credential is a verified certificate with its roots. It never changes.
type credential struct {
	peer  Peer
	leaf  *x509.Certificate
	tls   *tls.Certificate
	roots []*x509.Certificate
	// installed carries the monotonic clock.
	installed time.Time
}

// newIdentity makes an identity with its first credential, and registers its
// metrics; what can fail for reasons outside comes before it.
func newIdentity(key Key, dir string, first *credential, from issuer, o Options) (*Identity, error) {
	id := &Identity{
		key: key, dir: dir, log: o.log(), refused: newRefusedLog(o.log()), issuer: from, denials: loadDenials(dir, o.log()),
	}
	id.current.Store(first)
	var err error
	if id.metrics, err = newMetrics(o.Registerer, id.NotAfter); err != nil {
		return nil, fmt.Errorf("register identity metrics: %w", err)
	}
	return id, nil
}

// ID is the libp2p peer ID of the identity's key. It never changes.
func (id *Identity) ID() string { return id.key.ID() }

// Key is the identity's private key.
func (id *Identity) Key() Key { return id.key }

// Peer is what the present certificate says of this identity.
func (id *Identity) Peer() Peer { return id.current.Load().peer }

// NotAfter is when the present certificate expires.
func (id *Identity) NotAfter() time.Time { return id.current.Load().leaf.NotAfter }

// keep writes a credential to dir, for loadCredential.
func (c *credential) keep(dir string) error {
	content := encodeCerts(c.leaf)
	content = append(content, encodeCerts(c.roots...)...)
	if err := replaceFile(filepath.Join(dir, certFile), content); err != nil {
		return fmt.Errorf("keep certificate: %w", err)
	}
	return nil
}

// newCredential checks a certificate for key, that came with roots which the
// caller has reason to trust, and makes it ready for use.
func newCredential(key Key, leaf *x509.Certificate, roots []*x509.Certificate, now time.Time) (*credential, error) {
	if _, err := checkRoots(roots); err != nil {
		return nil, err
	}
	chain := []*x509.Certificate{leaf}
	p, err := verifyChain(chain, roots, x509.ExtKeyUsageClientAuth, now)
	if err != nil {
		return nil, err
	}
	if _, err := verifyChain(chain, roots, x509.ExtKeyUsageServerAuth, now); err != nil {
		return nil, err
	}
	public, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok || !public.Equal(key.private.Public()) {
		return nil, fmt.Errorf("certificate is for %s, this node is %s", p.ID, key.ID())
	}
	// The root goes out with the leaf: a node that joins knows only its hash.
	signer := slices.IndexFunc(roots, func(r *x509.Certificate) bool { return leaf.CheckSignatureFrom(r) == nil })
	if signer < 0 {
		return nil, errors.New("certificate is not signed by a CA of the cluster itself")
	}
	return &credential{
		peer: p,
		leaf: leaf,
		tls: &tls.Certificate{
			Certificate: [][]byte{leaf.Raw, roots[signer].Raw},
			PrivateKey:  key.private,
			Leaf:        leaf,
		},
		roots:     slices.Clone(roots),
		installed: now,
	}, nil
}

// loadCredential reads what keep wrote. It is nil without an error when there
// is none, and an error when what is there cannot be used (any more).
func loadCredential(dir string, key Key, now time.Time) (*credential, error) {
	certs, err := readCerts(filepath.Join(dir, certFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(certs) < 2 {
		return nil, fmt.Errorf("%s holds no certificate with its CA", certFile)
	}
	return newCredential(key, certs[0], certs[1:], now)
}

// Self returns an identity in dir with the role and a certificate fresh from the
// CA, without a network. It is for the scheduler, which holds the CA; whoever can
// read the CA's key needs no token.
func (ca *CA) Self(dir string, role Role, o Options) (*Identity, error) {
	if _, err := ParseRole(string(role)); err != nil {
		return nil, fmt.Errorf("make own certificate: %w", err)
	}
	key, err := LoadOrCreateKey(dir)
	if err != nil {
		return nil, err
	}
	from := selfIssuer{ca: ca, role: role}
	c, err := from.renew(context.Background(), key, nil)
	if err == nil {
		err = c.keep(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("make own certificate: %w", err)
	}
	return newIdentity(key, dir, c, from, o)
}

// selfIssuer issues to the process that holds the CA.
type selfIssuer struct {
	ca   *CA
	role Role
}

func (s selfIssuer) renew(_ context.Context, key Key, _ *credential) (*credential, error) {
	roots, err := s.ca.Roots()
	if err != nil {
		return nil, err
	}
	public, ok := key.private.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("key is not an ed25519 key")
	}
	now := time.Now()
	chain, err := s.ca.issue(public, s.role, now)
	if err != nil {
		return nil, err
	}
	return newCredential(key, chain[0], roots, now)
}
