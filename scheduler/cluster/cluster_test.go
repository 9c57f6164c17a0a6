package cluster

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/identity/identitytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a few schedulers of one CA on loopback, each with a directory of its own.
type world struct {
	t   *testing.T
	key []byte
	ids *identitytest.TestCluster
	// behind is how far the clocks of those that start from now on are behind.
	behind time.Duration
	// wrap, where it is set, stands before the network of those that start.
	wrap func(memberlist.NodeAwareTransport) memberlist.NodeAwareTransport
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ids := identitytest.Cluster(t)
	key, err := ids.CA.DeriveKey("gossip")
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, key: key, ids: ids}
}

// scheduler is a running member.
type scheduler struct {
	*Cluster
	ca   *identity.CA // whose list of denied nodes it keeps
	cut  *cut
	logs *observer.ObservedLogs
	stop func() error
}

// start runs a scheduler that joins others, and waits until it gossips.
func (w *world) start(join ...string) *scheduler {
	w.t.Helper()
	return w.startAs(w.ids.Identity(w.t, identity.RoleScheduler).ID(), "127.0.0.1:0", join...)
}

func (w *world) startAs(id, listen string, join ...string) *scheduler {
	w.t.Helper()
	s := &scheduler{ca: identitytest.Cluster(w.t).CA, cut: &cut{}}
	warnings, logs := observer.New(zap.WarnLevel)
	s.logs = logs
	var err error
	s.Cluster, err = New(Config{
		Self: Member{ID: id, Address: id[len(id)-8:] + ".example.com:65000"}, Cluster: w.ids.CA.Cluster(), Key: w.key,
		Listen: listen, Address: net.IPv4(127, 0, 0, 1), Join: join, Denials: s.ca,
	}, zap.New(warnings), prometheus.NewRegistry())
	if err != nil {
		w.t.Fatal(err)
	}
	s.wrap, s.dial = s.cut.wrap, s.cut.dial
	s.started -= int64(w.behind)
	if w.wrap != nil {
		s.wrap = w.wrap
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var stopped bool
	s.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	w.t.Cleanup(func() {
		if err := s.stop(); err != nil {
			w.t.Error(err)
		}
	})
	w.within(5*time.Second, "listen", func() bool { return s.GossipAddress() != "" })
	return s
}

// within waits until a condition holds, and returns how long it took.
func (w *world) within(limit time.Duration, what string, holds func() bool) time.Duration {
	w.t.Helper()
	start := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		if time.Since(start) > limit {
			w.t.Fatalf("not within %s: %s", limit, what)
		}
		<-tick.C
	}
	return time.Since(start)
}

