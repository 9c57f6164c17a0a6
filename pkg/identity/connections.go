package identity

import "sync"

// connections are those that a server of this identity has open with who has shown a
// certificate, and whom each is with. The zero value has none. Safe for concurrent
// use.
type connections struct {
	mu   sync.Mutex
	open map[*expiringConn]string
}

func (c *connections) add(conn *expiringConn, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[*expiringConn]string{}
	}
	c.open[conn] = id
}

func (c *connections) remove(conn *expiringConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}

// Disconnect closes the connections to servers of this identity (ServerCredentials) of
// everybody whom which names by peer ID, and returns how many. It keeps nobody from
// connecting again: who may do what is for the interceptors and handlers to say.
func (id *Identity) Disconnect(which func(id string) bool) int {
	id.connections.mu.Lock()
	var out []*expiringConn
	for conn, peer := range id.connections.open {
		if which(peer) {
			out = append(out, conn)
		}
	}
	id.connections.mu.Unlock()
	for _, conn := range out {
		_ = conn.Close() // whoever reads from it is told
	}
	return len(out)
}
