package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.uber.org/zap"
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
	answer.Key, err = x509.MarshalPKCS8PrivateKey(s.ca.key)
	return answer, err
}

// AdoptCA opens the CA kept in dir. When there is none, the scheduler at host:port is
// asked for the cluster's, with a token for the role scheduler and after it has shown
// the CA that the token pins; dir then holds what OpenCA would have made there. A CA
// that is there already is never replaced: one that the token does not pin is an
// error. It tries once; an error that is ErrUnreachable is worth another try later.
func AdoptCA(ctx context.Context, dir, scheduler, token string) (*CA, error) {
	held, err := heldCA(dir)
	if err != nil {
		return nil, err
	}
	if held != nil && token == "" {
		return held, nil
	}
	if token == "" {
		return nil, fmt.Errorf("%w for a scheduler: make one with `scheduler token create --role %s` where the cluster's CA is", ErrNoToken, RoleScheduler)
	}
	t, err := ParseToken(token)
	if err != nil {
		return nil, err
	}
	if held != nil {
		roots, err := held.Roots()
		if err == nil && !slices.ContainsFunc(roots, t.pins) {
			err = fmt.Errorf("%w: the directory holds the CA of the cluster %s, and the join token is for another: name an empty directory, or leave the token out", ErrWrongCluster, held.cluster)
		}
		if err != nil {
			return nil, fmt.Errorf("join the schedulers with %s: %w", dir, err)
		}
		return held, nil
	}
	remote := &remoteIssuer{scheduler: scheduler, token: &t}
	answer, err := remote.authority(ctx)
	if err != nil {
		return nil, fmt.Errorf("join the schedulers: %w", err)
	}
	if err := keepAuthority(dir, t, answer); err != nil {
		return nil, fmt.Errorf("join the schedulers: keep the CA from %s: %w", scheduler, err)
	}
	return OpenCA(dir)
}

// heldCA opens the CA in dir, and is nil when there is none yet.
func heldCA(dir string) (*CA, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil, nil
	}
	return OpenCA(dir)
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
	answer, err := damselflyv1.NewIdentityClient(conn).ShareAuthority(ctx, &damselflyv1.AuthorityRequest{TokenId: r.token.ID, Secret: r.token.secret})
	if err != nil {
		return nil, r.refused(check, err)
	}
	return answer, nil
}

// keepAuthority checks the CA that was given for a token, and puts it at dir: whole
// or not at all, since half of one would be taken for a CA whose other half was lost.
func keepAuthority(dir string, t Token, answer *damselflyv1.Authority) error {
	roots, err := parseCerts(answer.GetRoots())
	if err != nil {
		return err
	}
	if _, err := checkRoots(roots); err != nil {
		return err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(answer.GetKey())
	if err != nil {
		return errors.New("its key is damaged")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() || !key.PublicKey.Equal(roots[0].PublicKey) {
		return errors.New("its key is not that of its certificate")
	}
	if !t.pins(roots[0]) {
		return fmt.Errorf("%w: it is not the CA that the token pins", ErrWrongCluster)
	}
	if err := makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".tmp*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	secret := pem.EncodeToMemory(&pem.Block{Type: keyPEMType, Bytes: answer.GetKey()})
	defer clear(secret)
	for name, content := range map[string][]byte{caKeyFile: secret, caCertFile: encodeCerts(roots[0]), caRootsFile: encodeCerts(roots[1:]...)} {
		if len(bytes.TrimSpace(content)) == 0 {
			continue
		}
		if err := replaceFile(filepath.Join(temp, name), content); err != nil {
			return err
		}
	}
	// Only an empty directory can be there, see heldCA.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(temp, dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}
