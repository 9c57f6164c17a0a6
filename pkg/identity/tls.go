package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
)

// ServerTLS is the configuration of a server: TLS 1.3, HTTP/2. Clients with a
// certificate must be of this cluster; those without are let in, for
// Identity.Join, and are refused everything else by the interceptors.
// Certificate and roots are looked up at each handshake. There are no session
// tickets, so no session outlives a certificate. gRPC servers take
// ServerCredentials, which also ends connections when their certificate does.
func (id *Identity) ServerTLS() *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		// The chain is checked in VerifyConnection: against roots that change, and
		// with leeway for clocks.
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return id.current.Load().tls, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error { return id.verifyClient(state, nil) },
	}
	perConnection := config.Clone()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := perConnection.Clone()
		remote := hello.Conn.RemoteAddr()
		c.VerifyConnection = func(state tls.ConnectionState) error { return id.verifyClient(state, remote) }
		return c, nil
	}
	return config
}

// ClientTLS is the configuration of a client that shows this identity's
// certificate and connects only to whom expect says. Host names are not checked:
// the certificate names a key, not an address. Otherwise it is as ServerTLS.
func (id *Identity) ClientTLS(expect Expect) *tls.Config {
	return clientTLS(id.current.Load, id.metrics, id.denials, expect)
}

func clientTLS(present func() *credential, m *metrics, denials *denials, expect Expect) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		// Only switches off the check against host names and the system's roots;
		// VerifyConnection checks more, and runs at every handshake.
		InsecureSkipVerify:     true, //nolint:gosec // VerifyConnection below verifies instead, and more
		SessionTicketsDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return present().tls, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			p, err := verifyChain(state.PeerCertificates, present().roots, x509.ExtKeyUsageServerAuth, time.Now())
			if err == nil {
				err = expect.check(p)
			}
			// Not of schedulers: one that was denied by mistake could never say that it is not.
			if err == nil && p.Role != RoleScheduler {
				err = denials.check(p)
			}
			m.refusedConnection(err)
			return err
		},
	}
}

// verifyClient lets clients without a certificate pass; the interceptors look
// after them.
func (id *Identity) verifyClient(state tls.ConnectionState, remote net.Addr) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	p, err := verifyChain(state.PeerCertificates, id.current.Load().roots, x509.ExtKeyUsageClientAuth, time.Now())
	if err == nil {
		err = id.denials.check(p)
	}
	if err != nil {
		id.metrics.refusedConnection(err)
		id.refused.log(remote, err)
	}
	return err
}

// refusedLog logs refused clients, few of many.
type refusedLog struct {
	zap   *zap.Logger
	limit *rate.Limiter
}

func newRefusedLog(log *zap.Logger) *refusedLog {
	return &refusedLog{zap: log, limit: rate.NewLimiter(rate.Every(10*time.Second), 10)}
}

func (l *refusedLog) log(remote net.Addr, err error) {
	if !l.limit.Allow() {
		return
	}
	address := ""
	if remote != nil {
		address = remote.String()
	}
	l.zap.Warn("refused a connection for its certificate", zap.String("remote", address), zap.Error(err))
}

// ServerCredentials are the transport credentials of a gRPC server: ServerTLS,
// and a connection is closed when the certificate that the client opened it with
// expires. The client then connects again, with its renewed certificate. Connections
// without a certificate, which anybody can open, are few from one address, end after
// half a minute, and carry no more than a join takes.
func (id *Identity) ServerCredentials() credentials.TransportCredentials {
	return &expiring{credentials.NewTLS(id.ServerTLS()), &id.connections, id.denials}
}

// ClientCredentials are the transport credentials of a gRPC client: ClientTLS.
func (id *Identity) ClientCredentials(expect Expect) credentials.TransportCredentials {
	return credentials.NewTLS(id.ClientTLS(expect))
}

// expiring ends the server's connections in time.
type expiring struct {
	credentials.TransportCredentials
	connections *connections
	denials     *denials
}

// ServerHandshake implements credentials.TransportCredentials.
func (e *expiring) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, auth, err := e.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	c, left := &serverConn{Conn: conn, from: prefixOf(addressOf(raw.RemoteAddr()))}, strangerLifetime
	if info, ok := auth.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
		leaf := info.State.PeerCertificates[0]
		left = time.Until(leaf.NotAfter.Add(leeway))
		peer, err := peerOf(leaf)
		if err != nil {
			return nil, nil, errors.Join(err, conn.Close()) // the handshake has let it pass
		}
		c.peer = peer.ID
	}
	if err := e.connections.add(c, left); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	// Who was denied since the handshake looked may have been missed by Disconnect.
	if c.peer != "" && e.denials.denied(c.peer) {
		return nil, nil, errors.Join(errDenied, c.Close())
	}
	return c, auth, nil
}

// Clone implements credentials.TransportCredentials.
func (e *expiring) Clone() credentials.TransportCredentials {
	return &expiring{e.TransportCredentials.Clone(), e.connections, e.denials}
}
