package server

import "testing"

func TestMachineOf(t *testing.T) {
	for remote, want := range map[string]string{
		"10.1.2.3": "10.1.2.3", "::ffff:10.1.2.3": "10.1.2.3", "127.0.0.1": "", "127.9.9.9": "", "::1": "", "": "", "bufconn": "",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "2001:db8:1:2::9": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := machineOf(remote); got != want {
			t.Errorf("machineOf(%q) = %q, want %q", remote, got, want)
		}
	}
}
