package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/ring"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is the schedulers that a set connects to, by address.
type cluster struct {
	mu   sync.Mutex
	all  map[string]*scheduler
	dead map[string]bool
}

// scheduler is the other end of the streams that a set opens.
type scheduler struct {
	id, address string
	streams     chan *stream
}

func newCluster(ids ...string) *cluster {
	c := &cluster{all: map[string]*scheduler{}, dead: map[string]bool{}}
	for _, id := range ids {
		c.all[id+":1"] = &scheduler{id: id, address: id + ":1", streams: make(chan *stream)}
	}
	return c
}

func (c *cluster) at(id string) *scheduler { return c.all[id+":1"] }

func (c *cluster) kill(id string, dead bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead[id] = dead
}

// Connect implements control.Connector.
func (c *cluster) Connect(to control.Holder) (control.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.all[to.Address]
	switch {
	case s == nil || c.dead[s.id]:
		return nil, errors.New("connection refused")
	case to.ID != "" && to.ID != s.id:
		return nil, fmt.Errorf("%s answers where %s was named", s.id, to.ID)
	}
	return &conn{s}, nil
}

type conn struct{ *scheduler }

func (c *conn) ID(context.Context) string { return c.id }
func (c *conn) Close() error              { return nil }

type stream struct {
	grpc.BidiStreamingClient[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage]
	ctx  context.Context
	up   chan *damselflyv1.NodeMessage
	down chan *damselflyv1.SchedulerMessage
}

func (s *scheduler) Attend(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage], error) {
	st := &stream{ctx: ctx, up: make(chan *damselflyv1.NodeMessage), down: make(chan *damselflyv1.SchedulerMessage)}
	select {
	case s.streams <- st:
		return st, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) Send(m *damselflyv1.NodeMessage) error {
	select {
	case s.up <- m:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (s *stream) Recv() (*damselflyv1.SchedulerMessage, error) {
	select {
	case m, ok := <-s.down:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func (s *stream) decide(ds ...*damselflyv1.Decision) {
	select {
	case s.down <- &damselflyv1.SchedulerMessage{Decisions: ds}:
	case <-s.ctx.Done():
	}
}

var welcome = &damselflyv1.Decision{Decision: &damselflyv1.Decision_Welcome{Welcome: &damselflyv1.Welcome{}}}

// who is the word that these are the schedulers.
func who(ids ...string) *damselflyv1.Decision {
	m := &damselflyv1.Schedulers{}
	for _, id := range ids {
		m.Members = append(m.Members, &damselflyv1.Holder{Node: id, Address: id + ":1"})
	}
	return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Schedulers{Schedulers: m}}
}

func lease(id uint64, d blob.Digest) *damselflyv1.Decision {
	return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Lease{Lease: &damselflyv1.Lease{
		Id: id, Digest: d.String(), Size: 1, Run: &damselflyv1.Run{Count: 1}, Holder: &damselflyv1.Holder{Node: "n", Address: "n:1"},
	}}}
}

func cancel(id uint64) *damselflyv1.Decision {
	return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Cancel{Cancel: &damselflyv1.Cancel{Leases: []uint64{id}}}}
}

type recorder struct {
	mu  sync.Mutex
	got []control.Decision
	on  func(control.Decision)
}

func (r *recorder) Handle(d control.Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, d)
	if r.on != nil {
		r.on(d)
	}
}

func (r *recorder) take() []control.Decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.got
	r.got = nil
	return got
}

// of gives the decisions of one kind that came since the last call.
func of[D control.Decision](r *recorder) []D {
	var out []D
	for _, d := range r.take() {
		if d, ok := d.(D); ok {
			out = append(out, d)
		}
	}
	return out
}

func busily() bool { return true }

func idly() bool { return false }

func newSet(t *testing.T, c *cluster, waiting func() bool, starts ...string) (*control.Set, *recorder) {
	t.Helper()
	return newSetOf(t, c, control.Config{Schedulers: starts, Waiting: waiting})
}

// newSetOf is newSet with settings that the caller chooses.
func newSetOf(t *testing.T, c *cluster, cfg control.Config) (*control.Set, *recorder) {
	t.Helper()
	r := &recorder{}
	cfg.Attend = &damselflyv1.Attend{Address: "127.0.0.1:1", UploadSlots: 2, DownloadSlots: 2}
	if cfg.Waiting == nil {
		cfg.Waiting = idly
	}
	s := control.New(cfg, c, zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, r) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	return s, r
}

