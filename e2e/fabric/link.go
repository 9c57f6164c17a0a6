package fabric

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// Rate is bits a second on the wire: TCP's payload is about 6 % less.
type Rate int64

// units are those of tc(8).
func units() map[string]Rate {
	return map[string]Rate{"gbit": 1e9, "mbit": 1e6, "kbit": 1e3, "bit": 1}
}

// ParseRate reads a rate as tc(8) writes it: 100mbit, 2.5gbit.
func ParseRate(s string) (Rate, error) {
	number := strings.TrimRight(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz")
	unit, ok := units()[strings.ToLower(s[len(number):])]
	n, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || n <= 0 || n*float64(unit) > 1e12 {
		return 0, fmt.Errorf("rate %q: want a number and kbit, mbit or gbit, as in 100mbit", s)
	}
	return Rate(n * float64(unit)), nil
}

// String is the rate as ParseRate reads it.
func (r Rate) String() string {
	for _, unit := range []string{"gbit", "mbit", "kbit"} {
		if u := units()[unit]; r >= u && r%(u/1000) == 0 {
			return strconv.FormatFloat(float64(r)/float64(u), 'f', -1, 64) + unit
		}
	}
	return strconv.FormatInt(int64(r), 10) + "bit"
}

// Link says how fast a port is: Up is what it sends, Down what it is sent. 0 is not
// shaped.
type Link struct{ Up, Down Rate }

const mtu = 1500

// What a shaped link holds back at most: what it may send at once after a pause, and
// what waits in its queue. A burst holds two of the kernel's packets of 64 KiB, which
// htb keeps whole: tbf(8) would cut them, at five times the CPU. A queue of bytes bounds
// the delay under load, where htb's own counts packets of whatever size.
const (
	burst      = 128 << 10
	queueTime  = 0.03 // seconds at the rate
	queueLeast = 128 << 10
)

// queueLength is the length of a device's queue, in packets, of which a bfifo makes
// its limit in bytes (packets times MTU and Ethernet header).
func queueLength(r Rate) int {
	if r == 0 {
		return 1000
	}
	return max(queueLeast, int(float64(r)/8*queueTime)) / (mtu + 14)
}

// shape has a device send at no more than a rate; 0 leaves it alone.
func (s *space) shape(link netlink.Link, r Rate) error {
	if r == 0 {
		return nil
	}
	index := link.Attrs().Index
	root := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT})
	root.Defcls = 1
	class := netlink.NewHtbClass(
		netlink.ClassAttrs{LinkIndex: index, Parent: netlink.MakeHandle(1, 0), Handle: netlink.MakeHandle(1, 1)},
		netlink.HtbClassAttrs{Rate: uint64(r), Ceil: uint64(r), Buffer: burst, Cbuffer: burst, Quantum: 60000})
	leaf := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(2, 0), Parent: netlink.MakeHandle(1, 1)},
		QdiscType:  "bfifo",
	}
	if err := errors.Join(s.QdiscAdd(root), s.ClassAdd(class), s.QdiscAdd(leaf)); err != nil {
		return fmt.Errorf("shape %s to %s: %w", link.Attrs().Name, r, err)
	}
	return nil
}
