package cluster

import (
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/identity/identitytest"
)

// tape records what goes out by UDP.
type tape struct {
	memberlist.NodeAwareTransport
	mu  sync.Mutex
	got [][]byte
}

func (r *tape) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	r.mu.Lock()
	r.got = append(r.got, append([]byte(nil), b...))
	r.mu.Unlock()
	return r.NodeAwareTransport.WriteToAddress(b, a)
}

func (r *tape) packets() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([][]byte(nil), r.got...)
}

// Packets that were recorded, and are played again after a scheduler has started again
// under another address, do not bring back who it was.
func TestReplayedPackets(t *testing.T) {
	w := newWorld(t)
	rec := &tape{}
	w.wrap = func(t memberlist.NodeAwareTransport) memberlist.NodeAwareTransport {
		rec.NodeAwareTransport = t
		return rec
	}
	b := w.start()
	w.wrap = nil
	a := w.start(b.GossipAddress())
	id := w.ids.Identity(t, identity.RoleScheduler).ID()
	c := w.startAs(id, "127.0.0.1:0", b.GossipAddress())
	w.agree(5*time.Second, a, b, c)
	before := c.GossipAddress()
	told := len(rec.packets())
	w.within(5*time.Second, "b has told of c", func() bool { return len(rec.packets()) > told+20 })
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	w.agree(5*time.Second, a, b)
	again := w.startAs(id, "127.0.0.1:0", a.GossipAddress())
	w.agree(5*time.Second, a, b, again)
	conn, err := net.Dial("udp", a.GossipAddress())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	logged, refused := a.logs.Len(), counted(t, a.dropped, "member")
	for range 20 {
		for _, p := range rec.packets() {
			_, _ = conn.Write(p)
		}
		a.mu.Lock()
		at := a.members[id].gossip
		a.mu.Unlock()
		if at == before {
			t.Fatal("the scheduler is said to be where it was before")
		}
	}
	w.within(5*time.Second, "what is said of its earlier life is refused", func() bool { return counted(t, a.dropped, "member") > refused })
	w.agree(5*time.Second, a, b, again)
	if n := a.logs.Len() - logged; n > 10+maxMembers {
		t.Errorf("%d lines were logged", n)
	}
}

// A scheduler whose clock was set back while it was away is let in again.
func TestClockSetBack(t *testing.T) {
	w := newWorld(t)
	a := w.start()
	id := w.ids.Identity(t, identity.RoleScheduler).ID()
	b := w.startAs(id, "127.0.0.1:0", a.GossipAddress())
	w.agree(5*time.Second, a, b)
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	w.agree(5*time.Second, a)
	w.behind = time.Hour
	again := w.startAs(id, "127.0.0.1:0", a.GossipAddress())
	t.Logf("let in after %s", w.agree(10*time.Second, a, again))
}

// However often something is said of members, few lines of it are logged.
func TestMembersAreLoggedSparingly(t *testing.T) {
	ids := identitytest.Cluster(t)
	core, logs := observer.New(zap.DebugLevel)
	c, err := New(Config{
		Self: Member{ID: ids.Identity(t, identity.RoleScheduler).ID(), Address: "a:1"}, Cluster: "c", Key: make([]byte, 32), Listen: "127.0.0.1:0",
		Address: net.IPv4(127, 0, 0, 1), Denials: ids.CA,
	}, zap.New(core), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	d := &delegate{c}
	n := &memberlist.Node{Name: "x", Addr: net.IPv4(127, 0, 0, 1), Port: 1, Meta: encodeMeta("host:1", 1)}
	for range 20 * maxMembers {
		d.NotifyJoin(n)
		d.NotifyUpdate(n)
		d.NotifyConflict(n, n)
		d.NotifyLeave(n)
	}
	if got := logs.Len(); got < 4 || got > maxMembers+10 {
		t.Errorf("%d lines are logged", got)
	}
}

// What is said of an earlier life of a scheduler is refused while it lives, and a moment
// longer; and one that is told that it has started later than it has sees to that.
func TestEarlierLifeIsRefused(t *testing.T) {
	ids := identitytest.Cluster(t)
	self, other := ids.Identity(t, identity.RoleScheduler).ID(), ids.Identity(t, identity.RoleScheduler).ID()
	c, err := New(Config{
		Self: Member{ID: self, Address: "a:1"}, Cluster: "c", Key: make([]byte, 32), Listen: "127.0.0.1:0",
		Address: net.IPv4(127, 0, 0, 1), Denials: ids.CA,
	}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &delegate{c}
	life := func(id string, started int64) *memberlist.Node {
		return &memberlist.Node{Name: id, Addr: net.IPv4(127, 0, 0, 1).To4(), Port: 1, Meta: encodeMeta("host:1", started)}
	}
	check := func(what string, started int64, refused bool) {
		t.Helper()
		if err := d.NotifyAlive(life(other, started)); (err != nil) != refused {
			t.Errorf("%s: %v", what, err)
		}
	}
	d.NotifyJoin(life(other, 5))
	check("an earlier life of one that lives", 4, true)
	check("its life", 5, false)
	check("a later one", 6, false)
	d.NotifyLeave(life(other, 5))
	check("an earlier life of one that is gone", 4, true)
	check("the next one", 6, false)
	gone := c.lost[other]
	gone.at = gone.at.Add(-rememberDead)
	c.lost[other] = gone
	check("an earlier clock, when nobody remembers", 4, false)

	mine := c.started
	if err := d.NotifyMerge([]*memberlist.Node{life(other, mine+9), life(self, mine), {Name: self}}); err != nil || c.mustRetell() {
		t.Errorf("it is to tell others what they know, %v", err)
	}
	if err := d.NotifyMerge([]*memberlist.Node{life(self, mine+9)}); err != nil || c.started != mine+10 || !c.mustRetell() || c.mustRetell() {
		t.Errorf("it says that it started at %d, and others remember %d; %v", c.started, mine+9, err)
	}
	if d.NotifyAlive(life(self, mine+20)) != nil || c.started != mine+21 {
		t.Errorf("it says that it started at %d, and others say %d", c.started, mine+20)
	}
}
