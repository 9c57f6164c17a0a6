package cluster

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

var errCut = errors.New("the cable is cut")

// cut is a cable that can be cut: nothing comes in or goes out then.
type cut struct {
	off atomic.Bool
}

func (c *cut) wrap(inner memberlist.NodeAwareTransport) memberlist.NodeAwareTransport {
	w := &cable{NodeAwareTransport: inner, cut: c, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), done: make(chan struct{}), ended: make(chan struct{})}
	go w.carry()
	return w
}

type cable struct {
	memberlist.NodeAwareTransport
	cut         *cut
	packets     chan *memberlist.Packet
	streams     chan net.Conn
	done, ended chan struct{}
}

func (c *cable) carry() {
	defer close(c.ended)
	for {
		select {
		case <-c.done:
			return
		case p := <-c.NodeAwareTransport.PacketCh():
			if c.cut.off.Load() {
				continue
			}
			select {
			case c.packets <- p:
			case <-c.done:
				return
			}
		case conn := <-c.NodeAwareTransport.StreamCh():
			if c.cut.off.Load() {
				conn.Close()
				continue
			}
			select {
			case c.streams <- conn:
			case <-c.done:
				return
			}
		}
	}
}

func (c *cable) PacketCh() <-chan *memberlist.Packet { return c.packets }

func (c *cable) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if c.cut.off.Load() {
		return time.Now(), nil
	}
	return c.NodeAwareTransport.WriteToAddress(b, a)
}

func (c *cable) WriteTo(b []byte, addr string) (time.Time, error) {
	return c.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (c *cable) Shutdown() error {
	err := c.NodeAwareTransport.Shutdown()
	close(c.done)
	<-c.ended
	return err
}

func (c *cable) StreamCh() <-chan net.Conn { return c.streams }

func (c *cut) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if c.off.Load() {
		return nil, errCut
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}
