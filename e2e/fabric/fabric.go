// Package fabric makes a small network on one Linux machine: namespaces as machines,
// each on a link of its own that is shaped both ways, all on one bridge or on several
// that stand for racks. The lab runs the real programs in it. It needs root and
// changes nothing outside of its own namespaces.
package fabric

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// named is where namespaces have their names, as ip-netns(8) has it.
const named = "/run/netns"

// Fabric is one such network. Its methods are safe for concurrent use.
type Fabric struct {
	prefix string
	core   *space // has the bridges
	bridge netlink.Link

	life   sync.RWMutex // held for writing to close, for reading by all that uses a space
	closed bool

	mu     sync.Mutex
	spaces []*space // all but core
	ports  []*Port  // those whose links are made
	names  map[string]bool
	last   int // address and link that were given out last
	racks  int
}

// use runs fn unless the network is closed: netlink would then reach the namespace of
// the caller in place of the one that is gone.
func (f *Fabric) use(fn func() error) error {
	f.life.RLock()
	defer f.life.RUnlock()
	if f.closed {
		return net.ErrClosed
	}
	return fn()
}

// space is a namespace and a handle to what is in it.
type space struct {
	name string
	ns   netns.NsHandle
	*netlink.Handle
}

// path is the file that names the namespace.
func (s *space) path() string { return filepath.Join(named, s.name) }

// New makes an empty network. The caller closes it.
func New(ctx context.Context) (*Fabric, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root: run this as root or with sudo")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	owner, err := ownerOf(os.Getpid())
	if err != nil {
		return nil, err
	}
	f := &Fabric{prefix: fmt.Sprintf("%s%s-%d-", mark, owner, made.Add(1)), names: map[string]bool{}}
	if err := f.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("make a network: %w", err), f.Close())
	}
	return f, nil
}

// made counts the networks of this process: their namespaces are named by it.
var made atomic.Int64

func (f *Fabric) open() error {
	var err error
	if f.core, err = newSpace(f.prefix + "core"); err != nil {
		return err
	}
	f.bridge, err = f.core.addBridge("br0")
	return err
}

// addBridge makes a bridge whose frames no firewall looks at, and that sends none of
// its own: it would, to find who wants multicast.
func (s *space) addBridge(name string) (netlink.Link, error) {
	snoops := false
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu}, MulticastSnooping: &snoops}
	if err := s.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	if err := s.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	return bridge, onThread(func() error {
		if err := s.enter(); err != nil {
			return err
		}
		return sysctl("net/bridge/bridge-nf-call-iptables", "0")
	})
}

// newSpace makes a namespace with a name, its loopback up and without IPv6, whose
// address detection would delay each link.
func newSpace(name string) (*space, error) {
	s := &space{name: name, ns: netns.None()}
	err := onThread(func() error {
		ns, err := netns.NewNamed(name) // the thread is in it now
		if err != nil {
			return fmt.Errorf("namespace %s: %w", name, err)
		}
		s.ns = ns
		// Reno is in every kernel; what else one prefers changes what is measured.
		return errors.Join(sysctl("net/ipv6/conf/all/disable_ipv6", "1"), sysctl("net/ipv4/tcp_congestion_control", "reno"))
	})
	if err == nil {
		s.Handle, err = netlink.NewHandleAt(s.ns)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	lo, err := s.LinkByName("lo")
	if err == nil {
		err = s.LinkSetUp(lo)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("loopback of %s: %w", name, err), s.close())
	}
	return s, nil
}

// close removes the namespace; what runs in it keeps it alive, without a name.
func (s *space) close() error {
	if s.Handle != nil {
		s.Handle.Close()
	}
	if s.ns.IsOpen() {
		return errors.Join(s.ns.Close(), netns.DeleteNamed(s.name))
	}
	return nil
}

// enter moves the calling thread into the namespace.
func (s *space) enter() error { return netns.Set(s.ns) }

// sysctl sets a value, unless this kernel has no such.
func sysctl(name, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Close removes all that was made. What still runs in a namespace of it loses its
// network. Close may be called again.
func (f *Fabric) Close() error {
	f.life.Lock()
	defer f.life.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	var errs []error
	for _, s := range f.spaces {
		errs = append(errs, s.close())
	}
	if f.core != nil {
		errs = append(errs, f.core.close())
	}
	return errors.Join(errs...)
}

// reserve gives out a name, an address and a number for a link.
func (f *Fabric) reserve(name string) (netip.Addr, int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case name == "core" || f.names[name] || name == "" || filepath.Base(name) != name:
		return netip.Addr{}, 0, fmt.Errorf("%q is taken, or no name for a port", name)
	case f.last == 250*250:
		return netip.Addr{}, 0, errors.New("this network is full")
	}
	f.names[name] = true
	f.last++
	return netip.AddrFrom4([4]byte{10, 77, byte(1 + f.last/250), byte(1 + f.last%250)}), f.last, nil
}

// Subnet holds the addresses of all ports.
func Subnet() netip.Prefix { return netip.MustParsePrefix("10.77.0.0/16") }
