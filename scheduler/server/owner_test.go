package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// slowMind takes its time for each event, and panics at a Drop.
type slowMind struct {
	*core.State
	takes time.Duration
	wants *int
}

func (m slowMind) Apply(now core.Time, e core.Event, out []core.Decision) []core.Decision {
	<-time.After(m.takes) // of the bubble that the test runs in
	switch e.(type) {
	case *core.Drop:
		panic("this state cannot drop")
	case *core.Want:
		*m.wants++
	}
	return m.State.Apply(now, e, out)
}

// bench is a server without gRPC: streams are put straight into it.
type bench struct {
	*Server
	t     *testing.T
	logs  *observer.ObservedLogs
	trace bytes.Buffer
	wants int // that reached the core
	ran   chan error
	stop  context.CancelFunc
}

func newBench(t *testing.T, takes time.Duration) *bench {
	t.Helper()
	return newBenchOf(t, takes, func(m mind) mind { return m })
}

// newBenchOf has a state that wrap made of a core.
func newBenchOf(t *testing.T, takes time.Duration, wrap func(mind) mind) *bench {
	t.Helper()
	logger, logs := observer.New(zap.InfoLevel)
	b := &bench{t: t, logs: logs, ran: make(chan error, 1)}
	var err error
	if b.Server, err = New(Config{Caller: nobody, Seed: 1, Trace: &b.trace}, zap.New(logger), nil); err != nil {
		t.Fatal(err)
	}
	b.newState = func(seed uint64) mind { return wrap(slowMind{core.New(core.Config{}, seed), takes, &b.wants}) }
	b.state = b.newState(1)
	ctx, cancel := context.WithCancel(t.Context())
	b.stop = cancel
	go func() { b.ran <- b.Run(ctx) }()
	return b
}

// end stops the server and returns what it ended with.
func (b *bench) end() error {
	b.stop()
	return <-b.ran
}

// client is a stream and what was sent on it.
type client struct {
	*stream
	b *bench

	mu  sync.Mutex
	got []*damselflyv1.Decision
}

func (b *bench) attend(node string) *client {
	c := &client{b: b}
	c.stream = newStream(node, &b.senders, func(m *damselflyv1.SchedulerMessage) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, d := range m.GetDecisions() {
			c.got = append(c.got, cloned(d))
		}
		return nil
	})
	b.submit(c.stream, envelope{attend: &core.Attend{Node: node, Address: node + ":1"}})
	return c
}

// cloned is a decision that outlives its message.
func cloned(d *damselflyv1.Decision) *damselflyv1.Decision {
	if r := d.GetRefuse(); r != nil {
		return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Refuse{Refuse: &damselflyv1.Refuse{
			Digest: r.GetDigest(), Reason: r.GetReason(), RetryAfterMs: r.GetRetryAfterMs(),
		}}}
	}
	return &damselflyv1.Decision{}
}

func (c *client) say(es ...core.Event) { c.b.submit(c.stream, envelope{message: message{events: es}}) }

func (c *client) want(name string) {
	c.say(&core.Want{
		Node: c.node, Digest: blob.FromBytes([]byte(name)), Size: 1,
		Origin: &core.Origin{Kind: core.BlobOrigin, Registry: "r.example.com", Repository: name},
	})
}

func (c *client) refusals() (out []*damselflyv1.Refuse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.got {
		if r := d.GetRefuse(); r != nil {
			out = append(out, r)
		}
	}
	return out
}

