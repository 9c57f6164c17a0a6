package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/identity/identitytest"
)

func FuzzDecodeStatements(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{wireVersion})
	f.Add(encodeStatements([]identity.Statement{{ID: "a", Denied: true, At: time.Unix(1, 2)}, {ID: "", At: time.Unix(0, -1)}}))
	f.Add([]byte{wireVersion, 1, 0, 0, 0, 0, 0, 0, 0, 0, 255, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeStatements(b)
		if err != nil {
			return
		}
		if back := encodeStatements(got); !bytes.Equal(back, b) {
			t.Errorf("%x is read as %v, which is %x", b, got, back)
		}
	})
}

func FuzzDecodeMeta(f *testing.F) {
	for _, s := range []string{"", "a:1\n1\n", "[::1]:65000\n2\nmore", "a:0\n1", "0.0.0.0:1\n1", "a b:1\n1", ":1\n1", "a:1", "a:1\n-1", "a:1\n9223372036854775807"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, meta []byte) {
		address, started, err := decodeMeta(meta)
		if err != nil {
			return
		}
		if again, at, err := decodeMeta(encodeMeta(address, started)); err != nil || again != address || at != started {
			t.Errorf("%q of %d is read as %q of %d, %v", address, started, again, at, err)
		}
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" || len(address) > maxAddress || strings.ContainsAny(address, " \n\x00/@") {
			t.Errorf("%q is taken for an address: %q", meta, address)
		}
	})
}

func TestStatementsAreBoundedOnTheWire(t *testing.T) {
	one := encodeStatements([]identity.Statement{{ID: "x", At: time.Unix(1, 0)}})[1:]
	most := append([]byte{wireVersion}, bytes.Repeat(one, identity.MaxStatements)...)
	if got, err := decodeStatements(most); err != nil || len(got) != identity.MaxStatements {
		t.Errorf("%d statements, %v", len(got), err)
	}
	if got, err := decodeStatements(append(most, one...)); err == nil {
		t.Errorf("%d statements were taken", len(got))
	}
	if size := len(encodeStatements(slices.Repeat([]identity.Statement{{ID: strings.Repeat("x", 52)}}, identity.MaxStatements))); size > maxStreamBytes/2 {
		t.Errorf("all statements take %d bytes of a stream of %d", size, maxStreamBytes)
	}
}

