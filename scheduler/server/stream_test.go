package server

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// A node's client takes messages of 4 MiB: links of many leases must not travel
// in one.
func TestMessagesStayBelowWhatClientsTake(t *testing.T) {
	var by senders
	defer by.close()
	var mu sync.Mutex
	got, sent := 0, make(chan struct{}, 100)
	st := newStream("n", &by, func(m *damselflyv1.SchedulerMessage) error {
		if size := proto.Size(m); size > 2<<20 {
			t.Errorf("a message of %d bytes", size)
		}
		mu.Lock()
		defer mu.Unlock()
		got += len(m.GetDecisions())
		sent <- struct{}{}
		return nil
	})
	var leases []item
	for range 40 {
		leases = append(leases, item{core: core.Decision{Kind: core.Lease, Digest: blob.FromBytes(nil), Links: make([]byte, 300<<10)}})
	}
	if !st.put(leases) {
		t.Fatal("the outbox is full too soon")
	}
	for {
		<-sent
		mu.Lock()
		all := got == 40
		mu.Unlock()
		if all {
			return
		}
	}
}

// One message carries what a round decided for a node; what comes while it is
// being sent goes together into the next.
func TestDecisionsTravelTogether(t *testing.T) {
	var by senders
	defer by.close()
	sizes, goOn := make(chan int), make(chan struct{})
	st := newStream("n", &by, func(m *damselflyv1.SchedulerMessage) error {
		sizes <- len(m.GetDecisions())
		<-goOn
		return nil
	})
	some := func(n int) []item { return make([]item, n) }
	st.put(some(3))
	if n := <-sizes; n != 3 {
		t.Errorf("the first message has %d decisions, want 3", n)
	}
	st.put(some(2))
	st.put(some(4))
	goOn <- struct{}{}
	if n := <-sizes; n != 6 {
		t.Errorf("the second message has %d decisions, want 6", n)
	}
	goOn <- struct{}{}
}

func TestFullOutboxIsTold(t *testing.T) {
	s, err := New(Config{Caller: nobody}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var by senders
	defer by.close()
	stuck := make(chan struct{})
	defer close(stuck)
	a := &attendance{stream: newStream("n", &by, func(*damselflyv1.SchedulerMessage) error {
		<-stuck
		return errors.New("the stream is over")
	})}
	for range 2*outboxLimit + 2 {
		s.tell(a, item{})
		s.sendOut()
	}
	if st := status.Convert(a.why()); st.Code() != codes.ResourceExhausted {
		t.Errorf("the stream ended with %v", st)
	}
}

// A node that talks faster than the state's owner listens fills its own room,
// not the inbox of all.
func TestTalkerIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{Caller: nobody}, zap.NewNop(), nil)
		if err != nil {
			t.Fatal(err)
		}
		st := newStream("n", nil, nil)
		var accepted atomic.Int32
		go func() {
			for s.submit(st, envelope{}) {
				accepted.Add(1)
			}
		}()
		for range 3 {
			synctest.Wait()
			if n := len(s.inbox.take(nil)); n != roomLimit || st.waiting.Load() != roomLimit {
				t.Fatalf("%d messages wait, want %d", n, roomLimit)
			}
			for range roomLimit {
				st.taken()
			}
		}
		synctest.Wait()
		st.end(status.New(codes.Aborted, "over"))
		synctest.Wait()
		if n := accepted.Load(); n != 4*roomLimit {
			t.Errorf("%d messages were taken, want %d", n, 4*roomLimit)
		}
	})
}

func TestMetricsTellWhoAttends(t *testing.T) {
	reg := prometheus.NewRegistry()
	s, err := New(Config{Caller: nobody, Seed: 1}, zap.NewNop(), reg)
	if err != nil {
		t.Fatal(err)
	}
	s.apply(&core.Attend{Node: "n1"})
	s.apply(&core.Attend{Node: "s1", Seed: true})
	s.metrics.show(s.state.Stats())
	got := map[string]float64{}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "," + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for name, want := range map[string]float64{
		"damselfly_peers,node": 1, "damselfly_peers,seed": 1, "damselfly_peers,quarantined": 0,
		"damselfly_events_total,attend": 2, "damselfly_schedule_duration_seconds": 2,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", name, v, ok, want)
		}
	}
	if _, err := New(Config{Caller: nobody}, zap.NewNop(), reg); err == nil {
		t.Error("a second server takes the same registry")
	}
}

func TestServerNeedsToKnowItsCallers(t *testing.T) {
	if _, err := New(Config{}, zap.NewNop(), nil); err == nil {
		t.Error("a server without Caller")
	}
}

func nobody(context.Context) (id, role string, ok bool) { return "", "", false }
