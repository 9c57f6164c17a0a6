package proxy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// caKeyFile holds the CA's certificate and private key, mode 0600. One file, so
	// that both appear together.
	caKeyFile = "ca.key"
	// caCertFile is the certificate alone, for clients to trust.
	caCertFile = "ca.crt"

	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 24 * time.Hour
	// clockSkew is how far a client's clock may be behind ours.
	clockSkew = time.Hour
)

// authority is the CA that the forward proxy shows registries' names with. Only
// the clients of this node trust it. It is safe for concurrent use.
type authority struct {
	cert     *x509.Certificate
	key      *ecdsa.PrivateKey
	certFile string

	mu     sync.Mutex
	leaves *lru[string, *tls.Certificate] // by host
}

// CAFile is the path of the forward proxy's CA certificate in PEM, "" where
// there is no forward proxy.
func (p *Proxy) CAFile() string {
	if p.ca == nil {
		return ""
	}
	return p.ca.certFile
}

// openAuthority reads the CA in dir, and creates it when there is none.
func openAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of the proxy's CA: %w", err)
	}
	path := filepath.Join(dir, caKeyFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createCA(path); err != nil {
			return nil, fmt.Errorf("creating the proxy's CA %s: %w", path, err)
		}
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the proxy's CA: %w", err)
	}
	if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the proxy's CA key %s can be read by others (mode %04o); run chmod 600 on it", path, st.Mode().Perm())
	}
	ca, err := parseAuthority(data)
	if err != nil {
		return nil, fmt.Errorf("the proxy's CA %s: %w; remove the file to have a new CA made, and give its certificate to the clients again", path, err)
	}
	ca.certFile = filepath.Join(dir, caCertFile)
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
	if have, err := os.ReadFile(ca.certFile); err != nil || !bytes.Equal(have, public) {
		if err := writeFile(ca.certFile, public, 0o644, os.Rename); err != nil {
			return nil, fmt.Errorf("writing the certificate of the proxy's CA: %w", err)
		}
	}
	return ca, nil
}

func parseAuthority(data []byte) (*authority, error) {
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	switch {
	case !ok || !pair.Leaf.IsCA:
		return nil, errors.New("is not a CA with an ECDSA key")
	case time.Now().After(pair.Leaf.NotAfter):
		return nil, fmt.Errorf("ended on %s", pair.Leaf.NotAfter.Format(time.DateOnly))
	}
	return &authority{cert: pair.Leaf, key: key, leaves: newLRU[string, *tls.Certificate](256)}, nil
}

// createCA makes a CA and links it to path. Of several processes one succeeds
// and the others leave its file alone.
func createCA(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := serialNumber()
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Damselfly proxy CA " + serial.Text(36)[:8]},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	data := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
	err = writeFile(path, data, 0o600, os.Link)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// writeFile writes a file under another name and brings it to path by publish:
// os.Rename, or os.Link where a file that is there must stay.
func writeFile(path string, data []byte, mode fs.FileMode, publish func(from, to string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return publish(f.Name(), path)
}

func serialNumber() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, err
	}
	return n.SetBit(n, 126, 1), nil
}

// config is the server side's TLS for a host that a client connected to. HTTP/1.1
// only: the clients of proxies speak nothing else here.
func (ca *authority) config(host string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return ca.leaf(host)
		},
	}
}

// leaf is a certificate for a host, made anew when half its life is over.
func (ca *authority) leaf(host string) (*tls.Certificate, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if c, ok := ca.leaves.get(host); ok && time.Until(c.Leaf.NotAfter) > leafLife/2 {
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"Damselfly proxy"}},
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     now.Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key, Leaf: parsed}
	ca.leaves.put(host, c, nil)
	return c, nil
}
