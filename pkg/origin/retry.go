package origin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"time"
)

// backoff is how long to wait after the n-th failure in a row, n from 1: base
// doubled each time, bounded, and spread over its upper half.
func backoff(base time.Duration, n int) time.Duration {
	d := min(maxBackoff, base<<min(n-1, 16))
	return d/2 + rand.N(d/2+1)
}

// permanent tells whether an error will be the same next time.
func permanent(err error) bool {
	var (
		cert    *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
	)
	return errors.Is(err, ErrForbiddenAddress) || refusesCertificate(err) || errors.Is(err, ErrRedirect) || errors.Is(err, ErrProtocol) ||
		errors.As(err, &cert) || errors.As(err, &unknown) || errors.As(err, &name)
}

// isSilent tells whether an error took so long that a client who waits should
// hear of it rather than wait for another.
func isSilent(err error) bool {
	if isDead(err) {
		return false
	}
	timeout := interface{ Timeout() bool }(nil)
	return errors.Is(err, ErrStalled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &timeout) && timeout.Timeout()
}

// passing tells whether a status says that the origin is in trouble rather than
// that it says no.
func passing(code int) bool {
	return code >= 500 && code != 501 && code != 505 && code != 511 || code == 408
}

// isDead tells whether a connection ended because the peer did not acknowledge
// anything any more: not the origin but a connection to it is gone.
func isDead(err error) bool {
	op := (*net.OpError)(nil)
	return errors.As(err, &op) && op.Op != "dial" && errors.Is(err, syscall.ETIMEDOUT)
}

// refusesCertificate tells whether a server ended the handshake, or what came after
// it, because of the certificate that this node showed, or did not. The library's
// alerts have no type.
func refusesCertificate(err error) bool {
	op := (*net.OpError)(nil)
	return errors.As(err, &op) && op.Op == "remote error" && op.Err != nil && strings.Contains(op.Err.Error(), "certificate")
}
