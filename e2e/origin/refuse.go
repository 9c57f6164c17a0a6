package origin

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// Refusal refuses HTTP/2 streams as a server does that has begun nothing of them and
// lets clients try again. The zero Refusal refuses none.
type Refusal struct {
	left, refused atomic.Int64
}

// Refused is how many streams were refused until now.
func (r *Refusal) Refused() int { return int(r.refused.Load()) }

// First refuses the first n streams by RST_STREAM (REFUSED_STREAM), then says GOAWAY
// to their connections, and leaves all further ones to the server. It is for
// Wire.Accept.
func (r *Refusal) First(n int) func(net.Listener) net.Listener {
	r.left.Store(int64(n))
	return func(l net.Listener) net.Listener { return &refusing{Listener: l, refusal: r} }
}

type refusing struct {
	net.Listener
	refusal *Refusal
	ends    sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

// handshakeTimeout bounds how long one connection may hold up the others.
const handshakeTimeout = 5 * time.Second

// Accept returns connections that are not refused.
func (l *refusing) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || l.refusal.left.Load() <= 0 {
			return conn, err
		}
		secure, ok := conn.(*tls.Conn)
		if !ok {
			return conn, nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
		err = secure.HandshakeContext(ctx)
		cancel()
		if err != nil || secure.ConnectionState().NegotiatedProtocol != http2.NextProtoTLS {
			return conn, nil
		}
		l.mu.Lock()
		l.conns = append(l.conns, conn)
		l.mu.Unlock()
		l.ends.Go(func() { l.refusal.serve(conn) })
	}
}

// Close ends the connections that are refused, too.
func (l *refusing) Close() error {
	err := l.Listener.Close()
	l.mu.Lock()
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.mu.Unlock()
	l.ends.Wait()
	return err
}

// serve refuses every stream of a connection until the client hangs up.
func (r *Refusal) serve(conn net.Conn) {
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	framer := http2.NewFramer(conn, conn)
	if framer.WriteSettings() != nil {
		return
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				err = framer.WritePing(true, f.Data)
			}
		case *http2.HeadersFrame:
			r.refused.Add(1)
			if err = framer.WriteRSTStream(f.StreamID, http2.ErrCodeRefusedStream); err == nil && r.left.Add(-1) <= 0 {
				err = framer.WriteGoAway(f.StreamID, http2.ErrCodeNo, nil)
			}
		}
		if err != nil {
			return
		}
	}
}
