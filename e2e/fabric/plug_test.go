package fabric

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// flow has a send b bytes without end, until the test ends.
func flow(t *testing.T, a, b *Port) {
	t.Helper()
	l, err := b.Listen(t.Context(), "tcp", net.JoinHostPort(b.Addr().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	from, err := a.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	to, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		_, _ = io.Copy(io.Discard, to)
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for zeros := make([]byte, 64<<10); ; {
			if _, err := from.Write(zeros); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		from.Close()
		to.Close()
		<-done
		<-done
	})
}

// received is how many bytes a port has been sent.
func received(t *testing.T, p *Port) int64 {
	t.Helper()
	n, err := p.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return n.Received
}

// grows waits until a port has been sent more than n bytes, and tells whether it was.
func grows(t *testing.T, p *Port, n int64, limit time.Duration) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for received(t, p) <= n {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// No byte of a running connection reaches a port whose plug is pulled, in either
// direction, and the connection goes on when it is put in again.
func TestPulledPlugStopsBytes(t *testing.T) {
	f := newFabric(t)
	a, b := port(t, f, "a", Link{rate, rate}), port(t, f, "b", Link{rate, rate})
	flow(t, a, b)
	flow(t, b, a)
	for range 2 {
		for _, p := range []*Port{a, b} {
			if !grows(t, p, received(t, p)+100<<10, 10*time.Second) {
				t.Fatalf("plugged in, %s is sent nothing", p.Name())
			}
		}
		if err := b.SetUp(false); err != nil {
			t.Fatal(err)
		}
		// What had left b before waits at a's link, which may hold a megabyte at most.
		if grows(t, a, received(t, a)+1<<20, 300*time.Millisecond) {
			t.Errorf("with the plug of %s pulled, %s is sent more than waits for it", b.Name(), a.Name())
		}
		for _, p := range []*Port{b, a} {
			before := received(t, p)
			if grows(t, p, before, 300*time.Millisecond) {
				t.Errorf("with the plug of %s pulled, %s is sent %d bytes", b.Name(), p.Name(), received(t, p)-before)
			}
		}
		if err := b.SetUp(true); err != nil {
			t.Fatal(err)
		}
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
