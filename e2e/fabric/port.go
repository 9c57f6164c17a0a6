package fabric

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// Port is a machine on the network: a namespace with one shaped link.
type Port struct {
	*space
	label string
	addr  netip.Addr
	far   *space // has the other end of its link
	end   string // that end's name
}

// Name is what Add was told.
func (p *Port) Name() string { return p.label }

// Addr is the port's address, which all ports reach.
func (p *Port) Addr() netip.Addr { return p.addr }

// Rack is a bridge that shares one link to all others.
type Rack struct {
	f      *Fabric
	label  string
	bridge netlink.Link
	uplink netlink.Link // the rack's end
}

// Name is what AddRack was told.
func (r *Rack) Name() string { return r.label }

// Add adds a machine. It returns when its link is up.
func (f *Fabric) Add(name string, l Link) (*Port, error) { return f.add(name, l, f.bridge) }

// Add adds a machine to the rack.
func (r *Rack) Add(name string, l Link) (*Port, error) { return r.f.add(name, l, r.bridge) }

func (f *Fabric) add(name string, l Link, bridge netlink.Link) (*Port, error) {
	addr, number, err := f.reserve(name)
	if err != nil {
		return nil, fmt.Errorf("add %s to the network: %w", name, err)
	}
	s, err := newSpace(f.prefix + name)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.spaces = append(f.spaces, s)
	f.mu.Unlock()
	p := &Port{space: s, label: name, addr: addr, far: f.core, end: fmt.Sprintf("p%d", number)}
	if err := p.plug(l, bridge); err != nil {
		return nil, fmt.Errorf("add %s to the network: %w", name, err)
	}
	return p, nil
}

// plug makes the port's link.
func (p *Port) plug(l Link, bridge netlink.Link) error {
	// The end at the bridge sends what the port is sent.
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: p.end, MTU: mtu, TxQLen: queueLength(l.Down), MasterIndex: bridge.Attrs().Index},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(p.ns), PeerTxQLen: queueLength(l.Up),
	}
	if err := p.far.LinkAdd(pair); err != nil {
		return err
	}
	near, err := p.LinkByName("eth0")
	if err != nil {
		return err
	}
	far, err := p.far.LinkByName(p.end)
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: p.addr.AsSlice(), Mask: net.CIDRMask(Subnet().Bits(), 32)}}
	err = errors.Join(p.far.shape(far, l.Down), p.shape(near, l.Up), p.AddrAdd(near, address),
		p.far.LinkSetUp(far), p.LinkSetUp(near))
	if err != nil {
		return err
	}
	return p.carries()
}

// carries waits until both ends of the link are up: the kernel says so a moment after
// it was set, and the bridge goes by that.
func (p *Port) carries() error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 600 {
		near, err := p.LinkByName("eth0")
		if err != nil {
			return err
		}
		far, err := p.far.LinkByName(p.end)
		if err != nil {
			return err
		}
		if near.Attrs().OperState == netlink.OperUp && far.Attrs().OperState == netlink.OperUp {
			return nil
		}
		<-tick.C
	}
	return errors.New("its link did not come up within 3 s")
}

// SetUp pulls the plug, or puts it in again. Connections are not closed: nothing
// passes.
func (p *Port) SetUp(up bool) error {
	far, err := p.far.LinkByName(p.end)
	if err != nil {
		return fmt.Errorf("plug of %s: %w", p.label, err)
	}
	set := p.far.LinkSetDown
	if up {
		set = p.far.LinkSetUp
	}
	if err := set(far); err != nil {
		return fmt.Errorf("plug of %s: %w", p.label, err)
	}
	if up {
		return p.carries()
	}
	return nil
}

// Counters are bytes on a link since it was made, with their headers; those of packets
// that the kernel cuts only on a real wire are counted once.
type Counters struct{ Sent, Received int64 }

// Counters are those of the port.
func (p *Port) Counters() (Counters, error) { return p.counters("eth0") }

// Counters are those of the rack's link to the others.
func (r *Rack) Counters() (Counters, error) { return r.f.core.counters(r.uplink.Attrs().Name) }

func (s *space) counters(name string) (Counters, error) {
	link, err := s.LinkByName(name)
	if err != nil {
		return Counters{}, fmt.Errorf("counters of %s: %w", name, err)
	}
	n := link.Attrs().Statistics
	if n == nil {
		return Counters{}, fmt.Errorf("counters of %s: the kernel gives none", name)
	}
	return Counters{Sent: int64(n.TxBytes), Received: int64(n.RxBytes)}, nil
}

// AddRack adds a rack, whose link to the others is shaped both ways.
func (f *Fabric) AddRack(name string, uplink Link) (*Rack, error) {
	f.mu.Lock()
	f.racks++
	number := f.racks
	f.mu.Unlock()
	r := &Rack{f: f, label: name}
	var err error
	if r.bridge, err = f.core.addBridge(fmt.Sprintf("br%d", number)); err != nil {
		return nil, fmt.Errorf("add rack %s: %w", name, err)
	}
	up, down := fmt.Sprintf("up%d", number), fmt.Sprintf("down%d", number)
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: up, MTU: mtu, TxQLen: queueLength(uplink.Up), MasterIndex: r.bridge.Attrs().Index},
		PeerName:  down, PeerTxQLen: queueLength(uplink.Down),
	}
	if err := f.core.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("add rack %s: %w", name, err)
	}
	if r.uplink, err = f.core.LinkByName(up); err != nil {
		return nil, fmt.Errorf("add rack %s: %w", name, err)
	}
	far, err := f.core.LinkByName(down)
	if err != nil {
		return nil, fmt.Errorf("add rack %s: %w", name, err)
	}
	err = errors.Join(f.core.LinkSetMaster(far, f.bridge), f.core.shape(r.uplink, uplink.Up), f.core.shape(far, uplink.Down),
		f.core.LinkSetUp(r.uplink), f.core.LinkSetUp(far))
	if err != nil {
		return nil, fmt.Errorf("add rack %s: %w", name, err)
	}
	return r, nil
}

// Calibrate is how many bytes of payload a second one plain TCP connection carries
// from one port to another, for two seconds after its first half.
func Calibrate(ctx context.Context, from, to *Port) (bytesPerSecond float64, err error) {
	listener, err := to.Listen(ctx, "tcp", net.JoinHostPort(to.addr.String(), "0"))
	if err != nil {
		return 0, fmt.Errorf("calibrate: %w", err)
	}
	defer listener.Close()
	sender, err := from.Dial(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return 0, fmt.Errorf("calibrate: %w", err)
	}
	defer sender.Close()
	receiver, err := listener.Accept()
	if err != nil {
		return 0, fmt.Errorf("calibrate: %w", err)
	}
	defer receiver.Close()
	go func() {
		zeros := make([]byte, 256<<10)
		for {
			if _, err := sender.Write(zeros); err != nil {
				return // closed: it was measured
			}
		}
	}()
	const slowStart, measured = 500 * time.Millisecond, 2 * time.Second
	buffer := make([]byte, 256<<10)
	begin, n := time.Now(), 0
	var start time.Time
	for ctx.Err() == nil {
		got, err := receiver.Read(buffer)
		if err != nil {
			return 0, fmt.Errorf("calibrate: %w", err)
		}
		now := time.Now()
		switch {
		case start.IsZero() && now.Sub(begin) >= slowStart:
			start = now
		case !start.IsZero():
			n += got
			if took := now.Sub(start); took >= measured {
				return float64(n) / took.Seconds(), nil
			}
		}
	}
	return 0, ctx.Err()
}
