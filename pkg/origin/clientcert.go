package origin

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
)

// clientCert is the certificate that this node shows to one host. It is read
// anew when its files change, since such certificates live for days.
type clientCert struct {
	host, certFile, keyFile string
	log                     *zap.Logger

	mu   sync.Mutex
	cert *tls.Certificate
	read [2]fileStamp // of the files when they were looked at
}

// fileStamp tells one version of a file from the next.
type fileStamp struct {
	size int64
	time time.Time
}

func stampOf(file string) fileStamp {
	info, err := os.Stat(file)
	if err != nil {
		return fileStamp{}
	}
	return fileStamp{size: info.Size(), time: info.ModTime()}
}

func newClientCert(h Host, log *zap.Logger) (*clientCert, error) {
	c := &clientCert{host: h.Name, certFile: h.CertFile, keyFile: h.KeyFile, log: log}
	c.read = c.stamps()
	cert, err := c.load()
	c.cert = cert
	return c, err
}

func (c *clientCert) stamps() [2]fileStamp {
	return [2]fileStamp{stampOf(c.certFile), stampOf(c.keyFile)}
}

func (c *clientCert) load() (*tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w; want a PEM certificate with its chain and the private key of it", c.certFile, c.keyFile, err)
	}
	return &cert, nil
}

// get is a tls.Config's GetClientCertificate. While the files do not fit each
// other, as in the middle of a renewal, the certificate before counts.
func (c *clientCert) get(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.stamps()
	if now == c.read {
		return c.cert, nil
	}
	c.read = now
	cert, err := c.load()
	if err != nil {
		c.log.Warn("client certificate was changed and cannot be read, the one before is used", zap.String("host", c.host), zap.Error(err))
		return c.cert, nil
	}
	c.cert = cert
	return cert, nil
}
