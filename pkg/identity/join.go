package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// What can go wrong with Join, for errors.Is. The errors themselves say more.
var (
	// ErrNoToken: there is no usable certificate and no token to get one with.
	ErrNoToken = errors.New("no usable certificate and no join token")
	// ErrUnreachable: the scheduler did not answer; trying again can help.
	ErrUnreachable = errors.New("cannot reach the scheduler")
	// ErrWrongCluster: what answered is not the scheduler of the token's cluster.
	// Nothing secret was sent to it.
	ErrWrongCluster = errors.New("not the scheduler of this cluster")
	// ErrClock: the scheduler's certificate is not valid by the clock here. Nothing
	// secret was sent to it.
	ErrClock = errors.New("the clock here does not fit the scheduler's certificate")
	// ErrTokenRefused: the scheduler does not take the token.
	ErrTokenRefused = errors.New("join token refused")
	// ErrWrongRole: the certificate is not for the role in Options.
	ErrWrongRole = errors.New("wrong role")
	// ErrDenied: the scheduler refuses this node itself, or too many failed tries.
	ErrDenied = errors.New("scheduler refuses this node")
)

const (
	// joinLimit bounds one try, when ctx does not sooner.
	joinLimit = 20 * time.Second
	// maxAnswer is far above the size of a certificate with its roots.
	maxAnswer = 64 << 10
)