// Only what looks like a scheduler is taken into the set, and not too many of it.
func TestAdmissible(t *testing.T) {
	ids := identitytest.Cluster(t)
	id := ids.Identity(t, identity.RoleScheduler).ID()
	c, err := New(Config{
		Self: Member{ID: id, Address: "a:1"}, Cluster: "c", Key: make([]byte, 32), Listen: "127.0.0.1:0",
		Address: net.IPv4(127, 0, 0, 1), Denials: ids.CA,
	}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &delegate{c}
	good := memberlist.Node{Name: ids.Identity(t, identity.RoleScheduler).ID(), Addr: net.IPv4(127, 0, 0, 1), Port: 1, Meta: []byte("host:65000\n7\nof a later release")}
	if err := d.NotifyAlive(&good); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*memberlist.Node){
		"name": func(n *memberlist.Node) { n.Name = "boss" }, "no name": func(n *memberlist.Node) { n.Name = "" },
		"no meta": func(n *memberlist.Node) { n.Meta = nil }, "no port": func(n *memberlist.Node) { n.Meta = []byte("host\n1") }, "no start": func(n *memberlist.Node) { n.Meta = []byte("host:1\n") },
		"long": func(n *memberlist.Node) { n.Meta = []byte(strings.Repeat("h", 500) + ":1\n1") },
		"any":  func(n *memberlist.Node) { n.Meta = []byte("[::]:1\n1") }, "no address": func(n *memberlist.Node) { n.Addr = nil },
		"odd address": func(n *memberlist.Node) { n.Addr = net.IP{1} }, "no gossip port": func(n *memberlist.Node) { n.Port = 0 },
	} {
		bad := good
		change(&bad)
		if err := d.NotifyAlive(&bad); err == nil {
			t.Errorf("%s: %+v was taken", name, bad)
		}
		d.NotifyJoin(&memberlist.Node{Name: bad.Name, Meta: []byte("\x00")}) // changes nothing
	}
	if n := len(c.Members()); n != 1 {
		t.Fatalf("%d members", n)
	}
	for i := range maxMembers - 1 {
		d.NotifyJoin(&memberlist.Node{Name: fmt.Sprint(i), Meta: []byte("host:1\n1")})
	}
	if err := d.NotifyAlive(&good); err == nil {
		t.Errorf("one more than %d schedulers was taken", maxMembers)
	}
	known := good
	known.Name = "0"
	for i := range 3 * maxMembers {
		known.Port = uint16(i + 1)
		known.Name = fmt.Sprint(i)
		d.NotifyLeave(&known)
	}
	if len(c.lost) > maxMembers {
		t.Errorf("%d lost ones are remembered", len(c.lost))
	}
	d.NotifyMsg(nil)
	for range 2 * cap(c.heard) {
		d.MergeRemoteState(encodeStatements([]identity.Statement{{ID: id, Denied: true, At: time.Unix(1e9, 0)}}), false)
	}
	d.NotifyMsg([]byte("\xff"))
	if got := counted(t, c.dropped, "statements"); got < 1+float64(cap(c.heard)) {
		t.Errorf("%v messages were dropped", got)
	}
}

func counted(t *testing.T, v *prometheus.CounterVec, reason string) float64 {
	t.Helper()
	var m dto.Metric
	if err := v.WithLabelValues(reason).Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// One that has the key and sends without end takes bounded memory.
func TestStreamIsBounded(t *testing.T) {
	w := newWorld(t)
	a := w.start()
	conn, err := net.Dial("tcp", a.GossipAddress())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), streamLimit)
	defer cancel()
	if err := prove(ctx, conn, w.key); err != nil {
		t.Fatal(err)
	}
	// An encrypted message of 4 GiB is announced.
	label := "damselfly " + w.ids.CA.Cluster()
	_, _ = conn.Write(append([]byte{244, byte(len(label))}, label+"\x0a\xff\xff\xff\xff"...))
	_ = conn.SetReadDeadline(time.Now().Add(2 * streamLimit))
	if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("the connection is kept: %v", err)
	}
	w.agree(10*time.Second, a, w.start(a.GossipAddress()))
}

// What is tried again: names that have many addresses, and who was lost; not who is
// there.
func TestMissing(t *testing.T) {
	ids := identitytest.Cluster(t)
	c, err := New(Config{
		Self: Member{ID: ids.Identity(t, identity.RoleScheduler).ID(), Address: "a:1"}, Cluster: "c", Key: make([]byte, 32), Listen: "127.0.0.1:7",
		Address: net.IPv4(127, 0, 0, 1), Denials: ids.CA, Join: []string{"127.0.0.1:7", "127.0.0.1:8", "[::1]:9", "nobody.invalid:1"},
	}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.gossip = "127.0.0.1:7"
	c.members["other"] = peer{gossip: "127.0.0.1:8"}
	c.lost["gone"] = loss{gossip: "127.0.0.1:10", at: time.Now()}
	c.lost["long gone"] = loss{gossip: "127.0.0.1:11", at: time.Now().Add(-forgetAfter - time.Second)}
	addresses, err := c.resolve(t.Context())
	if err == nil || !strings.Contains(err.Error(), "nobody.invalid") {
		t.Errorf("a name without address: %v", err)
	}
	if got, want := c.missing(addresses), []string{"127.0.0.1:10", "[::1]:9"}; !slices.Equal(got, want) {
		t.Errorf("tried are %v, want %v", got, want)
	}
}
