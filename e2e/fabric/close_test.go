package fabric

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// open lists what this process has open that belongs to a network: netlink sockets and
// namespaces.
func open(t *testing.T) (files []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err == nil && target != "" && (target[0] == 's' || target[0] == 'n') {
			files = append(files, target)
		}
	}
	return files
}

// A closed network has left nothing open and nothing on the machine, and what is asked
// of it afterwards fails: it does not reach the namespace of the caller.
func TestClose(t *testing.T) {
	before := open(t)
	f := newFabric(t)
	p := port(t, f, "p", Link{rate, rate})
	r, err := f.AddRack("r", Link{rate, rate})
	if err != nil {
		t.Fatal(err)
	}
	port(t, r, "q", Link{rate, rate})
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := open(t); len(after) > len(before) {
		t.Errorf("open after Close: %v, before New: %v", after, before)
	}
	late := map[string]error{"SetUp": p.SetUp(false)}
	_, late["Counters"] = p.Counters()
	_, late["Rack.Counters"] = r.Counters()
	_, late["Add"] = f.Add("late", Link{})
	_, late["Rack.Add"] = r.Add("later", Link{})
	_, late["AddRack"] = f.AddRack("late", Link{})
	_, late["Dial"] = p.Dial(t.Context(), "tcp", "127.0.0.1:1")
	_, late["Listen"] = p.Listen(t.Context(), "tcp", "127.0.0.1:0")
	for what, err := range late {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v, want %v", what, err, net.ErrClosed)
		}
	}
	for _, name := range []string{"p1", "p2", "up1", "down1", "up2", "down2"} {
		if _, err := net.InterfaceByName(name); err == nil {
			t.Errorf("the machine has our interface %s", name)
		}
	}
}
