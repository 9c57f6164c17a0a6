package origin

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// ownAddresses are the addresses of this machine's interfaces, as they were a moment
// ago. Safe for concurrent use.
type ownAddresses struct {
	mu    sync.Mutex
	asked time.Time
	all   map[netip.Addr]bool
}

// ownLife bounds how often the kernel is asked: a node of Kubernetes has hundreds of
// interfaces, and a dial may try several addresses.
const ownLife = 5 * time.Second

// has reports whether addr is one of this machine's. Where the interfaces cannot be
// listed, what was known before counts.
func (o *ownAddresses) has(addr netip.Addr) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all == nil || time.Since(o.asked) > ownLife {
		o.asked = time.Now()
		if list, err := net.InterfaceAddrs(); err == nil {
			o.all = make(map[netip.Addr]bool, len(list))
			for _, a := range list {
				if p, ok := a.(*net.IPNet); ok {
					if ip, ok := netip.AddrFromSlice(p.IP); ok {
						o.all[ip.Unmap()] = true
					}
				}
			}
		}
	}
	return o.all[addr]
}
