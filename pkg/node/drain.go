package node

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// fresh is the connections of a server on which nothing has come yet. Clients that
// dial several at once leave some of them so, and http.Server.Shutdown waits five
// seconds for each.
type fresh struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// firstBytes is how long a stopping server waits for the first bytes of a connection:
// those that a client sent with it are under way.
const firstBytes = 100 * time.Millisecond

// watch has f follow the connections of srv, which does not serve yet.
func (f *fresh) watch(srv *http.Server) {
	f.conns = map[net.Conn]struct{}{}
	counted := srv.ConnState
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		if counted != nil {
			counted(c, state)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if state == http.StateNew {
			f.conns[c] = struct{}{}
		} else {
			delete(f.conns, c)
		}
	}
}

// shutdown is srv.Shutdown, for which connections on which nothing came are no reason
// to wait.
func (f *fresh) shutdown(ctx context.Context, srv *http.Server) error {
	defer time.AfterFunc(firstBytes, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for c := range f.conns {
			_ = c.Close() // its server notices
		}
	}).Stop()
	return srv.Shutdown(ctx)
}