// attended is a stream whose events are collected, and whose pings are answered.
type attended struct {
	*stream
	mu     sync.Mutex
	events []*damselflyv1.NodeEvent
	delay  time.Duration // of pongs
}

// late has pongs come after a while.
func (a *attended) late(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.delay = d
}

// decide sends decisions and returns when they have had their effects.
func (a *attended) decide(ds ...*damselflyv1.Decision) {
	a.stream.decide(ds...)
	synctest.Wait()
}

// accept welcomes the next stream and collects what comes on it.
func (s *scheduler) accept(t *testing.T, also ...*damselflyv1.Decision) *attended {
	t.Helper()
	a := &attended{stream: <-s.streams}
	if hello := <-a.up; hello.GetEvents()[0].GetAttend().GetProtocol() != control.Protocol {
		t.Fatalf("the first event is %v", hello)
	}
	a.decide(append([]*damselflyv1.Decision{welcome}, also...)...)
	go a.collect()
	return a
}

func (a *attended) collect() {
	for {
		select {
		case m := <-a.up:
			for _, e := range m.GetEvents() {
				a.take(e)
			}
		case <-a.ctx.Done():
			return
		}
	}
}

func (a *attended) take(e *damselflyv1.NodeEvent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := e.GetPing(); p == nil {
		a.events = append(a.events, e)
	} else {
		delay := a.delay
		go func() {
			select {
			case <-time.After(delay):
			case <-a.ctx.Done():
				return
			}
			select {
			case a.down <- &damselflyv1.SchedulerMessage{Decisions: []*damselflyv1.Decision{{Decision: &damselflyv1.Decision_Pong{Pong: &damselflyv1.Pong{Number: p.Number}}}}}:
			case <-a.ctx.Done():
			}
		}()
	}
}

// told gives what has come since the last call, as text without Slots.
func (a *attended) told() []string {
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, e := range a.events {
		switch e := e.GetEvent().(type) {
		case *damselflyv1.NodeEvent_Want:
			out = append(out, "want "+e.Want.GetDigest())
		case *damselflyv1.NodeEvent_Unwant:
			out = append(out, "unwant "+e.Unwant.GetDigest())
		case *damselflyv1.NodeEvent_Have:
			out = append(out, "have "+e.Have.GetDigest())
		case *damselflyv1.NodeEvent_Drop:
			out = append(out, "drop "+e.Drop.GetDigest())
		case *damselflyv1.NodeEvent_Done:
			out = append(out, fmt.Sprint("done ", e.Done.GetLease()))
		case *damselflyv1.NodeEvent_Ending:
			out = append(out, fmt.Sprint("ending ", e.Ending.GetLease()))
		case *damselflyv1.NodeEvent_Failed:
			out = append(out, fmt.Sprint("failed ", e.Failed.GetLease(), " ", e.Failed.GetReason()))
		}
	}
	a.events = slices.DeleteFunc(a.events, func(e *damselflyv1.NodeEvent) bool { return e.GetSlots() == nil })
	return out
}

// slots gives what Slots have come since the last call.
func (a *attended) slots() []control.Slots {
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []control.Slots
	a.events = slices.DeleteFunc(a.events, func(e *damselflyv1.NodeEvent) bool {
		s := e.GetSlots()
		if s != nil {
			out = append(out, control.Slots{Upload: int(s.GetUpload()), Download: int(s.GetDownload())})
		}
		return s != nil
	})
	return out
}

func wants(t *testing.T, what string, a *attended, want ...string) {
	t.Helper()
	if got := a.told(); !slices.Equal(got, want) {
		t.Fatalf("%s: told %q, want %q", what, got, want)
	}
}

// owned is the n-th blob that belongs to one of the schedulers.
func owned(n int, id string, among ...string) blob.Digest {
	for i := 0; ; i++ {
		d := blob.FromBytes(fmt.Append(nil, i))
		if ring.Owner(d.String(), among) != id {
			continue
		}
		if n--; n < 0 {
			return d
		}
	}
}
