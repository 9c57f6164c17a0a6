package origin

import (
	"context"
	"net"
	"net/http/httptrace"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// line is the connection that a body comes by, for who wants to know how much of it waits
// there. It is safe for concurrent use.
type line struct {
	conn atomic.Pointer[syscall.RawConn]
}

type lineKey struct{}

// withLine has l learn of the connection of each request that is made with the context.
func withLine(ctx context.Context, l *line) context.Context {
	return context.WithValue(ctx, lineKey{}, l)
}

// traced is ctx as a request wants it that tells its line.
func traced(ctx context.Context) context.Context {
	l, ok := ctx.Value(lineKey{}).(*line)
	if !ok {
		return ctx
	}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { l.is(info.Conn) }})
}

func (l *line) is(conn net.Conn) {
	l.conn.Store(nil)
	if secure, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = secure.NetConn()
	}
	if sock, ok := conn.(syscall.Conn); ok {
		if raw, err := sock.SyscallConn(); err == nil {
			l.conn.Store(&raw)
		}
	}
}

// waiting is how many bytes the kernel holds that nobody has read yet; 0 where that cannot
// be known.
func (l *line) waiting() (n int) {
	raw := l.conn.Load()
	if raw == nil {
		return 0
	}
	_ = (*raw).Control(func(fd uintptr) {
		if got, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ); err == nil {
			n = got
		}
	})
	return n
}
