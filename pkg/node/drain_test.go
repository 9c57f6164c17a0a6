package node

import (
	"context"
	"errors"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener of connections within the process.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// A connection on which no request ever came does not hold up a node's end; a request
// that runs does, until it is answered.
func TestUnusedConnectionIsNoReasonToWait(t *testing.T) {
	for name, c := range map[string]struct {
		request string
		takes   time.Duration
		want    time.Duration
	}{
		"no request":     {"", 0, time.Second},
		"half a request": {"GET / HT", 0, 6 * time.Second}, // for as long as a header may take
		"a long answer":  {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 20 * time.Second, 21 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answered := false
				srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
					time.Sleep(c.takes)
					answered = true
				})}
				var unused fresh
				unused.watch(srv)
				l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
				served := make(chan error)
				go func() { served <- srv.Serve(l) }()
				client, server := net.Pipe()
				l.conns <- server
				if c.request != "" {
					if _, err := client.Write([]byte(c.request)); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				go func() { // what the server answers
					buf := make([]byte, 1024)
					for {
						if _, err := client.Read(buf); err != nil {
							return
						}
					}
				}()
				began := time.Now()
				if err := unused.shutdown(context.Background(), srv); err != nil {
					t.Error(err)
				}
				if err := <-served; !errors.Is(err, http.ErrServerClosed) {
					t.Error(err)
				}
				if took := time.Since(began); took > c.want || took < c.takes {
					t.Errorf("the end took %s, want %s to %s", took, c.takes, c.want)
				}
				if answered != (c.takes > 0) {
					t.Errorf("answered %v", answered)
				}
				_ = client.Close()
			})
		})
	}
}
