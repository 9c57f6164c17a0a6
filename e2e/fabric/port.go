package fabric

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// Port is a machine on the network: a namespace with one shaped link. Its methods are
// safe for concurrent use.
type Port struct {
	f     *Fabric
	at    *space
	label string
	addr  netip.Addr
	mac   net.HardwareAddr
	near  int    // index of its own end of the link
	end   string // name of the other end, which is in the core
}

// Name is what Add was told.
func (p *Port) Name() string { return p.label }

// Addr is the port's address, which all ports reach.
func (p *Port) Addr() netip.Addr { return p.addr }

// Path is the file that names the port's namespace, for nsenter.
func (p *Port) Path() string { return p.at.path() }

// Add adds a machine. It returns when its link is up.
func (f *Fabric) Add(name string, l Link) (*Port, error) { return f.add(name, l, f.bridge) }

func (f *Fabric) add(name string, l Link, bridge netlink.Link) (p *Port, err error) {
	err = f.use(func() error {
		addr, number, err := f.reserve(name)
		if err != nil {
			return err
		}
		s, err := newSpace(f.prefix + name)
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.spaces = append(f.spaces, s)
		f.mu.Unlock()
		p = &Port{f: f, at: s, label: name, addr: addr, end: fmt.Sprintf("p%d", number),
			mac: net.HardwareAddr{2, 77, 0, 0, byte(number >> 8), byte(number)}}
		if err := p.plug(l, bridge); err != nil {
			return err
		}
		return f.introduce(p)
	})
	if err != nil {
		return nil, fmt.Errorf("add %s to the network: %w", name, err)
	}
	return p, nil
}

// plug makes the port's link.
func (p *Port) plug(l Link, bridge netlink.Link) error {
	// The end at the bridge sends what the port is sent.
	core := p.f.core
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: p.end, MTU: mtu, TxQLen: queueLength(l.Down), MasterIndex: bridge.Attrs().Index},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(p.at.ns), PeerTxQLen: queueLength(l.Up), PeerHardwareAddr: p.mac,
	}
	if err := core.LinkAdd(pair); err != nil {
		return err
	}
	near, err := p.at.LinkByName("eth0")
	if err != nil {
		return err
	}
	p.near = near.Attrs().Index
	far, err := core.LinkByName(p.end)
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: p.addr.AsSlice(), Mask: net.CIDRMask(Subnet().Bits(), 32)}}
	err = errors.Join(core.shape(far, l.Down), p.at.shape(near, l.Up), p.at.AddrAdd(near, address),
		core.LinkSetUp(far), p.at.LinkSetUp(near))
	if err != nil {
		return err
	}
	return p.carries()
}

// introduce tells a new port and all others of each other, for good. What they would
// learn by asking goes to a table that all namespaces of the kernel share, which holds
// about a thousand entries: 32 machines that talk to each other fill it.
func (f *Fabric) introduce(p *Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, other := range f.ports {
		errs = append(errs, p.knows(other), other.knows(p))
	}
	f.ports = append(f.ports, p)
	return errors.Join(errs...)
}

func (p *Port) knows(other *Port) error {
	return p.at.NeighSet(&netlink.Neigh{
		LinkIndex: p.near, State: netlink.NUD_PERMANENT, IP: other.addr.AsSlice(), HardwareAddr: other.mac,
	})
}

// carries waits until both ends of the link are up: the kernel says so a moment after
// it was set, and the bridge goes by that.
func (p *Port) carries() error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 600 {
		near, err := p.at.LinkByName("eth0")
		if err != nil {
			return err
		}
		far, err := p.f.core.LinkByName(p.end)
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
	err := p.f.use(func() error {
		core := p.f.core
		far, err := core.LinkByName(p.end)
		switch {
		case err != nil:
			return err
		case !up:
			return core.LinkSetDown(far)
		}
		return errors.Join(core.LinkSetUp(far), p.carries())
	})
	if err != nil {
		return fmt.Errorf("plug of %s: %w", p.label, err)
	}
	return nil
}

// Counters are bytes on a link since it was made, with their headers; those of packets
// that the kernel cuts only on a real wire are counted once.
type Counters struct{ Sent, Received int64 }

// Counters are those of the port.
func (p *Port) Counters() (Counters, error) { return p.f.counters(p.at, "eth0") }

func (f *Fabric) counters(s *space, name string) (c Counters, err error) {
	err = f.use(func() error {
		link, err := s.LinkByName(name)
		if err != nil {
			return err
		}
		n := link.Attrs().Statistics
		if n == nil {
			return errors.New("the kernel gives none")
		}
		c = Counters{Sent: int64(n.TxBytes), Received: int64(n.RxBytes)}
		return nil
	})
	if err != nil {
		return Counters{}, fmt.Errorf("counters of %s in %s: %w", name, s.name, err)
	}
	return c, nil
}
