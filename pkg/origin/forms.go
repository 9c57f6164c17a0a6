package origin

import "net/netip"

// readings are the addresses that a connection to addr may lead to: addr without
// zone, or the IPv4 address that it is mapped from, and each IPv4 address that an
// IPv6 form of it holds, where translators and tunnels send it.
func readings(addr netip.Addr) []netip.Addr {
	addr = addr.Unmap().WithZone("") // ::ffff:a.b.c.d is RFC 4291's mapped form
	out := []netip.Addr{addr}
	if !addr.Is6() {
		return out
	}
	b := addr.As16()
	v4 := func(at ...int) {
		out = append(out, netip.AddrFrom4([4]byte{b[at[0]], b[at[1]], b[at[2]], b[at[3]]}))
	}
	switch {
	case b[0] == 0x20 && b[1] == 0x02: // 6to4, RFC 3056
		v4(2, 3, 4, 5)
	case starts(b, 0x20, 0x01, 0, 0): // Teredo, RFC 4380: the client's, obfuscated
		out = append(out, netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}))
	case starts(b, 0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0): // NAT64, RFC 6052
		v4(12, 13, 14, 15)
	case starts(b, 0, 0x64, 0xff, 0x9b, 0, 1): // a network's own NAT64, RFC 8215
		out = append(out, localNAT64(b)...)
	case starts(b, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0): // IPv4-translated, RFC 2765
		v4(12, 13, 14, 15)
	case starts(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) && (b[12] != 0 || b[13] != 0 || b[14] != 0): // compatible, RFC 4291
		v4(12, 13, 14, 15)
	}
	if b[8]&^3 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe { // ISATAP in any network, RFC 5214
		v4(12, 13, 14, 15)
	}
	return out
}

func starts(b [16]byte, with ...byte) bool { return string(b[:len(with)]) == string(with) }

// localNAT64 reads an address of 64:ff9b:1::/48, in which a network chooses the
// length of its prefix: 96, 64, 56 or 48 bits (RFC 6052 section 2.2). Which it chose is
// not known, and translators ignore what follows the IPv4 address, so each reading counts.
func localNAT64(b [16]byte) []netip.Addr {
	var out []netip.Addr
	for _, f := range [][4]byte{
		{b[12], b[13], b[14], b[15]},
		{b[9], b[10], b[11], b[12]},
		{b[7], b[9], b[10], b[11]},
		{b[6], b[7], b[9], b[10]},
	} {
		// Nobody's address begins with 0 or 240 and more: that is a prefix of another
		// length.
		if f[0] != 0 && f[0] < 240 {
			out = append(out, netip.AddrFrom4(f))
		}
	}
	if len(out) == 0 {
		return []netip.Addr{netip.IPv4Unspecified()}
	}
	return out
}