// A scheduler that is behind tells new wants to come again, at different times, and
// nothing else; those are no events of its state. It takes them once it has caught up.
func TestOverloadShedsNewWantsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 5*time.Millisecond)
		old := b.attend("old")
		old.want("running") // wanted before the load
		time.Sleep(time.Second)
		var crowd []*client
		for i := range 60 { // 300 ms of work, and then some more
			c := b.attend(fmt.Sprintf("n%d", i))
			c.say(&core.Done{Node: c.node, Lease: 1})
			crowd = append(crowd, c)
		}
		for _, c := range crowd {
			c.want("new")
		}
		old.want("running")
		old.say(&core.Have{Node: "old", Digest: blob.FromBytes([]byte("running")), Size: 1})
		time.Sleep(3 * time.Second)
		waits := map[uint64]bool{}
		for _, c := range crowd {
			for _, r := range c.refusals() {
				if r.GetRetryAfterMs() < 500 || r.GetRetryAfterMs() > 1500 || r.GetReason() != refusedForLoad {
					t.Errorf("a want is answered with %v", r)
				}
				waits[r.GetRetryAfterMs()] = true
			}
		}
		if len(waits) < 20 {
			t.Errorf("the crowd is told %d different times to come again", len(waits))
		}
		if got := old.refusals(); len(got) != 0 {
			t.Errorf("who wanted it before is told %v", got)
		}
		if n := len(b.logs.FilterMessageSnippet("overloaded: ").All()); n != 1 {
			t.Errorf("the log tells of %d overloads, want one", n)
		}
		for _, c := range crowd {
			c.want("new")
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Second)
		if got := crowd[59].refusals(); len(got) > 1 {
			t.Errorf("once it has caught up a want is answered with %v", got)
		}
		if err := b.end(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if n := strings.Count(b.trace.String(), " want "); n != b.wants || n > 90 {
			t.Errorf("the trace has %d wants, the core was told %d of 122", n, b.wants)
		}
	})
}

// Overload is what lasts: messages that waited once, as after a pause of the whole
// process, are no reason to send anybody away.
func TestAdmissionHasHysteresis(t *testing.T) {
	var a admission
	at := time.Second
	step := func(by, waited time.Duration) bool {
		at += by
		a.observe(at, waited)
		return a.overloaded
	}
	ms := time.Millisecond
	if step(0, 300*ms) || step(90*ms, 300*ms) || step(1*ms, 10*ms) || step(20*ms, 300*ms) || step(90*ms, 60*ms) {
		t.Error("overloaded after less than 100 ms")
	}
	if !step(20*ms, 60*ms) {
		t.Error("not overloaded after 110 ms")
	}
	if !step(300*ms, 10*ms) || !step(300*ms, 30*ms) || !step(300*ms, 10*ms) || !step(400*ms, 10*ms) {
		t.Error("calm for less than 500 ms ended it")
	}
	if step(200*ms, 10*ms) {
		t.Error("still overloaded after 600 ms of calm")
	}
}

// When the core panics, every node is sent to attend anew, what came meanwhile is
// taken by a new state, and the log has the event.
func TestCoreThatPanicsBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		one, two := b.attend("one"), b.attend("two")
		synctest.Wait()
		one.say(&core.Drop{Node: "one", Digest: blob.FromBytes(nil)})
		three := b.attend("three")
		three.want("blob")
		synctest.Wait()
		for _, c := range []*client{one, two} {
			if st := status.Convert(c.why()); st.Code() != codes.Unavailable {
				t.Errorf("the stream of %s ended with %v", c.node, st)
			}
		}
		if three.why() != nil || b.wants != 1 {
			t.Errorf("who came behind the event was ended with %v, %d wants were taken", three.why(), b.wants)
		}
		logged := b.logs.FilterMessageSnippet("the core failed").All()
		if len(logged) != 1 || !strings.Contains(logged[0].ContextMap()["event"].(string), " drop one sha256:") {
			t.Errorf("the log has %v", logged)
		}
		_ = b.end()
		if n := strings.Count(b.trace.String(), "# seed "); n != 2 {
			t.Errorf("the trace tells of %d states, want 2:\n%s", n, b.trace.String())
		}
	})
}

// leavePanics panics at every Leave.
type leavePanics struct{ mind }

func (m leavePanics) Apply(now core.Time, e core.Event, out []core.Decision) []core.Decision {
	if _, ok := e.(*core.Leave); ok {
		panic("nobody may leave")
	}
	return m.mind.Apply(now, e, out)
}

// A silent node is sent to attend anew although the core panics at its leaving: else
// it would be served by nobody and know nothing of it.
func TestSilentNodeIsEndedWhereTheCorePanicsAtThat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBenchOf(t, 0, func(m mind) mind { return leavePanics{m} })
		silent := b.attend("silent")
		synctest.Wait()
		time.Sleep(silentIdle + time.Second)
		synctest.Wait()
		if st := status.Convert(silent.why()); st.Code() != codes.DeadlineExceeded {
			t.Errorf("the stream of the silent node ended with %v", silent.why())
		}
		_ = b.end()
	})
}

