package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// DeriveKey returns 32 bytes that follow from the CA's key and the label (HKDF with
// SHA-256, RFC 5869): whoever holds the CA has the same, and nobody else. Different
// labels give keys that say nothing of each other.
func (ca *CA) DeriveKey(label string) ([]byte, error) {
	private, err := ca.key.ECDH()
	if err == nil {
		var key []byte
		if key, err = hkdf.Key(sha256.New, private.Bytes(), []byte(ca.cluster), label, 32); err == nil {
			return key, nil
		}
	}
	return nil, fmt.Errorf("derive a key for %s: %w", label, err)
}

// ShareAuthority implements damselflyv1.IdentityServer.
func (s *server) ShareAuthority(ctx context.Context, request *damselflyv1.AuthorityRequest) (*damselflyv1.Authority, error) {
	return limited(ctx, s, "share_authority", func(log *zap.Logger) (*damselflyv1.Authority, error) {
		return s.shareAuthority(request, log)
	})
}

func (s *server) shareAuthority(request *damselflyv1.AuthorityRequest, log *zap.Logger) (*damselflyv1.Authority, error) {
	if !validTokenID(request.GetTokenId()) {
		return nil, status.Error(codes.InvalidArgument, "the request names no join token")
	}
	// What can fail comes before the token's one use is taken.
	answer, err := s.authority()
	if err != nil {
		log.Error("cannot give the cluster's CA", zap.Error(err))
		return nil, status.Error(codes.Internal, "the scheduler cannot read its CA: see its log")
	}
	if _, err := s.take(request, RoleScheduler, func(r Role) bool { return r == RoleScheduler }, log); err != nil {
		return nil, err
	}
	log.Warn("gave the cluster's CA to a further scheduler", zap.String("token", request.GetTokenId()))
	return answer, nil
}

func (s *server) authority() (*damselflyv1.Authority, error) {
	roots, err := s.ca.Roots()
	if err != nil {
		return nil, err
	}
	answer := &damselflyv1.Authority{}
	for _, c := range roots {
		answer.Roots = append(answer.Roots, c.Raw)
	}
	statements, err := s.ca.Statements()
	if err != nil {
		return nil, err
	}
	answer.Statements = WireStatements(statements)
	answer.Key, err = x509.MarshalPKCS8PrivateKey(s.ca.key)
	return answer, err
}

// AdoptCA opens the CA kept in dir. When there is none, the scheduler at host:port is
// asked for the cluster's, with a token for the role scheduler and after it has shown
// the CA that the token pins; dir then holds what OpenCA would have made there, and who
// is denied. A CA that is there already is never replaced: a token for another cluster
// is an error. It tries once; an error that is ErrUnreachable is worth another try
// later.
func AdoptCA(ctx context.Context, dir, scheduler, token string) (*CA, error) {
	held, err := heldCA(dir)
	if err != nil {
		return nil, err
	}
	if token == "" {
		if held == nil {
			return nil, fmt.Errorf("%w for a scheduler: make one with `scheduler token create --role %s` where the cluster's CA is", ErrNoToken, RoleScheduler)
		}
		return held, nil
	}
	t, err := ParseToken(token)
	if err != nil {
		return nil, err
	}
	if held == nil {
		remote := &remoteIssuer{scheduler: scheduler, token: &t}
		answer, err := remote.authority(ctx)
		if err != nil {
			return nil, fmt.Errorf("join the schedulers: %w", err)
		}
		if err := keepAuthority(dir, t, answer); err != nil {
			return nil, fmt.Errorf("join the schedulers: keep the CA from %s: %w", scheduler, err)
		}
		if held, err = OpenCA(dir); err != nil {
			return nil, err
		}
	}
	if err := held.checkToken(t); err != nil {
		return nil, fmt.Errorf("join the schedulers with %s: %w", dir, err)
	}
	return held, nil
}

// heldCA opens the CA in dir, and is nil when there is none: the key makes a CA, see
// keepAuthority. Other things may be there, such as lost+found.
func heldCA(dir string) (*CA, error) {
	_, err := os.Stat(filepath.Join(dir, caKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open CA in %s: %w", dir, err)
	}
	return OpenCA(dir)
}

// checkToken says that a token is for another cluster than the CA's. One that the
// cluster's first CA made, after which it is named, is not, though the CA was replaced.
func (ca *CA) checkToken(t Token) error {
	roots, err := ca.Roots()
	if err != nil || slices.ContainsFunc(roots, t.pins) || strings.HasPrefix(hex.EncodeToString(t.pin[:]), ca.cluster) {
		return err
	}
	return fmt.Errorf("%w: the directory holds the CA of the cluster %s, and the join token is for another, or for a former CA: name an empty directory, or leave the token out", ErrWrongCluster, ca.cluster)
}

// authority asks for the CA.
func (r *remoteIssuer) authority(ctx context.Context) (*damselflyv1.Authority, error) {
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	check := &pinCheck{token: *r.token, address: r.scheduler}
	conn, err := r.dial(credentials.NewTLS(check.tls()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	request := &damselflyv1.AuthorityRequest{TokenId: r.token.ID, Secret: r.token.secret}
	answer, err := damselflyv1.NewIdentityClient(conn).ShareAuthority(ctx, request, grpc.MaxCallRecvMsgSize(maxAuthority))
	if err != nil {
		return nil, r.refused(check, err)
	}
	return answer, nil
}

// maxAuthority is far above the size of a CA with MaxStatements.
const maxAuthority = 1 << 20

// checkAuthority checks the CA that was given for a token, and returns its roots.
func checkAuthority(t Token, answer *damselflyv1.Authority) ([]*x509.Certificate, error) {
	roots, err := parseCerts(answer.GetRoots())
	if err != nil {
		return nil, err
	}
	if _, err := checkRoots(roots); err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(answer.GetKey())
	if err != nil {
		return nil, errors.New("its key is damaged")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() || !key.PublicKey.Equal(roots[0].PublicKey) {
		return nil, errors.New("its key is not that of its certificate")
	}
	if !t.pins(roots[0]) {
		return nil, fmt.Errorf("%w: it is not the CA that the token pins", ErrWrongCluster)
	}
	return roots, nil
}

// keepAuthority checks the CA that was given for a token, and puts it in dir, which
// holds none: the key last, since what is there without it is no CA yet. dir itself
// stays, it may be where a file system is mounted.
func keepAuthority(dir string, t Token, answer *damselflyv1.Authority) error {
	roots, err := checkAuthority(t, answer)
	if err != nil {
		return err
	}
	if err := makeLockedDir(filepath.Join(dir, deniedDir)); err != nil {
		return err
	}
	left, err := readCerts(filepath.Join(dir, caCertFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if slices.ContainsFunc(left, func(c *x509.Certificate) bool { return !t.pins(c) }) {
		return fmt.Errorf("%w: the directory holds the certificate of another CA without its key: name an empty directory, or restore the key and leave the token out", ErrWrongCluster)
	}
	if _, err := (&CA{dir: dir}).Accept(StatementsOf(answer.GetStatements())); err != nil {
		return err
	}
	if len(roots) > 1 {
		if err := replaceFile(filepath.Join(dir, caRootsFile), encodeCerts(roots[1:]...)); err != nil {
			return err
		}
	}
	if err := replaceFile(filepath.Join(dir, caCertFile), encodeCerts(roots[0])); err != nil {
		return err
	}
	secret := pem.EncodeToMemory(&pem.Block{Type: keyPEMType, Bytes: answer.GetKey()})
	defer clear(secret)
	_, err = createFile(filepath.Join(dir, caKeyFile), secret)
	return err
}
