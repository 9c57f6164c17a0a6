package fabric

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
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
	got, err := Calibrate(t.Context(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	return got * 8 / float64(rate)
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
		if s := share(t, to, from); s < 3 {
			t.Errorf("the other direction, which is not shaped, carries only %.2f times %s", s, rate)
		}
	}
}

// Under a full link a small exchange is not held up for long.
func TestDelayUnderLoad(t *testing.T) {
	f := newFabric(t)
	a, b := port(t, f, "a", Link{rate, rate}), port(t, f, "b", Link{rate, rate})
	l, err := b.Listen(t.Context(), "tcp", b.Addr().String()+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn) }()
		}
	}()
	conn, err := a.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = Calibrate(ctx, a, b)
	}()
	var worst time.Duration
	for one := make([]byte, 1); ; {
		started := time.Now()
		if _, err := conn.Write(one); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, one); err != nil {
			t.Fatal(err)
		}
		worst = max(worst, time.Since(started))
		select {
		case <-done:
			cancel()
			t.Logf("at most %s", worst)
			if worst > 100*time.Millisecond {
				t.Errorf("a byte there and back took %s while the link was full", worst)
			}
			return
		default:
		}
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
	shares := make(chan float64, 2)
	for _, p := range []*Port{a, b} {
		go func() { shares <- share(t, p, out) }()
	}
	if both := <-shares + <-shares; both < 0.85 || both > 1 {
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

// A port whose plug is pulled hears nothing, and everything when it is put in again.
func TestPulledPlug(t *testing.T) {
	f := newFabric(t)
	a, b := port(t, f, "a", Link{}), port(t, f, "b", Link{})
	l, err := b.Listen(t.Context(), "tcp", b.Addr().String()+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	reach := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		conn, err := a.Dial(ctx, "tcp", l.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err
	}
	for _, up := range []bool{true, false, true} {
		if err := b.SetUp(up); err != nil {
			t.Fatal(err)
		}
		limit := 5 * time.Second // ARP asks again each second
		if !up {
			limit = 500 * time.Millisecond
		}
		if err := reach(limit); (err == nil) != up {
			t.Errorf("plugged in: %v, reached: %v", up, err)
		}
	}
}

// envChild has this program make a network and die without closing it.
const envChild = "FABRIC_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(envChild) == "" {
		os.Exit(m.Run())
	}
	f, err := New(context.Background())
	if err == nil {
		_, err = f.Add("a", Link{rate, rate})
	}
	if err != nil {
		os.Exit(1)
	}
	os.Stdout.WriteString(f.prefix)
}

// Clean removes what a dead process left, and nothing of a living one.
func TestClean(t *testing.T) {
	f := newFabric(t)
	mine := port(t, f, "mine", Link{})
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), envChild+"=1")
	out, err := child.Output()
	if err != nil {
		t.Fatal(err)
	}
	left := ours(t, string(out))
	if len(left) != 2 {
		t.Fatalf("the child left %v, want two namespaces", left)
	}
	removed, err := Clean()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range left {
		if !strings.Contains(strings.Join(removed, " "), name) {
			t.Errorf("%s was not removed", name)
		}
	}
	if left := ours(t, string(out)); len(left) > 0 {
		t.Errorf("of the child there is still %v", left)
	}
	l, err := mine.Listen(t.Context(), "tcp", net.JoinHostPort(mine.Addr().String(), "0"))
	if err != nil {
		t.Fatalf("the living network was harmed: %v", err)
	}
	l.Close()
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
