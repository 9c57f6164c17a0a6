package origin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Authority is a private CA, as companies sign the certificates of their registries
// with. Nobody trusts it without being told. It is safe for concurrent use.
type Authority struct {
	// CAFile is the file of its certificate, PEM.
	CAFile string

	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// validity is how long certificates hold, before and after now.
const validity = 24 * time.Hour

// NewAuthority makes a CA that keeps its certificate, and those that are asked for as
// files, in dir.
func NewAuthority(dir string) (*Authority, error) {
	a := &Authority{CAFile: filepath.Join(dir, "registry-ca.crt"), dir: dir}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	template := &x509.Certificate{
		Subject:  pkix.Name{CommonName: "CA of the tests' registries"},
		IsCA:     true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := a.sign(template, template, &a.key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	return a, writePEM(a.CAFile, "CERTIFICATE", der, 0o644)
}

func (a *Authority) sign(template, parent *x509.Certificate, key *ecdsa.PublicKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = time.Now().Add(-validity), time.Now().Add(validity)
	template.BasicConstraintsValid = true
	return x509.CreateCertificate(rand.Reader, template, parent, key, a.key)
}

func (a *Authority) issue(template *x509.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := a.sign(template, a.cert, &key.PublicKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Server makes the certificate of a server that is reached by the given names and
// addresses, at localhost and at 127.0.0.1.
func (a *Authority) Server(hosts ...string) (tls.Certificate, error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "registry"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range append([]string{"localhost", "127.0.0.1"}, hosts...) {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	return a.issue(template)
}

// Client makes the certificate by which a client is known to a server.
func (a *Authority) Client(name string) (tls.Certificate, error) {
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// Files writes a certificate that the authority issued and its key as PEM files.
func (a *Authority) Files(name string, cert tls.Certificate) (certFile, keyFile string, err error) {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return "", "", fmt.Errorf("write key: %w", err)
	}
	certFile, keyFile = filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")
	if err := writePEM(certFile, "CERTIFICATE", cert.Certificate[0], 0o644); err != nil {
		return "", "", err
	}
	return certFile, keyFile, writePEM(keyFile, "PRIVATE KEY", key, 0o600)
}

func writePEM(file, kind string, der []byte, mode os.FileMode) error {
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	return nil
}

// Roots trusts the authority and nobody else.
func (a *Authority) Roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return roots
}

// Transport makes the transport of a client that trusts the authority and speaks
// HTTP/2 and HTTP/1.1, whichever the server chooses. The caller closes its idle
// connections. Without an authority it is that of a client of servers without TLS.
func (a *Authority) Transport() *http.Transport {
	t := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 8}
	if a != nil {
		t.TLSClientConfig = &tls.Config{RootCAs: a.Roots(), MinVersion: tls.VersionTLS12}
		t.ForceAttemptHTTP2 = true
	}
	return t
}
