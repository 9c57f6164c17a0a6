package fabric

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How long a connection that calibrates may take to grow fast, and is then measured.
const (
	slowStart = 500 * time.Millisecond
	measured  = 2 * time.Second
)

// Calibrate is how many bytes of payload a second one plain TCP connection carries
// from one port to another, for two seconds after its first half.
func Calibrate(ctx context.Context, from, to *Port) (bytesPerSecond float64, err error) {
	sender, receiver, err := connect(ctx, from, to)
	if err != nil {
		return 0, fmt.Errorf("calibrate: %w", err)
	}
	var both sync.WaitGroup
	both.Go(func() { repeat(sender.Write) })
	both.Go(func() { repeat(receiver.Read) })
	defer both.Wait()
	defer receiver.Close()
	defer sender.Close()
	if bytesPerSecond, err = measure(ctx, receiver); err != nil {
		return 0, fmt.Errorf("calibrate: %w", err)
	}
	return bytesPerSecond, nil
}

// repeat calls one of a connection's methods until that is closed.
func repeat(call func([]byte) (int, error)) {
	for b := make([]byte, 256<<10); ; {
		if _, err := call(b); err != nil {
			return
		}
	}
}

// connect makes a connection from one port to another.
func connect(ctx context.Context, from, to *Port) (sender, receiver net.Conn, err error) {
	listener, err := to.Listen(ctx, "tcp", net.JoinHostPort(to.addr.String(), "0"))
	if err != nil {
		return nil, nil, err
	}
	defer listener.Close()
	if sender, err = from.Dial(ctx, "tcp", listener.Addr().String()); err != nil {
		return nil, nil, err
	}
	if receiver, err = listener.Accept(); err != nil {
		return nil, nil, errors.Join(err, sender.Close())
	}
	return sender, receiver, nil
}

func measure(ctx context.Context, receiver net.Conn) (bytesPerSecond float64, err error) {
	var at [2]time.Time
	var bytes [2]uint64
	for i, wait := range []time.Duration{slowStart, measured} {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return 0, ctx.Err()
		case <-timer.C:
		}
		// What came, not what was read: a reader that was held up would read faster than
		// the link is.
		if bytes[i], err = arrived(receiver); err != nil {
			return 0, err
		}
		at[i] = time.Now()
	}
	return float64(bytes[1]-bytes[0]) / at[1].Sub(at[0]).Seconds(), nil
}

// arrived is how many bytes of payload a TCP connection has been sent.
func arrived(conn net.Conn) (bytes uint64, err error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return 0, fmt.Errorf("%T is no TCP connection", conn)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, err
	}
	failed := raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			bytes = info.Bytes_received
		}
	})
	return bytes, errors.Join(failed, err)
}
