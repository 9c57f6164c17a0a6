package server

import "net/netip"

// machineOf names the machine that a stream comes from, for accusations: the remote
// address, which a node cannot choose as it does what it says of itself; of IPv6 its
// network, for one machine has all of that. "" where an address tells nothing: the
// scheduler's own machine may run a whole cluster.
func machineOf(remote string) string {
	ip, err := netip.ParseAddr(remote)
	if err != nil {
		return ""
	}
	ip = ip.Unmap().WithZone("")
	switch {
	case ip.IsLoopback():
		return ""
	case ip.Is6():
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
