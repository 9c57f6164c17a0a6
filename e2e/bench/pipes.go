package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
)

// request is what a pipe is asked for: so many bytes from there on, as two numbers.
type request struct{ Offset, Bytes int64 }

// largeWrite is how much TLS is given at a time; it cuts that into its records.
const largeWrite = 1 << 20

// sendFiles answers requests with bytes of file by sendfile(2), until l is closed.
func sendFiles(l net.Listener, file *os.File) error {
	return accept(l, func(conn net.Conn, r request) error {
		if _, err := file.Seek(r.Offset, io.SeekStart); err != nil {
			return err
		}
		_, err := io.CopyN(conn, file, r.Bytes)
		return err
	})
}

// sendSealed answers requests with bytes from memory over TLS, until l is closed.
func sendSealed(l net.Listener, config *tls.Config) error {
	data := noise(largeWrite)
	return accept(tls.NewListener(l, config), func(conn net.Conn, r request) error {
		for left := r.Bytes; left > 0; left -= largeWrite {
			if _, err := conn.Write(data[:min(left, largeWrite)]); err != nil {
				return err
			}
		}
		return nil
	})
}

// accept serves one connection after another: each belongs to one row.
func accept(l net.Listener, serve func(net.Conn, request) error) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		for err == nil {
			var r request
			if err = binary.Read(conn, binary.BigEndian, &r); err == nil {
				err = serve(conn, r)
			}
		}
		if err := errors.Join(dropEOF(err), conn.Close()); err != nil {
			return err
		}
	}
}

func dropEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// pipe is the near end of one of these.
type pipe struct{ conn net.Conn }

func openPipe(ctx context.Context, address string, config *tls.Config) (*pipe, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if config == nil {
		return &pipe{conn}, nil
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if s := secure.ConnectionState(); s.CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		return nil, errors.Join(fmt.Errorf("TLS took %s, which is not what the bars are made for", tls.CipherSuiteName(s.CipherSuite)), secure.Close())
	}
	return &pipe{secure}, nil
}

// ask sends a request.
func (p *pipe) ask(r request) error { return binary.Write(p.conn, binary.BigEndian, r) }

// into moves bytes into a new file, by splice(2).
func (p *pipe) into(file string, r request) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := p.ask(r); err != nil {
		return err
	}
	_, err = io.CopyN(f, p.conn, r.Bytes)
	return err
}

// away reads bytes and drops them. buf is where they pass.
func (p *pipe) away(buf []byte, r request) error {
	if err := p.ask(r); err != nil {
		return err
	}
	for left := r.Bytes; left > 0; {
		n, err := p.conn.Read(buf[:min(left, int64(len(buf)))])
		left -= int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}