// Join returns the identity kept in dir. When its certificate is valid, has the
// role in Options, and is of the cluster that the token pins, nothing is sent and
// the token may be empty. Else the scheduler at host:port is asked for one with
// the token, and then those that Options name: after it has shown the CA that the
// token pins. It tries each once; an error that is ErrUnreachable is worth another
// try later.
func Join(ctx context.Context, dir, scheduler, token string, o Options) (*Identity, error) {
	key, err := LoadOrCreateKey(dir)
	if err != nil {
		return nil, err
	}
	remote := &anyOf{remoteIssuer{scheduler: scheduler}, o.Others, eachLimit}
	if token != "" {
		t, err := ParseToken(token)
		if err != nil {
			return nil, err
		}
		remote.token = &t
	}
	held, err := loadCredential(dir, key, time.Now())
	if err == nil {
		err = remote.fits(held, o.Role)
	}
	if err == nil {
		return newIdentity(key, dir, held, remote, o)
	}
	if remote.token == nil {
		return nil, fmt.Errorf("%w in %s (%w): get a token with `scheduler token create` and give it to this node", ErrNoToken, dir, err)
	}
	c, err := remote.join(ctx, key, o.Role)
	if remote.outlived(err, held, o.Role) {
		o.log().Warn("the join token is for a former CA of this cluster; the certificate kept here is used instead", zap.String("dir", dir))
		return newIdentity(key, dir, held, remote, o)
	}
	if err == nil {
		err = c.keep(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("join the cluster: %w", err)
	}
	o.log().Info("joined the cluster", zap.String("node", c.peer.ID), zap.String("role", string(c.peer.Role)), zap.String("cluster", c.peer.Cluster), zap.Time("expires", c.leaf.NotAfter))
	return newIdentity(key, dir, c, remote, o)
}

// remoteIssuer gets certificates from a scheduler.
type remoteIssuer struct {
	scheduler string
	// token is nil when there is none.
	token *Token
}

// fits reports why a certificate that is kept cannot be used as it is.
func (r *remoteIssuer) fits(held *credential, role Role) error {
	if held == nil {
		return errors.New("none is kept there yet")
	}
	if r.token != nil && !slices.ContainsFunc(held.roots, r.token.pins) {
		return errors.New("the one kept there is of another CA than the token's")
	}
	return roleFits(held, role)
}

func roleFits(c *credential, role Role) error {
	if role != "" && c.peer.Role != role {
		return fmt.Errorf("%w: certificate gives the role %s, this process must be a %s: make a token for that role", ErrWrongRole, c.peer.Role, role)
	}
	return nil
}

func (t Token) pins(cert *x509.Certificate) bool {
	return cert.IsCA && pinOf(cert) == t.pin
}

// outlived says that joining failed only because the CA was replaced since the
// token was made, and that the certificate kept is good all the same.
func (r *remoteIssuer) outlived(err error, held *credential, role Role) bool {
	stale, ok := errors.AsType[*staleTokenError](err)
	return ok && held != nil && roleFits(held, role) == nil && stale.scheduler(held.roots)
}

// renew implements issuer.
func (r *remoteIssuer) renew(ctx context.Context, key Key, present *credential) (*credential, error) {
	if time.Now().After(present.leaf.NotAfter.Add(leeway)) {
		if r.token == nil {
			return nil, fmt.Errorf("%w: it expired at %s; get a token with `scheduler token create`, give it to this node and restart it",
				ErrNoToken, present.leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		return r.join(ctx, key, present.peer.Role)
	}
	conn, err := r.dial(credentials.NewTLS(clientTLS(func() *credential { return present }, nil, nil, Expect{Roles: []Role{RoleScheduler}})))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	csr, err := key.request()
	if err != nil {
		return nil, err
	}
	answer, err := damselflyv1.NewIdentityClient(conn).Renew(ctx, &damselflyv1.RenewRequest{Csr: csr})
	if err != nil {
		err = r.explain(err)
		if errors.Is(err, ErrUnreachable) {
			// A server refuses a certificate after the client's handshake is done
			// (RFC 8446, section 4.4.2.4): often all that is seen here is a broken
			// connection.
			err = fmt.Errorf("%w; or it refused this node's certificate: then its log says why", err)
		}
		return nil, err
	}
	c, err := readAnswer(key, answer)
	if err != nil {
		return nil, err
	}
	if c.peer != present.peer {
		return nil, fmt.Errorf("renewed certificate is for %s, want %s", c.peer, present.peer)
	}
	return c, nil
}

// join turns the token into a credential with the role, any when it is empty.
func (r *remoteIssuer) join(ctx context.Context, key Key, role Role) (*credential, error) {
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	check := &pinCheck{token: *r.token, address: r.scheduler}
	conn, err := r.dial(credentials.NewTLS(check.tls()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	csr, err := key.request()
	if err != nil {
		return nil, err
	}
	answer, err := damselflyv1.NewIdentityClient(conn).Join(ctx, &damselflyv1.JoinRequest{
		TokenId: r.token.ID,
		Secret:  r.token.secret,
		Csr:     csr,
		Role:    string(role),
	})
	if err != nil {
		return nil, r.refused(check, err)
	}
	c, err := readAnswer(key, answer)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(c.roots, r.token.pins) {
		return nil, fmt.Errorf("%w: the certificate from %s comes without the CA that the token pins", ErrWrongCluster, r.scheduler)
	}
	return c, roleFits(c, role)
}

// refused says why a call with a token failed.
func (r *remoteIssuer) refused(check *pinCheck, err error) error {
	if failed := check.failure(); failed != nil {
		return failed
	}
	switch s := status.Convert(err); s.Code() {
	case codes.Unauthenticated:
		return fmt.Errorf("%w by %s: %s", ErrTokenRefused, r.scheduler, s.Message())
	case codes.FailedPrecondition:
		return fmt.Errorf("%w: %s: %s", ErrWrongRole, r.scheduler, s.Message())
	}
	return r.explain(err)
}

func (r *remoteIssuer) dial(creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
	host, port, err := net.SplitHostPort(r.scheduler)
	if err != nil || host == "" || port == "" {
		return nil, fmt.Errorf("scheduler address %q: want host:port", clip(r.scheduler))
	}
	// A proxy from the environment is for the way out of the cluster, not for this.
	conn, err := grpc.NewClient(r.scheduler, grpc.WithTransportCredentials(creds), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("scheduler address %q: %w", r.scheduler, err)
	}
	return conn, nil
}

// explain says what a failed call means for whoever set the node up.
func (r *remoteIssuer) explain(err error) error {
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded:
		return fmt.Errorf("%w at %s: %s: check that it runs, that the address is right, and that no firewall is in between",
			ErrUnreachable, r.scheduler, s.Message())
	case codes.Unauthenticated, codes.PermissionDenied, codes.ResourceExhausted:
		return fmt.Errorf("%w (%s): %s", ErrDenied, r.scheduler, s.Message())
	case codes.Unimplemented:
		return fmt.Errorf("%w: what answers at %s issues no certificates: give the address of a scheduler", ErrWrongCluster, r.scheduler)
	case codes.Canceled:
		return fmt.Errorf("ask %s for a certificate: %w", r.scheduler, context.Canceled)
	}
	return fmt.Errorf("ask %s for a certificate: %w", r.scheduler, err)
}

// readAnswer checks the scheduler's answer. Its roots are to be trusted: it came
// over a connection that showed the scheduler's identity.
func readAnswer(key Key, answer *damselflyv1.Certificate) (*credential, error) {
	chain, err := parseCerts(answer.GetChain())
	if err != nil {
		return nil, fmt.Errorf("certificate from the scheduler: %w", err)
	}
	if len(chain) == 0 {
		return nil, errors.New("scheduler answered without a certificate")
	}
	roots, err := parseCerts(answer.GetRoots())
	if err != nil {
		return nil, fmt.Errorf("CA certificates from the scheduler: %w", err)
	}
	c, err := newCredential(key, chain[0], roots, time.Now())
	if err != nil {
		return nil, fmt.Errorf("certificate from the scheduler: %w", err)
	}
	return c, nil
}

// pinCheck verifies a scheduler by nothing but a token: its chain must end in
// the CA whose hash the token carries.
type pinCheck struct {
	token   Token
	address string

	mu sync.Mutex
	// err is why the last handshake was refused.
	err error
}

func (c *pinCheck) tls() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		// Neither a host name nor the system's roots prove anything here; the pin in
		// VerifyConnection does.
		InsecureSkipVerify:     true, //nolint:gosec // VerifyConnection below verifies instead, and more
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			err := c.verify(state.PeerCertificates)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.err = err
			return err
		},
	}
}

// failure is why the last handshake was refused, nil when it was not.
func (c *pinCheck) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *pinCheck) verify(chain []*x509.Certificate) error {
	i := slices.IndexFunc(chain, c.token.pins)
	if i < 0 {
		return &staleTokenError{pin: c.token.pin, chain: chain, address: c.address}
	}
	p, err := verifyChain(chain, chain[i:i+1], x509.ExtKeyUsageServerAuth, time.Now())
	if err == nil {
		err = Expect{Roles: []Role{RoleScheduler}}.check(p)
	}
	if err == nil {
		return nil
	}
	what := ErrWrongCluster
	if r, ok := errors.AsType[*refusal](err); ok && (r.reason == reasonExpired || r.reason == reasonNotYetValid) {
		what = ErrClock
	}
	return fmt.Errorf("%w: %s: %w", what, c.address, err)
}

// staleTokenError is for a server that does not show the CA of the token.
type staleTokenError struct {
	pin     [32]byte
	chain   []*x509.Certificate
	address string
}

func (e *staleTokenError) Error() string {
	shown := "no CA"
	if i := slices.IndexFunc(e.chain, func(c *x509.Certificate) bool { return c.IsCA }); i >= 0 {
		pin := pinOf(e.chain[i])
		shown = hex.EncodeToString(pin[:])
	}
	return fmt.Sprintf("%v: the token is for the CA %s, but %s shows %s: check the address, or make a new token on that scheduler; the token was not sent",
		ErrWrongCluster, hex.EncodeToString(e.pin[:]), e.address, shown)
}

func (e *staleTokenError) Unwrap() error { return ErrWrongCluster }

// scheduler says whether the server is a scheduler of the cluster with these
// roots all the same.
func (e *staleTokenError) scheduler(roots []*x509.Certificate) bool {
	p, err := verifyChain(e.chain, roots, x509.ExtKeyUsageServerAuth, time.Now())
	return err == nil && p.Role == RoleScheduler
}
