package identity

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// MethodRoles says which role may call which method of damselfly.v1, by full
// method name ("/damselfly.v1.Peer/Read"). What is not in it may be called by
// nobody. The map is the caller's to keep.
func MethodRoles() map[string][]Role {
	return map[string][]Role{
		damselflyv1.Identity_Join_FullMethodName:           {Anybody},
		damselflyv1.Identity_ShareAuthority_FullMethodName: {Anybody},
		damselflyv1.Identity_Renew_FullMethodName:          {RoleNode, RoleSeed, RoleScheduler},
		damselflyv1.Peer_Read_FullMethodName:               {RoleNode, RoleSeed},
		damselflyv1.Peer_Holdings_FullMethodName:           {RoleNode, RoleSeed},
		damselflyv1.Peer_Credential_FullMethodName:         {RoleSeed},
		damselflyv1.Scheduler_Attend_FullMethodName:        {RoleNode, RoleSeed},
		damselflyv1.Scheduler_Nodes_FullMethodName:         {RoleScheduler},
	}
}

// PeerFromContext says who is at the other end of a call, from the certificate
// of its connection. It is false when the other end showed none. The answer can
// be relied on only in servers that run with Identity.ServerTLS, and clients
// with Identity.ClientTLS: these verify the certificate when they connect.
func PeerFromContext(ctx context.Context) (Peer, bool) {
	leaf := leafFromContext(ctx)
	if leaf == nil {
		return Peer{}, false
	}
	p, err := peerOf(leaf)
	return p, err == nil
}

// KeyFromContext is the public key of who is at the other end of a call, as raw bytes,
// or "": what tells callers apart at once, where PeerFromContext would also derive names.
func KeyFromContext(ctx context.Context) string {
	leaf := leafFromContext(ctx)
	if leaf == nil {
		return ""
	}
	return string(leaf.RawSubjectPublicKeyInfo)
}

func leafFromContext(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil
	}
	return info.State.PeerCertificates[0]
}

// UnaryInterceptor lets calls pass whose caller has a role that table lists for
// the method. Others get UNAUTHENTICATED when they have no certificate or an
// expired one, else PERMISSION_DENIED with the method and the role. The table
// must not change afterwards.
func UnaryInterceptor(table map[string][]Role) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if err := authorize(ctx, info.FullMethod, table); err != nil {
			return nil, err
		}
		return handler(ctx, request)
	}
}

// StreamInterceptor is UnaryInterceptor for streams. It looks at a stream once,
// when it opens; Identity.ServerCredentials ends streams whose certificate runs
// out meanwhile.
func StreamInterceptor(table map[string][]Role) grpc.StreamServerInterceptor {
	return func(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if err := authorize(stream.Context(), info.FullMethod, table); err != nil {
			return err
		}
		return handler(service, stream)
	}
}

// TapHandle refuses what the interceptors refuse, before gRPC reads a message: a
// caller without a certificate, who can be anybody, must not fill the memory. What
// such a caller may say to Join is bounded by ServerCredentials.
func TapHandle(table map[string][]Role) tap.ServerInHandle {
	return func(ctx context.Context, info *tap.Info) (context.Context, error) {
		if err := authorize(ctx, info.FullMethodName, table); err != nil {
			return nil, err
		}
		return ctx, nil
	}
}

// authorize returns nil when the caller may call the method, else the status to
// answer with.
func authorize(ctx context.Context, method string, table map[string][]Role) error {
	roles := table[method]
	if slices.Contains(roles, Anybody) {
		return nil
	}
	leaf := leafFromContext(ctx)
	if leaf == nil {
		return status.Errorf(codes.Unauthenticated,
			"%s needs a certificate of this cluster and the caller showed none: join first", method)
	}
	p, err := peerOf(leaf)
	if err != nil {
		return status.Errorf(codes.Unauthenticated, "%s: certificate is not of a Damselfly cluster: %v", method, err)
	}
	if time.Now().After(leaf.NotAfter.Add(leeway)) {
		return status.Errorf(codes.Unauthenticated,
			"%s: the certificate of this connection expired at %s: connect again with the renewed one",
			method, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if !slices.Contains(roles, p.Role) {
		return status.Errorf(codes.PermissionDenied, "%s is not open to the role %s", method, p.Role)
	}
	return nil
}