// agree waits until each of the schedulers knows all of them and nobody else.
func (w *world) agree(limit time.Duration, all ...*scheduler) time.Duration {
	w.t.Helper()
	var want []Member
	for _, s := range all {
		want = append(want, s.cfg.Self)
	}
	slices.SortFunc(want, func(a, b Member) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return w.within(limit, "all know each other", func() bool {
		return !slices.ContainsFunc(all, func(s *scheduler) bool { return !slices.Equal(s.Members(), want) })
	})
}

// The order of start does not matter, one address is enough, and who leaves is gone
// at once.
func TestJoinAndLeave(t *testing.T) {
	w := newWorld(t)
	later := freeAddress(t)
	a := w.start(later)
	if got := a.Members(); len(got) != 1 || got[0] != a.cfg.Self {
		t.Fatalf("alone the members are %v", got)
	}
	b := w.startAs(w.ids.Identity(t, identity.RoleScheduler).ID(), later)
	w.agree(5*time.Second, a, b)
	c := w.start(later)
	t.Logf("a third is known to all after %s", w.agree(5*time.Second, a, b, c))
	for len(a.Changed()) > 0 {
		<-a.Changed()
	}
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	took := w.agree(time.Second, a, b)
	t.Logf("one that leaves is gone %s after it has ended", took)
	select {
	case <-a.Changed():
	default:
		t.Error("the change was not told")
	}
}

// A scheduler that dies is out of the set soon, and in it again when it comes back,
// also under another address.
func TestDeadSchedulerIsGone(t *testing.T) {
	w := newWorld(t)
	a := w.start()
	b, c := w.start(a.GossipAddress()), w.start(a.GossipAddress())
	w.agree(5*time.Second, a, b, c)
	c.cut.off.Store(true)
	took := w.agree(3*time.Second, a, b)
	t.Logf("the dead one is gone after %s", took)
	id := c.cfg.Self.ID
	_ = c.stop() // nobody hears it
	again := w.startAs(id, "127.0.0.1:0", a.GossipAddress())
	w.agree(5*time.Second, a, b, again)
}

// One that starts again is back soon, although it was told of nobody: the others look
// for it where it was.
func TestBackWithoutJoin(t *testing.T) {
	w := newWorld(t)
	listen := freeAddress(t)
	id := w.ids.Identity(t, identity.RoleScheduler).ID()
	a := w.startAs(id, listen)
	b := w.start(listen)
	w.agree(5*time.Second, a, b)
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	w.agree(time.Second, b)
	again := w.startAs(id, listen)
	t.Logf("it is back after %s", w.agree(4*seekSoon, again, b))
}

// Two sides that did not hear each other find each other again.
func TestPartitionHeals(t *testing.T) {
	w := newWorld(t)
	a := w.start()
	b := w.start(a.GossipAddress())
	w.agree(5*time.Second, a, b)
	a.cut.off.Store(true)
	w.within(5*time.Second, "each is alone", func() bool { return len(a.Members()) == 1 && len(b.Members()) == 1 })
	a.cut.off.Store(false)
	t.Logf("they are one again after %s", w.agree(2*seekEvery, a, b))
}

// Who has not the CA is not let in, and learns nothing.
func TestOtherKeyIsRefused(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	a := w.start()
	other.ids = w.ids // the same cluster by name
	b := other.start(a.GossipAddress())
	third := w.start(a.GossipAddress())
	w.agree(5*time.Second, a, third)
	w.within(5*time.Second, "the stranger has tried", func() bool {
		return b.logs.FilterMessageSnippet("no other scheduler can be reached").Len() > 0
	})
	if got := b.Members(); len(got) != 1 {
		t.Errorf("the stranger knows %v", got)
	}
	w.agree(time.Second, a, third)
}

// What a command says of a node at one scheduler holds at all, also at one that joins
// later, and so does taking it back elsewhere.
func TestDenialsSpread(t *testing.T) {
	w := newWorld(t)
	a := w.start()
	b := w.start(a.GossipAddress())
	w.agree(5*time.Second, a, b)
	node := w.ids.Identity(t, identity.RoleNode).ID()
	if err := a.ca.Deny(node); err != nil {
		t.Fatal(err)
	}
	denied := func(s *scheduler) bool {
		is, err := s.ca.Denied(node)
		return err == nil && is
	}
	t.Logf("denied at the other after %s", w.within(5*time.Second, "the other denies the node", func() bool { return denied(b) }))
	c := w.start(b.GossipAddress())
	w.within(5*time.Second, "one that joined later denies the node", func() bool { return denied(c) })
	if err := c.ca.Allow(node); err != nil {
		t.Fatal(err)
	}
	w.within(5*time.Second, "all allow the node", func() bool { return !denied(a) && !denied(b) })
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A scheduler whose --join names itself serves alone, and says so.
func TestJoiningOneselfIsTold(t *testing.T) {
	w := newWorld(t)
	listen := w.freeAddress()
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		t.Fatal(err)
	}
	// 127.0.0.2 is this machine too, though not the address that it gossips under.
	for name, row := range map[string]struct{ listen, join string }{
		"by its address": {listen, listen},
		"by another one": {":" + port, "127.0.0.2:" + port},
	} {
		t.Run(name, func(t *testing.T) {
			s := w.startAs(w.ids.Identity(t, identity.RoleScheduler).ID(), row.listen, row.join)
			w.within(10*time.Second, "it is told", func() bool {
				return s.logs.FilterMessageSnippet("to this scheduler itself").Len() == 1
			})
			if err := s.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

func (w *world) freeAddress() string {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
