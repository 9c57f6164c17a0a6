package identity

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

const (
	// maxCSR is far above the size of a request with an ed25519 key.
	maxCSR       = 4 << 10
	maxSecret    = 256
	resultOK     = "ok"
	resultRefuse = "refused"
	resultLimit  = "limited"
	resultFailed = "failed"
)

// refusedToken answers every join with a token that is not good. It does not
// say why; the log does.
const refusedToken = "the join token is expired, used up, or was not made by this scheduler: a token is known only to the one that made it, " +
	"so name that one's address, or make a new token here with `scheduler token create`"

// refusedRole answers a token that is good, but not for what was asked.
const refusedRole = "the join token is for another role: make a token for that role with `scheduler token create --role %s`"

// Server returns the Identity service of this CA, to register on a server that
// runs with Self's ServerCredentials and the interceptors. Join answers
// UNAUTHENTICATED for a token that is not good, FAILED_PRECONDITION for one of
// another role than was asked for, RESOURCE_EXHAUSTED to an address
// that failed too often, INVALID_ARGUMENT for a request that is none;
// PERMISSION_DENIED is for denied nodes and for a renewal with another key.
func (ca *CA) Server(o Options) (damselflyv1.IdentityServer, error) {
	m, err := newServerMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("register identity metrics: %w", err)
	}
	return &server{ca: ca, log: o.log(), metrics: m, failures: newFailureLimiter()}, nil
}

type server struct {
	damselflyv1.UnimplementedIdentityServer
	ca       *CA
	log      *zap.Logger
	metrics  *serverMetrics
	failures *failureLimiter
}

// Join implements damselflyv1.IdentityServer.
func (s *server) Join(ctx context.Context, request *damselflyv1.JoinRequest) (*damselflyv1.Certificate, error) {
	return limited(ctx, s, "join", func(log *zap.Logger) (*damselflyv1.Certificate, error) { return s.join(request, log) })
}

// limited answers a caller who has nothing to show but a token.
func limited[T any](ctx context.Context, s *server, method string, answer func(*zap.Logger) (*T, error)) (*T, error) {
	remote := remoteOf(ctx)
	if !s.failures.allowed(remote, time.Now()) {
		s.metrics.request(method, resultLimit)
		return nil, status.Errorf(codes.ResourceExhausted,
			"too many failed joins from this address: check the join token, then try again in %s", failedJoinEvery)
	}
	got, err := answer(s.log.With(zap.String("remote", remote.String())))
	if err != nil {
		result := resultFailed
		if status.Code(err) != codes.Internal {
			result = resultRefuse
			s.failures.failed(remote, time.Now())
		}
		s.metrics.request(method, result)
		return nil, err
	}
	s.metrics.request(method, resultOK)
	return got, nil
}

func (s *server) join(request *damselflyv1.JoinRequest, log *zap.Logger) (*damselflyv1.Certificate, error) {
	public, id, err := parseRequest(request.GetCsr())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "certificate request: %v", err)
	}
	want := Role(request.GetRole())
	if want != "" && want != RoleNode && want != RoleSeed {
		return nil, status.Errorf(codes.InvalidArgument, "role %q: want %s or %s", clip(string(want)), RoleNode, RoleSeed)
	}
	log = log.With(zap.String("node", id))
	if err := s.refuseDenied(id, log); err != nil {
		return nil, err
	}
	// A scheduler's certificate is made by who holds the CA, see ShareAuthority.
	role, err := s.take(request, want, func(r Role) bool { return r != RoleScheduler && (want == "" || r == want) }, log)
	if err != nil {
		return nil, err
	}
	return s.certify(public, role, log)
}

// bearer is a request with a join token in it.
type bearer interface {
	GetTokenId() string
	GetSecret() string
}

