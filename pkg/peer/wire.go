package peer

import (
	"bufio"
	"context"
	"errors"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// Buffered wraps transport credentials so that the socket under TLS is read and
// written in large parts. crypto/tls reads and writes a record of 16 KiB at a time:
// at a few hundred megabits a second most CPU then goes into system calls and into
// waking up for each. The sockets of who calls must be TCP.
func Buffered(inner credentials.TransportCredentials) credentials.TransportCredentials {
	return buffered{inner, &sync.Pool{New: func() any { return new([]byte) }}}
}

type buffered struct {
	credentials.TransportCredentials
	spare *sync.Pool // of *[]byte: what goes out together
}

// ClientHandshake implements credentials.TransportCredentials.
func (b buffered) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	w := b.wire(raw)
	conn, info, err := b.TransportCredentials.ClientHandshake(ctx, authority, w)
	return w.over(conn, info, err)
}

// ServerHandshake implements credentials.TransportCredentials.
func (b buffered) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	w := b.wire(raw)
	w.shortQueue()
	conn, info, err := b.TransportCredentials.ServerHandshake(w)
	return w.over(conn, info, err)
}

// Clone implements credentials.TransportCredentials.
func (b buffered) Clone() credentials.TransportCredentials {
	return buffered{b.TransportCredentials.Clone(), b.spare}
}

// wireBuffer is how much is read off a socket at a time.
const wireBuffer = 64 << 10

// wire is the socket under TLS. What TLS writes while it is held goes out together.
type wire struct {
	net.Conn
	reader *bufio.Reader // for one reader, as TLS is
	spare  *sync.Pool

	mu  sync.Mutex
	out *[]byte // what is held; nil: nothing is
}

func (b buffered) wire(raw net.Conn) *wire {
	return &wire{Conn: raw, reader: bufio.NewReaderSize(raw, wireBuffer), spare: b.spare}
}

// unsent is how many bytes wait in a socket that have not been sent once. What is behind
// them is an answer to a short question, or the piece of another reader.
const unsent = 128 << 10

// shortQueue has the kernel take no more than it is about to send (tcp(7),
// TCP_NOTSENT_LOWAT). Left to itself it takes up to 4 MiB a connection, which a link
// of 100 Mbit/s needs a third of a second for, and longer where it has many readers.
// Where it cannot be set, answers come later, and that is all.
func (w *wire) shortQueue() {
	if raw, err := w.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent) })
	}
}

// over is the connection that the handshake made over the wire.
func (w *wire) over(conn net.Conn, info credentials.AuthInfo, err error) (net.Conn, credentials.AuthInfo, error) {
	if err != nil {
		return nil, nil, err
	}
	return &bulk{Conn: conn, wire: w}, info, nil
}

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) { return w.reader.Read(p) }

// Write implements net.Conn.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.out != nil {
		*w.out = append(*w.out, p...)
		return len(p), nil
	}
	return w.Conn.Write(p)
}

// SyscallConn gives gRPC the socket, to set its options.
func (w *wire) SyscallConn() (syscall.RawConn, error) {
	if s, ok := w.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.New("connection has no socket")
}

// bulk is a TLS connection whose records of one Write go out together.
type bulk struct {
	net.Conn
	wire *wire
	mu   sync.Mutex // one Write at a time
}

// Write implements net.Conn.
func (b *bulk) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wire.hold()
	n, err := b.Conn.Write(p)
	if flushErr := b.wire.flush(); err == nil {
		err = flushErr
	}
	return n, err
}

func (w *wire) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = w.spare.Get().(*[]byte)
}

// flush writes what was held.
func (w *wire) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.Conn.Write(*w.out)
	*w.out = (*w.out)[:0]
	w.spare.Put(w.out)
	w.out = nil
	return err
}
