package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	caKeyFile    = "ca.key"
	caCertFile   = "ca.crt"
	caRootsFile  = "roots.crt"
	certPEMType  = "CERTIFICATE"
	caLifetime   = 10 * 365 * 24 * time.Hour
	certLifetime = 24 * time.Hour
	// backdate lets a certificate be used at once by machines whose clock is
	// behind the scheduler's.
	backdate = 5 * time.Minute
	// minLifetime is the least that is left of the CA for it to issue at all.
	minLifetime = time.Hour
)

// CA signs the certificates of one cluster. Everything is kept in its
// directory, which several processes may use at once. Safe for concurrent use.
type CA struct {
	dir     string
	key     *ecdsa.PrivateKey
	cert    *x509.Certificate
	cluster string
	tokens  tokenStore
}

// OpenCA opens the CA kept in dir and makes it when dir holds none: an ECDSA
// P-256 key (ca.key, PEM, PKCS #8, mode 0600) and its certificate (ca.crt).
// Processes that open an empty directory at once get the same CA.
func OpenCA(dir string) (*CA, error) {
	ca, err := openCA(dir, "")
	if err != nil {
		return nil, fmt.Errorf("open CA in %s: %w", dir, err)
	}
	return ca, nil
}

// openCA opens or makes a CA; cluster names the cluster of a new one, and is
// derived from its key when it is empty.
func openCA(dir, cluster string) (*CA, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	key, err := loadOrCreateCAKey(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, err
	}
	cert, err := loadOrCreateCACert(filepath.Join(dir, caCertFile), key, cluster)
	if err != nil {
		return nil, err
	}
	cluster, err = checkRoots([]*x509.Certificate{cert})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", caCertFile, err)
	}
	tokens, err := openTokens(filepath.Join(dir, tokensDir))
	if err != nil {
		return nil, err
	}
	if err := makeLockedDir(filepath.Join(dir, deniedDir)); err != nil {
		return nil, err
	}
	return &CA{dir: dir, key: key, cert: cert, cluster: cluster, tokens: tokens}, nil
}

func loadOrCreateCAKey(path string) (*ecdsa.PrivateKey, error) {
	content, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		content, err = createCAKey(path)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil || block.Type != keyPEMType {
		return nil, fmt.Errorf("no PEM block %s in %s", keyPEMType, path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s holds a %T, want an ECDSA P-256 key", path, parsed)
	}
	return key, nil
}

func createCAKey(path string) ([]byte, error) {
	// A certificate without its key is a CA whose key was lost: a new key in its
	// place would split the cluster in two.
	certPath := filepath.Join(filepath.Dir(path), caCertFile)
	if _, err := os.Stat(certPath); err == nil {
		// Another process may have made both since this one looked for the key.
		if content, err := readSecret(path); err == nil {
			return content, nil
		}
		return nil, fmt.Errorf("%s is here but its key %s is not: restore the key, or move the directory away to start a new cluster that all nodes join anew", caCertFile, caKeyFile)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if _, err := createFile(path, pem.EncodeToMemory(&pem.Block{Type: keyPEMType, Bytes: der})); err != nil {
		return nil, err
	}
	return readSecret(path)
}

func loadOrCreateCACert(path string, key *ecdsa.PrivateKey, cluster string) (*x509.Certificate, error) {
	certs, err := readCerts(path)
	if errors.Is(err, fs.ErrNotExist) {
		der, makeErr := selfSign(key, cluster, time.Now())
		if makeErr != nil {
			return nil, makeErr
		}
		if _, err := createFile(path, pem.EncodeToMemory(&pem.Block{Type: certPEMType, Bytes: der})); err != nil {
			return nil, err
		}
		certs, err = readCerts(path)
	}
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 || !key.PublicKey.Equal(certs[0].PublicKey) {
		return nil, fmt.Errorf("%s does not belong to %s: restore the pair from one backup", path, caKeyFile)
	}
	return certs[0], nil
}

func selfSign(key *ecdsa.PrivateKey, cluster string, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	if cluster == "" {
		spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			return nil, err
		}
		pin := pinOf(&x509.Certificate{RawSubjectPublicKeyInfo: spki})
		cluster = hex.EncodeToString(pin[:])[:clusterLength]
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "damselfly " + cluster},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: cluster}},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	return x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
}

// Cluster is the ID of the CA's cluster: 16 hex digits of the hash of the
// cluster's first CA key.
func (ca *CA) Cluster() string { return ca.cluster }

// Roots are the CA certificates that the cluster trusts now: this CA's and those
// in roots.crt beside it. The file is read anew at each call.
func (ca *CA) Roots() ([]*x509.Certificate, error) {
	others, err := readCerts(filepath.Join(ca.dir, caRootsFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	roots := []*x509.Certificate{ca.cert}
	for _, c := range others {
		if !slices.ContainsFunc(roots, c.Equal) {
			roots = append(roots, c)
		}
	}
	if _, err := checkRoots(roots); err != nil {
		return nil, fmt.Errorf("%s: %w", caRootsFile, err)
	}
	return roots, nil
}

// Successor makes in dir a CA with a new key for the same cluster, and writes
// each of the two into the roots.crt of the other. Nodes trust both once they
// have renewed their certificate, at most 24 hours later; only then may a
// scheduler run with the new directory. Another 24 hours later the old one is
// needed no more, and the new one's roots.crt can be deleted.
func (ca *CA) Successor(dir string) (*CA, error) {
	next, err := openCA(dir, ca.cluster)
	if err != nil {
		return nil, fmt.Errorf("make successor of CA in %s: %w", dir, err)
	}
	if next.cluster != ca.cluster {
		return nil, fmt.Errorf("make successor of CA: %s holds the CA of another cluster, %s: name an empty directory", dir, next.cluster)
	}
	if next.cert.Equal(ca.cert) {
		return nil, fmt.Errorf("make successor of CA: %s holds the present CA: name an empty directory", dir)
	}
	// The new directory first: whoever signs with the new key must already hand
	// out the old root.
	if err := replaceFile(filepath.Join(next.dir, caRootsFile), encodeCerts(ca.cert)); err != nil {
		return nil, fmt.Errorf("make successor of CA: %w", err)
	}
	if err := replaceFile(filepath.Join(ca.dir, caRootsFile), encodeCerts(next.cert)); err != nil {
		return nil, fmt.Errorf("make successor of CA: %w", err)
	}
	return next, nil
}

// issue signs a certificate for the key with the role, valid from now on, and
// returns it with its chain. It never outlives the CA.
func (ca *CA) issue(public ed25519.PublicKey, role Role, now time.Time) ([]*x509.Certificate, error) {
	id, err := idOf(public)
	if err != nil {
		return nil, err
	}
	if now.Add(minLifetime).After(ca.cert.NotAfter) {
		return nil, fmt.Errorf("the CA expires at %s: make a successor", ca.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(certLifetime)
	if notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: id},
		URIs:                  []*url.URL{Peer{ID: id, Role: role, Cluster: ca.cluster}.uri()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{leaf, ca.cert}, nil
}

// newSerial returns a random positive serial number (RFC 5280, 4.1.2.2).
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

func readCerts(path string) ([]*x509.Certificate, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var ders [][]byte
	for {
		var block *pem.Block
		block, content = pem.Decode(content)
		if block == nil {
			break
		}
		if block.Type == certPEMType {
			ders = append(ders, block.Bytes)
		}
	}
	certs, err := parseCerts(ders)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs, nil
}

func encodeCerts(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: certPEMType, Bytes: c.Raw})...)
	}
	return out
}
