package peer_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"

	"google.golang.org/grpc/credentials"

	"github.com/damselfly-p2p/damselfly/pkg/peer"
)

// records are credentials whose connections write in records of four bytes, as TLS
// does in larger ones.
type records struct {
	credentials.TransportCredentials
}

func (records) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return recordConn{raw}, nil, nil
}

type recordConn struct{ net.Conn }

func (c recordConn) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var wrote int
		wrote, err = c.Conn.Write(p[n:min(n+4, len(p))])
		n += wrote
	}
	return n, err
}

// socket keeps what is written, and gives what is to be read a few bytes at a time.
type socket struct {
	net.Conn
	writes [][]byte
	reads  io.Reader
	calls  int
	err    error
}

func (s *socket) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	s.writes = append(s.writes, bytes.Clone(p))
	return len(p), nil
}

func (s *socket) Read(p []byte) (int, error) {
	s.calls++
	return s.reads.Read(p)
}

// The records of one Write go out together, and what has come is read at once.
func TestBufferedWritesAndReadsInLargeParts(t *testing.T) {
	raw := &socket{reads: bytes.NewReader(make([]byte, 1000))}
	conn, _, err := peer.Buffered(records{}).ServerHandshake(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"ten bytes.", "and some more of them"} {
		if n, err := conn.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
		if last := raw.writes[len(raw.writes)-1]; string(last) != text {
			t.Errorf("%q went out as %q", text, raw.writes)
		}
	}
	if len(raw.writes) != 2 {
		t.Errorf("%d writes", len(raw.writes))
	}
	for range 100 {
		if _, err := io.ReadFull(conn, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	if raw.calls > 2 {
		t.Errorf("1000 bytes took %d reads of the socket", raw.calls)
	}
}

// A socket that fails fails the Write.
func TestBufferedWriteFails(t *testing.T) {
	broken := errors.New("broken")
	conn, _, err := peer.Buffered(records{}).ServerHandshake(&socket{err: broken})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("ten bytes.")); !errors.Is(err, broken) {
		t.Errorf("the write ended with %v", err)
	}
}
