package identity

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What a caller without a certificate gets, who can be anybody: enough to join, and
// nothing that others could be kept from by holding it.
const (
	// strangerLifetime is how long the connection is kept: more than a join takes.
	strangerLifetime = 30 * time.Second
	// strangerBytes is what may come on it: far above a request to join.
	strangerBytes = 64 << 10
	// strangersOfOne bounds the connections of one address.
	strangersOfOne = 64
)

var (
	errTooMany = errors.New("too many connections without a certificate from this address: try again")
	errTooMuch = errors.New("more on a connection without a certificate than a request to join")
)

// connections are those that a server of this identity has open, and whom each is
// with. The zero value has none. Safe for concurrent use.
type connections struct {
	mu        sync.Mutex
	open      map[*serverConn]struct{}
	strangers map[netip.Prefix]int // how many are open without a certificate
}

// add takes in a connection, and ends it when its time is over. It errs when its
// address has too many.
func (c *connections) add(conn *serverConn, lifetime time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open, c.strangers = map[*serverConn]struct{}{}, map[netip.Prefix]int{}
	}
	if conn.peer == "" {
		if c.strangers[conn.from] >= strangersOfOne {
			return fmt.Errorf("%s: %w", conn.from, errTooMany)
		}
		c.strangers[conn.from]++
	}
	c.open[conn] = struct{}{}
	conn.connections = c
	// The timer runs on the monotonic clock: a wall clock that jumps must not cut
	// every connection of the cluster at once.
	conn.timer = time.AfterFunc(lifetime, func() { conn.Close() })
	return nil
}

func (c *connections) remove(conn *serverConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.open[conn]; !ok {
		return
	}
	delete(c.open, conn)
	if conn.peer != "" {
		return
	}
	if c.strangers[conn.from]--; c.strangers[conn.from] == 0 {
		delete(c.strangers, conn.from)
	}
}

// Disconnect closes the connections to servers of this identity (ServerCredentials) of
// everybody whom which names by peer ID, and returns how many. It keeps nobody from
// connecting again: who may do what is for the interceptors and handlers to say.
func (id *Identity) Disconnect(which func(id string) bool) int {
	id.connections.mu.Lock()
	var out []*serverConn
	for conn := range id.connections.open {
		if conn.peer != "" && which(conn.peer) {
			out = append(out, conn)
		}
	}
	id.connections.mu.Unlock()
	for _, conn := range out {
		_ = conn.Close() // whoever reads from it is told
	}
	return len(out)
}

// serverConn is a connection to a server: it ends in time, and a stranger says little
// on it.
type serverConn struct {
	net.Conn
	peer        string       // the ID of who opened it; empty without a certificate
	from        netip.Prefix // where from, see prefixOf
	read        atomic.Int64
	timer       *time.Timer
	connections *connections // that it is one of
}

// Read implements net.Conn.
func (c *serverConn) Read(p []byte) (int, error) {
	if c.peer != "" {
		return c.Conn.Read(p)
	}
	if c.read.Load() >= strangerBytes {
		return 0, errTooMuch
	}
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// Close implements net.Conn.
func (c *serverConn) Close() error {
	c.connections.remove(c)
	c.timer.Stop()
	return c.Conn.Close()
}

// SyscallConn gives gRPC the socket under TLS, to set its options.
func (c *serverConn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := c.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.New("connection has no socket")
}
