package fabric

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// Rack is a bridge that shares one link to all others. Its methods are safe for
// concurrent use.
type Rack struct {
	f      *Fabric
	label  string
	bridge netlink.Link
	uplink string // name of the rack's end
}

// AddRack adds a rack, whose link to the others is shaped both ways.
func (f *Fabric) AddRack(name string, uplink Link) (*Rack, error) {
	f.mu.Lock()
	f.racks++
	number := f.racks
	f.mu.Unlock()
	r := &Rack{f: f, label: name, uplink: fmt.Sprintf("up%d", number)}
	err := f.use(func() (err error) {
		if r.bridge, err = f.core.addBridge(fmt.Sprintf("br%d", number)); err != nil {
			return err
		}
		return r.join(fmt.Sprintf("down%d", number), uplink)
	})
	if err != nil {
		return nil, fmt.Errorf("add rack %s: %w", name, err)
	}
	return r, nil
}

// join makes the link between the rack's bridge and the first one.
func (r *Rack) join(end string, l Link) error {
	core := r.f.core
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: r.uplink, MTU: mtu, TxQLen: queueLength(l.Up), MasterIndex: r.bridge.Attrs().Index},
		PeerName:  end, PeerTxQLen: queueLength(l.Down),
	}
	if err := core.LinkAdd(pair); err != nil {
		return err
	}
	near, err := core.LinkByName(r.uplink)
	if err != nil {
		return err
	}
	far, err := core.LinkByName(end)
	if err != nil {
		return err
	}
	return errors.Join(core.LinkSetMaster(far, r.f.bridge), core.shape(near, l.Up), core.shape(far, l.Down),
		core.LinkSetUp(near), core.LinkSetUp(far))
}

// Name is what AddRack was told.
func (r *Rack) Name() string { return r.label }

// Add adds a machine to the rack.
func (r *Rack) Add(name string, l Link) (*Port, error) { return r.f.add(name, l, r.bridge) }

// Counters are those of the rack's link to the others.
func (r *Rack) Counters() (Counters, error) { return r.f.counters(r.f.core, r.uplink) }
