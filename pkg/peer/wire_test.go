package peer_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

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

// A server's socket takes little more than the other end has room for: what comes next
// is not behind megabytes.
func TestBufferedSocketHoldsLittle(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	reader, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	// As much room at the sender's end as a fast connection gets in time, and the least
	// at the reader's.
	const room = 4 << 20
	if err := errors.Join(raw.(*net.TCPConn).SetWriteBuffer(room), reader.(*net.TCPConn).SetReadBuffer(4<<10)); err != nil {
		t.Fatal(err)
	}
	conn, _, err := peer.Buffered(plain{}).ServerHandshake(raw)
	if err != nil {
		t.Fatal(err)
	}
	took := 0
	for part := make([]byte, 16<<10); took < room && err == nil; {
		err = conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		if err == nil {
			var n int
			n, err = conn.Write(part)
			took += n
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) || took > 400<<10 {
		t.Errorf("the socket took %d bytes that nobody reads, then %v; want some 128 KiB, and to wait", took, err)
	}
}

// plain are credentials that change nothing.
type plain struct {
	credentials.TransportCredentials
}

func (plain) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return raw, nil, nil
}
