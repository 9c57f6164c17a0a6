package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// attendance is an Attend stream on a connection of its own: TLS 1.3 with the
// node's certificate, HTTP/2, gRPC's framing. It is written by hand because
// grpc-go's client costs about what its server costs, and thousands of clients
// share the machine with the scheduler that is measured: one goroutine a stream
// reads, and whoever has something to say writes.
type attendance struct {
	conn   net.Conn
	frames *http2.Framer

	mu       sync.Mutex
	out      []byte // gRPC messages that wait for window
	buf      []byte // of one write
	windows  [2]int // how much may be sent: by the connection, by the stream
	initial  int    // window of the stream by the peer's settings
	consumed int
	err      error
}

const (
	streamID     = 1
	maxFrame     = 16384
	firstWindow  = 65535
	windowUpdate = 16384 // bytes taken between two updates of the windows
	maxMessage   = 8 << 20
)

// dial opens the stream. The caller calls receive until it errs, and close.
func dial(ctx context.Context, address string, config *tls.Config) (*attendance, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	a := &attendance{conn: conn, windows: [2]int{firstWindow, firstWindow}, initial: firstWindow}
	a.frames = http2.NewFramer(conn, bufio.NewReaderSize(conn, 2048))
	a.frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	a.frames.SetReuseFrames()
	if err := a.open(address); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("opening the stream: %w", err)
	}
	return a, nil
}

func (a *attendance) open(address string) error {
	if _, err := a.conn.Write([]byte(http2.ClientPreface)); err != nil {
		return err
	}
	if err := a.frames.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}); err != nil {
		return err
	}
	var block []byte
	fields := hpack.NewEncoder(writer(func(b []byte) { block = append(block, b...) }))
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":path", damselflyv1.Scheduler_Attend_FullMethodName},
		{":authority", address}, {"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		if err := fields.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			return err
		}
	}
	return a.frames.WriteHeaders(http2.HeadersFrameParam{StreamID: streamID, BlockFragment: block, EndHeaders: true})
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) {
	w(b)
	return len(b), nil
}

func (a *attendance) close() { _ = a.conn.Close() }

// send says events. It never waits for the scheduler to make room: what finds no
// window goes out when there is some.
func (a *attendance) send(m *damselflyv1.NodeMessage) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := len(a.out)
	a.out = append(a.out, 0, 0, 0, 0, 0) // gRPC's prefix: not compressed, length
	out, err := proto.MarshalOptions{}.MarshalAppend(a.out, m)
	if err != nil {
		return err
	}
	a.out = out
	binary.BigEndian.PutUint32(a.out[at+1:], uint32(len(a.out)-at-5))
	return a.flush()
}

// flush writes what the windows allow. The caller holds mu.
func (a *attendance) flush() error {
	for a.err == nil && len(a.out) > 0 {
		n := min(len(a.out), maxFrame, a.windows[0], a.windows[1])
		if n <= 0 {
			return nil
		}
		a.buf = append(a.buf[:0], byte(n>>16), byte(n>>8), byte(n), byte(http2.FrameData), 0, 0, 0, 0, streamID)
		a.buf = append(a.buf, a.out[:n]...)
		a.out = append(a.out[:0], a.out[n:]...)
		a.windows[0] -= n
		a.windows[1] -= n
		_, a.err = a.conn.Write(a.buf)
	}
	return a.err
}

// receive reads messages and gives each to handle until the stream ends. The
// error tells why; it is never nil.
func (a *attendance) receive(handle func(*damselflyv1.SchedulerMessage) error) error {
	var in []byte
	for {
		f, err := a.frames.ReadFrame()
		if err != nil {
			return err
		}
		d, ok := f.(*http2.DataFrame)
		if !ok {
			if err := a.control(f); err != nil {
				return err
			}
			continue
		}
		in = append(in, d.Data()...)
		if err := a.took(len(d.Data())); err != nil {
			return err
		}
		rest := in
		for len(rest) >= 5 {
			size := int(binary.BigEndian.Uint32(rest[1:]))
			if rest[0] != 0 || size > maxMessage {
				return fmt.Errorf("a message of %d bytes with flag %d", size, rest[0])
			}
			if len(rest) < 5+size {
				break
			}
			var m damselflyv1.SchedulerMessage
			if err := proto.Unmarshal(rest[5:5+size], &m); err != nil {
				return err
			}
			if err := handle(&m); err != nil {
				return err
			}
			rest = rest[5+size:]
		}
		in = append(in[:0], rest...)
	}
}

// took gives window back for what was read.
func (a *attendance) took(n int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.consumed += n; a.consumed < windowUpdate {
		return nil
	}
	by := uint32(a.consumed)
	a.consumed = 0
	return errors.Join(a.frames.WriteWindowUpdate(0, by), a.frames.WriteWindowUpdate(streamID, by))
}

// control follows a frame that carries no message.
func (a *attendance) control(f http2.Frame) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
			a.windows[1] += int(v) - a.initial
			a.initial = int(v)
		}
		return errors.Join(a.frames.WriteSettingsAck(), a.flush())
	case *http2.PingFrame:
		if f.IsAck() {
			return nil
		}
		return a.frames.WritePing(true, f.Data)
	case *http2.WindowUpdateFrame:
		which := 1
		if f.StreamID == 0 {
			which = 0
		}
		a.windows[which] += int(f.Increment)
		return a.flush()
	case *http2.MetaHeadersFrame:
		return ended(f)
	case *http2.RSTStreamFrame:
		return fmt.Errorf("the scheduler reset the stream: %v", f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Errorf("the scheduler ends the connection: %v %s", f.ErrCode, f.DebugData())
	}
	return nil
}

// ended is gRPC's status where the headers are the stream's trailers.
func ended(f *http2.MetaHeadersFrame) error {
	var code, message string
	for _, h := range f.Fields {
		switch h.Name {
		case "grpc-status":
			code = h.Value
		case "grpc-message":
			message = h.Value
		}
	}
	if code == "" {
		return nil
	}
	return fmt.Errorf("the scheduler ended the stream: status %s: %s", code, message)
}
