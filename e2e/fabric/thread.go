package fabric

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"

	"github.com/vishvananda/netns"
)

// onThread runs fn, which may move its thread to another namespace, and takes the
// thread back. Only one that cannot go back ends: with a thread end the programs that
// were started from it, where they were told to die with who started them.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = fn()
		back := netns.Set(home)
		if back == nil {
			runtime.UnlockOSThread()
		}
		done <- errors.Join(err, back, home.Close())
	}()
	return <-done
}

// inside runs fn in the port's namespace. It holds nothing while fn runs: a dial may
// last for longer than the network.
func (p *Port) inside(fn func() error) error {
	return onThread(func() error {
		if err := p.f.use(p.at.enter); err != nil {
			return fmt.Errorf("enter the namespace of %s: %w", p.label, err)
		}
		return fn()
	})
}

// Dial connects from the port; address is IP:port. The connection may be used from
// any goroutine.
func (p *Port) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	dialer := net.Dialer{}
	dialer.SetMultipathTCP(false)
	err = p.inside(func() error {
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens at the port, at IP:port. The listener may be used from any goroutine.
func (p *Port) Listen(ctx context.Context, network, address string) (l net.Listener, err error) {
	config := net.ListenConfig{}
	config.SetMultipathTCP(false)
	err = p.inside(func() error {
		l, err = config.Listen(ctx, network, address)
		return err
	})
	return l, err
}
