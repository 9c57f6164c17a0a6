package origin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// Wire says how a server is reached and what it speaks. With an Authority that is TLS
// 1.2 or 1.3 and, as the client likes, HTTP/2 or HTTP/1.1, as nearly every registry
// has it.
type Wire struct {
	// Authority signs the server's certificate; nil is plain HTTP/1.1.
	Authority *Authority
	// Names are those that the certificate is for, beside 127.0.0.1, localhost and the
	// address that is listened on.
	Names []string
	// Listen opens what the server listens on; nil: a port of loopback.
	Listen func() (net.Listener, error)
	// Alter changes the server before it serves: TLS versions, protocols (TLSConfig's
	// NextProtos), client certificates, windows.
	Alter func(*http.Server)
	// Accept stands between the listener of connections, those of TLS before their
	// handshake, and the server.
	Accept func(net.Listener) net.Listener
}

// entrance is an address with the server that serves it. Another may take over.
type entrance struct {
	wire    Wire
	handler http.Handler
	cert    tls.Certificate
	master  net.Listener // keeps the address; every server has a duplicate

	mu      sync.Mutex
	servers []*http.Server // the last one accepts; the others end
	ends    sync.WaitGroup
}

// open begins to serve. The caller closes the entrance.
func open(wire Wire, handler http.Handler) (*entrance, error) {
	listen := wire.Listen
	if listen == nil {
		listen = func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	}
	master, err := listen()
	if err != nil {
		return nil, err
	}
	e := &entrance{wire: wire, handler: handler, master: master}
	if wire.Authority != nil {
		host, _, _ := net.SplitHostPort(master.Addr().String())
		e.cert, err = wire.Authority.Server(append([]string{host}, wire.Names...)...)
	}
	if err == nil {
		err = e.serve()
	}
	if err != nil {
		return nil, errors.Join(err, master.Close())
	}
	return e, nil
}

func (e *entrance) url() string {
	if e.wire.Authority != nil {
		return "https://" + e.master.Addr().String()
	}
	return "http://" + e.master.Addr().String()
}

// serve starts a server on a duplicate of the master, so that ending the server does
// not give up the address.
func (e *entrance) serve() error {
	tcp, ok := e.master.(*net.TCPListener)
	if !ok {
		return fmt.Errorf("serve at %v: want a TCP listener, have %T", e.master.Addr(), e.master)
	}
	file, err := tcp.File()
	if err != nil {
		return err
	}
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return err
	}
	// Clients that do not trust the authority or go in the midst of an answer are a
	// test's own doing.
	server := &http.Server{Handler: e.handler, ErrorLog: log.New(io.Discard, "", 0)}
	if e.wire.Authority != nil {
		server.TLSConfig = &tls.Config{
			Certificates: []tls.Certificate{e.cert},
			MinVersion:   tls.VersionTLS12,
			NextProtos:   []string{"h2", "http/1.1"},
		}
	}
	if e.wire.Alter != nil {
		e.wire.Alter(server)
	}
	if e.wire.Authority != nil {
		listener = tls.NewListener(listener, server.TLSConfig)
	}
	if e.wire.Accept != nil {
		listener = e.wire.Accept(listener)
	}
	e.ends.Go(func() { _ = server.Serve(listener) })
	e.servers = append(e.servers, server)
	return nil
}

func (e *entrance) restart(grace time.Duration) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.servers[len(e.servers)-1]
	if err := e.serve(); err != nil {
		return fmt.Errorf("restart the server at %s: %w", e.url(), err)
	}
	e.ends.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		if old.Shutdown(ctx) != nil {
			_ = old.Close()
		}
	})
	return nil
}

// close stops serving, cuts every connection and waits until no server is left.
func (e *entrance) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.servers {
		_ = s.Close()
	}
	_ = e.master.Close()
	e.ends.Wait()
}
