package fabric

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const rate = Rate(100e6)

func newFabric(t *testing.T) *Fabric {
	t.Helper()
	f, err := New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if left := ours(t, f.prefix); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return f
}

// ours lists the namespaces whose names begin so.
func ours(t *testing.T, prefix string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(named)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names
}

type adder interface {
	Add(name string, l Link) (*Port, error)
}

func port(t *testing.T, to adder, name string, l Link) *Port {
	t.Helper()
	p, err := to.Add(name, l)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// share is what calibrating finds, as a part of the rate on the wire.
func share(t *testing.T, from, to *Port) float64 {
	t.Helper()
	return shares(t, [2]*Port{from, to})
}

// shares is what connections from one port to another find together, at one time.
func shares(t *testing.T, pairs ...[2]*Port) (sum float64) {
	t.Helper()
	got, errs := make([]float64, len(pairs)), make([]error, len(pairs))
	var all sync.WaitGroup
	for i, pair := range pairs {
		all.Go(func() { got[i], errs[i] = Calibrate(t.Context(), pair[0], pair[1]) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, n := range got {
		sum += n * 8 / float64(rate)
	}
	return sum
}

// Each direction of a link carries its rate, less what headers cost.
func TestLinksAreShapedBothWays(t *testing.T) {
	f := newFabric(t)
	wide := port(t, f, "wide", Link{})
	for name, l := range map[string]Link{"up": {Up: rate}, "down": {Down: rate}} {
		p := port(t, f, name, l)
		from, to := p, wide
		if name == "down" {
			from, to = wide, p
		}
		if s := share(t, from, to); s < 0.90 || s > 0.97 {
			t.Errorf("%s at %s carries %.2f of it", name, rate, s)
		}
		// The kernel's large packets stay whole: cut to the MTU they cost five times the CPU.
		if size := packet(t, p, name); size < 4*mtu {
			t.Errorf("%s at %s has packets of %d bytes", name, rate, size)
		}
		if s := share(t, to, from); s < 3 {
			t.Errorf("the other direction, which is not shaped, carries only %.2f times %s", s, rate)
		}
	}
}

// packet is the mean size of a port's packets in one direction.
func packet(t *testing.T, p *Port, direction string) uint64 {
	t.Helper()
	link, err := p.at.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	n := link.Attrs().Statistics
	if direction == "up" {
		return n.TxBytes / n.TxPackets
	}
	return n.RxBytes / n.RxPackets
}

// Two connections share a port's link, which carries no more for that.
func TestConnectionsShareALink(t *testing.T) {
	f := newFabric(t)
	from := port(t, f, "from", Link{rate, rate})
	a, b := port(t, f, "a", Link{}), port(t, f, "b", Link{})
	if both := shares(t, [2]*Port{from, a}, [2]*Port{from, b}); both < 0.85 || both > 1 {
		t.Errorf("two connections together get %.2f of one link", both)
	}
}

// Under a full link a small exchange is not held up for long.
func TestDelayUnderLoad(t *testing.T) {
	f := newFabric(t)
	a, b := port(t, f, "a", Link{rate, rate}), port(t, f, "b", Link{rate, rate})
	near, far, err := connect(t.Context(), a, b)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	defer near.Close()
	go func() { _, _ = io.Copy(far, far) }()
	var full float64
	done := make(chan error, 1)
	go func() {
		var err error
		full, err = Calibrate(t.Context(), a, b)
		done <- err
	}()
	var took []time.Duration
	for one := make([]byte, 1); ; {
		select {
		case err := <-done:
			if err != nil || full*8 < 0.85*float64(rate) {
				t.Errorf("the link carried %.0f bytes a second: %v", full, err)
			}
			slices.Sort(took)
			if most := took[len(took)*9/10]; most > 60*time.Millisecond {
				t.Errorf("one of ten times a byte there and back took %s while the link was full", most)
			}
			return
		default:
		}
		started := time.Now()
		if _, err := near.Write(one); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(near, one); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(started))
	}
}

// A rack's ports share its link to the others, and not that among themselves.
func TestRackSharesItsUplink(t *testing.T) {
	f := newFabric(t)
	r, err := f.AddRack("r", Link{rate, rate})
	if err != nil {
		t.Fatal(err)
	}
	out, a, b := port(t, f, "out", Link{}), port(t, r, "a", Link{}), port(t, r, "b", Link{})
	if both := shares(t, [2]*Port{a, out}, [2]*Port{b, out}); both < 0.85 || both > 1 {
		t.Errorf("two ports of a rack together get %.2f of its uplink", both)
	}
	n, err := r.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(2 * float64(rate) / 8); n.Sent < want {
		t.Errorf("%d bytes left the rack, %d at least did", n.Sent, want)
	}
	if s := share(t, a, b); s < 3 {
		t.Errorf("within the rack there is only %.2f times %s", s, rate)
	}
}

func TestRates(t *testing.T) {
	for text, want := range map[string]Rate{"100mbit": 100e6, "2.5gbit": 2500e6, "1GBIT": 1e9, "64kbit": 64e3, "7bit": 7} {
		got, err := ParseRate(text)
		if err != nil || got != want {
			t.Errorf("%s is %d, %v", text, got, err)
		}
		if again, err := ParseRate(got.String()); err != nil || again != want {
			t.Errorf("%s is written as %s", text, got)
		}
	}
	for _, text := range []string{"", "100", "mbit", "-1mbit", "0mbit", "100mb", "1e30gbit", "nanmbit"} {
		if got, err := ParseRate(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
}
