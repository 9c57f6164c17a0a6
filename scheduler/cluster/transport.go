package cluster

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxStreams bounds the connections that are served at a time, and with
	// maxStreamBytes the memory that strangers can take: what comes on a connection is
	// known to be from a scheduler only when it has come whole.
	maxStreams = 16
	// maxStreamBytes is above the state of maxMembers and identity.MaxStatements.
	maxStreamBytes = 1 << 20
)

var errTooLong = errors.New("more than any scheduler has to say")

// bounded is a transport that strangers cannot fill, and whose dialing ends with ctx.
type bounded struct {
	memberlist.NodeAwareTransport
	ctx     context.Context // of Run; memberlist's interface has none to pass on
	dial    dialFunc
	refused func(reason string)
	streams chan net.Conn
	places  chan struct{}
	done    chan struct{}
	pump    sync.WaitGroup
}

// dialFunc is net.Dialer.DialContext.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// newBounded takes streams from inner until Shutdown.
func newBounded(ctx context.Context, inner memberlist.NodeAwareTransport, dial dialFunc, refused func(reason string)) *bounded {
	b := &bounded{
		NodeAwareTransport: inner, ctx: ctx, dial: dial, refused: refused,
		streams: make(chan net.Conn), places: make(chan struct{}, maxStreams), done: make(chan struct{}),
	}
	b.pump.Go(b.admit)
	return b
}

func (b *bounded) admit() {
	for {
		select {
		case <-b.done:
			return
		case conn := <-b.NodeAwareTransport.StreamCh():
			select {
			case b.places <- struct{}{}:
			default:
				b.refused("streams")
				_ = conn.Close()
				continue
			}
			stream := &boundedStream{Conn: conn, places: b.places}
			select {
			case b.streams <- stream:
			case <-b.done:
				_ = stream.Close()
				return
			}
		}
	}
}

// StreamCh implements memberlist.Transport.
func (b *bounded) StreamCh() <-chan net.Conn { return b.streams }

// DialTimeout implements memberlist.Transport.
func (b *bounded) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return b.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (b *bounded) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(b.ctx, timeout)
	defer cancel()
	conn, err := b.dial(ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	return &boundedStream{Conn: conn}, nil
}

// Shutdown implements memberlist.Transport.
func (b *bounded) Shutdown() error {
	err := b.NodeAwareTransport.Shutdown()
	close(b.done)
	b.pump.Wait()
	return err
}

// boundedStream gives its place back when it is closed.
type boundedStream struct {
	net.Conn
	places chan struct{}
	closed sync.Once
	read   atomic.Int64
}

// Read implements net.Conn.
func (s *boundedStream) Read(p []byte) (int, error) {
	if s.read.Load() >= maxStreamBytes {
		return 0, errTooLong
	}
	n, err := s.Conn.Read(p)
	s.read.Add(int64(n))
	return n, err
}

// Close implements net.Conn.
func (s *boundedStream) Close() error {
	err := s.Conn.Close()
	if s.places != nil {
		s.closed.Do(func() { <-s.places })
	}
	return err
}
