package cluster

import (
	"container/list"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxStreams bounds the connections of schedulers that are served at a time, and
	// with maxStreamBytes the memory that they take.
	maxStreams = 16
	// maxStreamBytes is above the state of maxMembers and identity.MaxStatements.
	maxStreamBytes = 1 << 20
	// maxStrangers bounds the connections that have not shown the key yet. The one that
	// has been here longest gives way to the next: showing it takes a scheduler one round
	// trip, so only who opens so many within that can keep it out.
	maxStrangers = 256
)

var errTooLong = errors.New("more than any scheduler has to say")

// bounded is a transport that strangers cannot fill, and whose dialing ends with ctx.
// Who opens a connection shows first that it has the key, see prove.
type bounded struct {
	memberlist.NodeAwareTransport
	ctx     context.Context // of Run; memberlist's interface has none to pass on
	key     []byte
	dial    dialFunc
	refused func(reason string)
	streams chan net.Conn
	places  chan struct{}
	done    chan struct{}
	pump    sync.WaitGroup
	meeting sync.WaitGroup

	mu        sync.Mutex
	strangers *list.List // of net.Conn, who came first in front
}

// dialFunc is net.Dialer.DialContext.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// newBounded takes streams from inner until Shutdown.
func newBounded(ctx context.Context, inner memberlist.NodeAwareTransport, key []byte, dial dialFunc, refused func(reason string)) *bounded {
	b := &bounded{
		NodeAwareTransport: inner, ctx: ctx, key: key, dial: dial, refused: refused,
		streams: make(chan net.Conn), places: make(chan struct{}, maxStreams), done: make(chan struct{}), strangers: list.New(),
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
			place := b.enter(conn)
			b.meeting.Go(func() { b.meet(conn, place) })
		}
	}
}

// enter takes in a stranger, in place of another if need be.
func (b *bounded) enter(conn net.Conn) *list.Element {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.strangers.Len() >= maxStrangers {
		_ = b.strangers.Remove(b.strangers.Front()).(net.Conn).Close()
	}
	return b.strangers.PushBack(conn)
}

// meet hands a stranger on once it has shown the key.
func (b *bounded) meet(conn net.Conn, place *list.Element) {
	err := demand(conn, b.key)
	b.mu.Lock()
	b.strangers.Remove(place)
	b.mu.Unlock()
	if err == nil {
		select {
		case b.places <- struct{}{}:
			stream := &boundedStream{Conn: conn, places: b.places}
			select {
			case b.streams <- stream:
			case <-b.done:
				_ = stream.Close()
			}
			return
		default:
		}
	}
	b.refused("streams")
	_ = conn.Close()
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
	if err := prove(ctx, conn, b.key); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &boundedStream{Conn: conn}, nil
}

// Shutdown implements memberlist.Transport.
func (b *bounded) Shutdown() error {
	err := b.NodeAwareTransport.Shutdown()
	close(b.done)
	b.pump.Wait()
	b.mu.Lock()
	for e := b.strangers.Front(); e != nil; e = e.Next() {
		_ = e.Value.(net.Conn).Close()
	}
	b.mu.Unlock()
	b.meeting.Wait()
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
