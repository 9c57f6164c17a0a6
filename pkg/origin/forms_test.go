package origin

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// However an address is written, and whether we dial it or a proxy does, it is the
// address that is judged.
func TestGuardKnowsEveryForm(t *testing.T) {
	g := newGuard(nil, time.Second)
	// Forms of 169.254.169.254, each with one of 8.8.8.8.
	for name, s := range map[string][2]string{
		"mapped":              {"::ffff:169.254.169.254", "::ffff:8.8.8.8"},
		"mapped in hex":       {"::ffff:a9fe:a9fe", "::ffff:808:808"},
		"compatible":          {"::169.254.169.254", "::8.8.8.8"},
		"translated":          {"::ffff:0:169.254.169.254", "::ffff:0:8.8.8.8"},
		"NAT64":               {"64:ff9b::169.254.169.254", "64:ff9b::8.8.8.8"},
		"local NAT64, /48":    {"64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1:808:8:800::"},
		"local NAT64, /56":    {"64:ff9b:1:cca9:fe:a9fe::", "64:ff9b:1:cc08:8:808::"},
		"local NAT64, /64":    {"64:ff9b:1:ccdd:a9:fea9:fe00:0", "64:ff9b:1:ccdd:8:808:800:0"},
		"local NAT64, /96":    {"64:ff9b:1::169.254.169.254", "64:ff9b:1::8.8.8.8"},
		"local NAT64, /96 b":  {"64:ff9b:1:abcd::a9fe:a9fe", "64:ff9b:1:abcd::808:808"},
		"local NAT64, junk":   {"64:ff9b:1:a9fe:a9:fe01:203:405", "64:ff9b:1:808:8:801:203:405"},
		"local NAT64, junk b": {"64:ff9b:1:cca9:fe:a9fe:203:405", "64:ff9b:1:cc08:8:808:203:405"},
		"local NAT64, u set":  {"64:ff9b:1:a9fe:ffa9:fe01:203:405", "64:ff9b:1:808:ff08:801:203:405"},
		"6to4":                {"2002:a9fe:a9fe::1", "2002:808:808::1"},
		"Teredo":              {"2001:0:4136:e378:8000:63bf:5601:5601", "2001:0:4136:e378:8000:63bf:f7f7:f7f7"},
		"ISATAP":              {"::5efe:169.254.169.254", "::5efe:8.8.8.8"},
		"ISATAP, unique":      {"::200:5efe:169.254.169.254", "::200:5efe:8.8.8.8"},
		"ISATAP in a site":    {"2001:db8:1:2::5efe:a9fe:a9fe", "2001:db8:1:2::5efe:808:808"},
		"ISATAP elsewhere":    {"2620:12::200:5efe:a9fe:a9fe", "2620:12::200:5efe:808:808"},
	} {
		for i, text := range s {
			target := net.JoinHostPort(text, "443")
			for place, err := range map[string]error{
				"dial":    g.check("host.example:443", netip.MustParseAddr(text), false),
				"literal": g.checkLiteral(target, false),
			} {
				if errors.Is(err, ErrForbiddenAddress) != (i == 0) {
					t.Errorf("%s at %s, %s: %v", name, place, text, err)
				}
			}
		}
	}
	for _, text := range []string{"2130706433:80", "0x7f000001:80", "127.1:80", "127.0.0.1.:80", "localhost.:80", "a.localhost:80", "[fe80::1%eth0]:80"} {
		if err := g.checkLiteral(text, false); !errors.Is(err, ErrForbiddenAddress) {
			t.Errorf("literal %s: %v", text, err)
		}
	}
	for _, text := range []string{"a.example:80", "1a.example:80", "8.8.8.8:80", "a:80"} {
		if err := g.checkLiteral(text, false); err != nil {
			t.Errorf("literal %s: %v", text, err)
		}
	}
	wide := newGuard([]netip.Prefix{netip.MustParsePrefix("fe80::/10")}, time.Second)
	if err := wide.check("x:1", netip.MustParseAddr("fe80::5efe:169.254.169.254"), false); err == nil {
		t.Error("fe80::/10 is allowed, and with it metadata by a tunnel")
	}
}

// No form hides an address that is refused by itself, and every one is read.
func FuzzReadings(f *testing.F) {
	f.Add([]byte{169, 254, 169, 254}, []byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, 0})
	f.Add([]byte{127, 0, 0, 1}, []byte{0xfd})
	f.Fuzz(func(t *testing.T, v4, network []byte) {
		if len(v4) != 4 || v4[0] == 0 || v4[3] == 0 { // a form with zeros may be read as another
			return
		}
		var n [8]byte
		copy(n[:], network)
		want := netip.AddrFrom4([4]byte(v4))
		a, b, c, d := v4[0], v4[1], v4[2], v4[3]
		for _, form := range [][16]byte{
			{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d},
			{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d},
			{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d},
			{0, 0x64, 0xff, 0x9b, 0, 1, a, b, 0, c, d},
			{0, 0x64, 0xff, 0x9b, 0, 1, n[6], a, 0, b, c, d},
			{0, 0x64, 0xff, 0x9b, 0, 1, n[6], n[7], 0, a, b, c, d},
			{0, 0x64, 0xff, 0x9b, 0, 1, n[6], n[7], 0, n[4], n[5], n[2], a, b, c, d},
			{0x20, 2, a, b, c, d, n[6], n[7], n[0], n[1], n[2], n[3], n[4], n[5]},
			{0x20, 1, 0, 0, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], ^a, ^b, ^c, ^d},
			{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], 0, 0, 0x5e, 0xfe, a, b, c, d},
			{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], 2, 0, 0x5e, 0xfe, a, b, c, d},
		} {
			found := false
			for _, r := range readings(netip.AddrFrom16(form)) {
				found = found || r == want
			}
			if !found {
				t.Fatalf("%s is not read out of %s", want, netip.AddrFrom16(form))
			}
		}
	})
}
