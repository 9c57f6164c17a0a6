package server

import (
	"context"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// A node's client takes messages of 4 MiB: links of many leases must not travel
// in one.
func TestMessagesStayBelowWhatClientsTake(t *testing.T) {
	st := newStream("n")
	lease := func(links int) *damselflyv1.Decision {
		return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Lease{Lease: &damselflyv1.Lease{Links: make([]byte, links)}}}
	}
	for range 40 {
		if !st.put(lease(300 << 10)) {
			t.Fatal("the outbox is full too soon")
		}
	}
	got := 0
	for ds := st.take(); len(ds) > 0; ds = st.take() {
		size := 0
		for _, d := range ds {
			size += len(d.GetLease().GetLinks())
		}
		if size > 2<<20 {
			t.Errorf("a message of %d bytes", size)
		}
		got += len(ds)
	}
	if got != 40 {
		t.Errorf("%d of 40 decisions were sent", got)
	}
}

func TestFullOutboxIsTold(t *testing.T) {
	a := attendance{stream: newStream("n")}
	for range outboxLimit + 1 {
		a.tell(&damselflyv1.Decision{})
	}
	if st := status.Convert(a.why()); st.Code() != codes.ResourceExhausted {
		t.Errorf("the stream ended with %v", st)
	}
}

// A node that talks faster than the state's owner listens fills its own room,
// not the inbox of all.
func TestTalkerIsHeldBack(t *testing.T) {
	s, err := New(Config{Caller: nobody}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	st, done := newStream("n"), make(chan struct{})
	accepted := 0
	go func() {
		defer close(done)
		for s.submit(st, envelope{from: st}) {
			accepted++
		}
	}()
	for range roomLimit {
		<-s.inbox // what it could say; its room is not given back
	}
	st.end(status.New(codes.Aborted, "over"))
	<-done
	if accepted != roomLimit || len(s.inbox) != 0 {
		t.Errorf("%d messages were taken and %d wait, want %d and none", accepted, len(s.inbox), roomLimit)
	}
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
