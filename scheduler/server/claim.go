package server

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// claim checks the address, host:port, under which a node at remote says that others
// reach it: they will dial it. One that is another machine for each of them, or no
// machine's, is refused: loopback and link-local but where the node itself comes from
// there, a cloud's metadata, multicast, and IPv6 forms of IPv4 addresses, which
// translators lead elsewhere. A name is for who dials to resolve.
func claim(address, remote string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil // decoder.attend has looked
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	at, err := netip.ParseAddr(name)
	switch {
	case err == nil:
	case name == "localhost", strings.HasSuffix(name, ".localhost"):
		at = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	default:
		return nil
	}
	from, _ := netip.ParseAddr(remote)
	at, from = at.Unmap().WithZone(""), from.Unmap().WithZone("")
	switch {
	case metadata(at), translated(at), at.IsUnspecified(), at.IsMulticast(), at.Is4() && (at.As4()[0] == 0 || at.As4()[0] >= 240):
	case at.IsLoopback() && !from.IsLoopback():
	case at.IsLinkLocalUnicast() && !from.IsLinkLocalUnicast():
	default:
		return nil
	}
	return fmt.Errorf("attend.address: %q is no address at which other nodes reach this one; set peer.advertise to one", address)
}

// metadata reports whether a cloud serves its machines' secrets at addr.
func metadata(addr netip.Addr) bool {
	switch addr.String() {
	case "169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "168.63.129.16", "192.0.0.192",
		"fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe":
		return true
	}
	return false
}

// translated reports whether an address of IPv6 stands for one of IPv4: 6to4, Teredo,
// NAT64, compatible and translated forms.
func translated(addr netip.Addr) bool {
	if !addr.Is6() || addr.IsLoopback() {
		return false
	}
	b := addr.As16()
	return b[0] == 0x20 && b[1] == 0x02 || // 2002::/16
		string(b[:4]) == "\x20\x01\x00\x00" || // 2001::/32
		string(b[:4]) == "\x00\x64\xff\x9b" || // 64:ff9b::/32
		string(b[:8]) == "\x00\x00\x00\x00\x00\x00\x00\x00" // ::/64
}