// dozes does not run for a minute when somebody wants the blob "nap".
type dozes struct{ mind }

func (m dozes) Apply(now core.Time, e core.Event, out []core.Decision) []core.Decision {
	if w, ok := e.(*core.Want); ok && w.Digest == blob.FromBytes([]byte("nap")) {
		<-time.After(time.Minute) // of the bubble that the test runs in
	}
	return m.mind.Apply(now, e, out)
}

// A scheduler that was stopped has not read what nodes said meanwhile: neither their
// leases are late then, nor they silent.
func TestOwnSleepIsNobodysFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBenchOf(t, 0, func(m mind) mind { return dozes{m} })
		holder, reader, other := b.attend("holder"), b.attend("reader"), b.attend("other")
		holder.say(&core.Have{Node: "holder", Digest: blob.FromBytes([]byte("x")), Size: 1, Runs: []blob.Run{{Count: 1}}, Sealed: true})
		reader.want("x")
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if b.state.Running("reader") != 1 {
			t.Fatal("the reader has no lease")
		}
		other.want("nap")
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if b.state.Running("reader") != 1 {
			t.Error("the lease of the reader was taken for late")
		}
		for _, c := range []*client{holder, reader, other} {
			if c.why() != nil {
				t.Errorf("the stream of %s ended: %v", c.node, c.why())
			}
		}
		if b.logs.FilterMessageSnippet("did not run for a while").Len() != 1 {
			t.Error("the log does not say that the scheduler slept")
		}
		_ = b.end()
		if strings.Contains(b.trace.String(), "\tcancel") {
			t.Errorf("a lease was cancelled:\n%s", b.trace.String())
		}
	})
}

// An idle stream keeps nothing of what its last messages said.
func TestReuseKeepsNoEvents(t *testing.T) {
	s := newStream("n", &senders{}, nil)
	m := &memory{bytes: make([]byte, 2*frameKept)}
	m.have.Links = m.bytes
	m.events[0], m.events[1] = &m.have, &core.Have{Links: make([]byte, 1<<20)}
	s.reuse(m)
	if kept := <-s.free; kept.bytes != nil || kept.have.Links != nil || kept.events != [len(kept.events)]core.Event{} {
		t.Error("it keeps some")
	}
}

func TestCoreThatPanicsAgainAndAgainIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		fail := func() {
			c := b.attend("n")
			c.say(&core.Drop{Node: "n", Digest: blob.FromBytes(nil)})
			synctest.Wait()
		}
		for range 2 * restartsMost { // far apart: each is mended
			fail()
			time.Sleep(restartsWithin / 2)
		}
		time.Sleep(2 * restartsWithin)
		for range restartsMost - 1 {
			fail()
		}
		select {
		case err := <-b.ran:
			t.Fatalf("given up too soon: %v", err)
		default:
		}
		fail()
		if err := <-b.ran; err == nil || !strings.Contains(err.Error(), " drop n ") {
			t.Errorf("it ended with %v", err)
		}
		b.stop()
	})
}

// A stream that takes nothing delays neither the owner nor the streams of others.
func TestStuckStreamDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		stuck := make(chan struct{})
		st := newStream("stuck", &b.senders, func(*damselflyv1.SchedulerMessage) error {
			<-stuck
			return errors.New("over")
		})
		b.submit(st, envelope{attend: &core.Attend{Node: "stuck", Address: "stuck:1"}})
		quick := b.attend("quick")
		synctest.Wait() // the stuck one sends its Welcome, and nothing else
		for i := range 50 {
			b.submit(st, envelope{message: message{pings: []uint64{uint64(i)}}})
			b.submit(quick.stream, envelope{message: message{pings: []uint64{uint64(i)}}})
			synctest.Wait()
		}
		if len(quick.got) != 1+50 || len(st.outbox) != 50 { // each has its Welcome, too
			t.Errorf("the quick node has %d items, %d wait for the stuck one", len(quick.got), len(st.outbox))
		}
		close(stuck)
		_ = b.end()
	})
}