// take uses the token of a request once, if its role fits, and returns the role; else
// the status to answer with.
func (s *server) take(request bearer, want Role, fits func(Role) bool, log *zap.Logger) (Role, error) {
	id := request.GetTokenId()
	if validTokenID(id) {
		log = log.With(zap.String("token", id))
	}
	if len(request.GetSecret()) > maxSecret {
		return "", status.Error(codes.Unauthenticated, refusedToken)
	}
	role, err := s.ca.tokens.take(id, request.GetSecret(), fits, time.Now())
	switch {
	case err == nil:
		return role, nil
	case errors.Is(err, errTokenRole):
		log.Warn("refused a join", zap.Error(err), zap.String("wanted", string(want)))
		if want == "" {
			want = RoleNode
		}
		return "", status.Errorf(codes.FailedPrecondition, refusedRole, want)
	case errors.Is(err, errTokenUnknown), errors.Is(err, errTokenSecret),
		errors.Is(err, errTokenExpired), errors.Is(err, errTokenUsedUp):
		log.Warn("refused a join", zap.Error(err))
		return "", status.Error(codes.Unauthenticated, refusedToken)
	}
	log.Error("cannot read or write join tokens", zap.Error(err))
	return "", status.Error(codes.Internal, "the scheduler cannot read or write its join tokens: see its log")
}

// Renew implements damselflyv1.IdentityServer.
func (s *server) Renew(ctx context.Context, request *damselflyv1.RenewRequest) (*damselflyv1.Certificate, error) {
	caller, ok := PeerFromContext(ctx)
	if !ok {
		s.metrics.request("renew", resultRefuse)
		return nil, status.Error(codes.Unauthenticated, "renewing needs a certificate: join first")
	}
	certificate, err := s.renew(caller, request)
	switch {
	case err == nil:
		s.metrics.request("renew", resultOK)
	case status.Code(err) == codes.Internal:
		s.metrics.request("renew", resultFailed)
	default:
		s.metrics.request("renew", resultRefuse)
	}
	return certificate, err
}

func (s *server) renew(caller Peer, request *damselflyv1.RenewRequest) (*damselflyv1.Certificate, error) {
	public, id, err := parseRequest(request.GetCsr())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "certificate request: %v", err)
	}
	log := s.log.With(zap.String("node", caller.ID))
	if id != caller.ID {
		log.Warn("refused a renewal for another key", zap.String("requested", id))
		return nil, status.Error(codes.PermissionDenied, "the request's key is not that of the caller's certificate: a new key must join")
	}
	if err := s.refuseDenied(id, log); err != nil {
		return nil, err
	}
	return s.certify(public, caller.Role, log)
}

func (s *server) refuseDenied(id string, log *zap.Logger) error {
	denied, err := s.ca.Denied(id)
	if err != nil {
		log.Error("cannot look up denied nodes", zap.Error(err))
		return status.Error(codes.Internal, "the scheduler cannot look up denied nodes: see its log")
	}
	if denied {
		log.Warn("refused a certificate to a denied node")
		return status.Errorf(codes.PermissionDenied, "node %s is denied in this cluster", id)
	}
	return nil
}

// certify issues to a caller that has shown its right to the role.
func (s *server) certify(public ed25519.PublicKey, role Role, log *zap.Logger) (*damselflyv1.Certificate, error) {
	roots, err := s.ca.Roots()
	if err != nil {
		log.Error("cannot read the cluster's roots", zap.Error(err))
		return nil, status.Error(codes.Internal, "the scheduler cannot read its CA certificates: see its log")
	}
	chain, err := s.ca.issue(public, role, time.Now())
	if err != nil {
		log.Error("cannot issue a certificate", zap.Error(err))
		return nil, status.Error(codes.Internal, "the scheduler cannot issue certificates: see its log")
	}
	log.Info("issued a certificate", zap.String("role", string(role)), zap.Time("expires", chain[0].NotAfter))
	answer := &damselflyv1.Certificate{}
	for _, c := range chain {
		answer.Chain = append(answer.Chain, c.Raw)
	}
	for _, c := range roots {
		answer.Roots = append(answer.Roots, c.Raw)
	}
	return answer, nil
}

// parseRequest returns the key of a PKCS #10 request (RFC 2986) whose sender has
// shown possession of it. Everything else in the request is ignored.
func parseRequest(der []byte) (public ed25519.PublicKey, id string, err error) {
	if len(der) > maxCSR {
		return nil, "", fmt.Errorf("%d bytes, at most %d are accepted", len(der), maxCSR)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, "", err
	}
	public, ok := request.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, "", fmt.Errorf("its key is %s, want Ed25519", request.PublicKeyAlgorithm)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, "", fmt.Errorf("it is not signed by its own key: %w", err)
	}
	id, err = idOf(public)
	return public, id, err
}

// remoteOf is the address at the other end; callers without an IP address share
// the zero one.
func remoteOf(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	return addressOf(p.Addr)
}

func addressOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr()
	}
	return netip.Addr{}
}
