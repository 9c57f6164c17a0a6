// Package direct stands in for a node: a mirror and an HTTPS proxy that pass
// every request on to the origin and do nothing else. With it the clients' tests
// tell a fault of the set-up from a fault of Damselfly, and a benchmark has
// something to compare with.
package direct

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Node is a mirror and a proxy of one origin.
type Node struct {
	// Mirror and Proxy are URLs, CAFile the certificate of who signs for Proxy.
	Mirror, Proxy, CAFile string

	registry string
	handler  http.Handler
	tls      *tls.Config
	upstream *http.Transport
	servers  []*http.Server
}

// Start starts a node in front of the origin at target, which it reaches by the given
// transport and also takes for the registry with the given name. The caller closes it.
func Start(dir, registry, target string, upstream *http.Transport) (*Node, error) {
	to, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("direct node: %w", err)
	}
	n := &Node{
		registry: registry,
		upstream: upstream,
		CAFile:   filepath.Join(dir, "direct-ca.crt"),
		handler: &httputil.ReverseProxy{
			Rewrite:       func(p *httputil.ProxyRequest) { p.SetURL(to) },
			Transport:     upstream,
			FlushInterval: -1,
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
				if !errors.Is(err, context.Canceled) {
					w.WriteHeader(http.StatusBadGateway)
				}
			},
		},
	}
	if err := n.makeCertificate(); err != nil {
		return nil, fmt.Errorf("direct node: %w", err)
	}
	if n.Mirror, err = n.serve(http.HandlerFunc(n.mirror)); err == nil {
		n.Proxy, err = n.serve(http.HandlerFunc(n.proxy))
	}
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("direct node: %w", err)
	}
	return n, nil
}

func (n *Node) serve(h http.Handler) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: h}
	n.servers = append(n.servers, server)
	go func() { _ = server.Serve(listener) }()
	return "http://" + listener.Addr().String(), nil
}

// Close stops the node.
func (n *Node) Close() {
	for _, s := range n.servers {
		_ = s.Close()
	}
	n.upstream.CloseIdleConnections()
}

// mirror passes on what a mirror is asked: the registry is named by ns=, by the
// first part of the path, or not at all.
func (n *Node) mirror(w http.ResponseWriter, r *http.Request) {
	r = r.Clone(r.Context())
	r.URL.Path = strings.Replace(r.URL.Path, "/v2/"+n.registry+"/", "/v2/", 1)
	query := r.URL.Query()
	query.Del("ns")
	r.URL.RawQuery = query.Encode()
	n.handler.ServeHTTP(w, r)
}

// proxy answers CONNECT: for the registry by its own certificate, for any other
// host by a tunnel.
func (n *Node) proxy(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	if host, _, _ := net.SplitHostPort(r.Host); host != n.registry {
		n.tunnel(conn, r.Host)
		return
	}
	secure := tls.Server(conn, n.tls)
	defer secure.Close()
	listener := &oneConn{conn: secure, done: make(chan struct{})}
	server := &http.Server{Handler: n.handler, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed || s == http.StateHijacked {
			listener.Close()
		}
	}}
	_ = server.Serve(listener)
}

func (n *Node) tunnel(conn net.Conn, host string) {
	far, err := net.Dial("tcp", host)
	if err != nil {
		return
	}
	defer far.Close()
	go func() { _, _ = io.Copy(far, bufio.NewReader(conn)) }()
	_, _ = io.Copy(conn, far)
}

// oneConn is a listener that accepts one connection and then waits to be closed.
type oneConn struct {
	conn net.Conn
	done chan struct{}
	used bool
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.used {
		l.used = true
		return l.conn, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// makeCertificate makes a self-signed certificate for the registry's name, which
// is its own CA.
func (n *Node) makeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "direct"},
		DNSNames:              []string{n.registry},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	n.tls = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	return os.WriteFile(n.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}
