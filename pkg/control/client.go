package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// stream is the node's end of an Attend stream.
type stream = grpc.BidiStreamingClient[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage]

// listener hears what comes on one stream, one thing at a time and in order.
type listener interface {
	// welcome says that the scheduler attends; an error ends the stream.
	welcome(ctx context.Context, release string) error
	hear(Decision)
	// regard says that the scheduler may have fallen silent, or speaks again.
	regard()
}

// client keeps the events for one scheduler and its stream, one stream at a time.
// Its methods are safe for concurrent use; tell never blocks: events wait in a
// queue for the stream, and are dropped while there is none, because everything is
// told again on the next.
type client struct {
	attend  *damselflyv1.Attend
	log     *zap.Logger
	wake    chan struct{}
	waiting func() bool
	denials Denials // may be nil

	mu       sync.Mutex
	joined   bool
	queue    []*damselflyv1.NodeEvent
	heard    time.Time // last message from the scheduler
	asked    time.Time // ping without an answer; zero when it is answered
	quiet    int       // ticks of the watch since, and since anything was heard
	still    int       // those in a row in which this node got no piece either
	overdue  int       // ticks since a ping that is not answered, whatever else was heard
	void     bool      // the scheduler fell silent since that ping: it measures nothing
	mute     bool      // it is silent for too long
	muted    time.Time // when it last was
	slow     int       // how often it spoke again, and may be silent for twice as long
	number   uint64
	measured time.Time     // when trip was last measured
	trip     time.Duration // smoothed control round trip; 0 while unknown
}

func newClient(cfg Config, log *zap.Logger) *client {
	return &client{attend: cfg.Attend, waiting: cfg.Waiting, denials: cfg.Denials, log: log, wake: make(chan struct{}, 1)}
}

// once attends over one stream until that ends, and says why it did.
func (c *client) once(ctx context.Context, dial Conn, l listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer c.leave()
	st, err := dial.Attend(ctx)
	if err != nil {
		return fmt.Errorf("attending: %w", err)
	}
	attend := c.attend
	if c.denials != nil {
		attend = proto.CloneOf(attend)
		attend.Denials = c.denials.Heard()
	}
	if err := st.Send(message(&damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Attend{Attend: attend}})); err != nil {
		return fmt.Errorf("attending: %w", err)
	}
	// Ended by cancel: a stream that is stuck must not keep the watch waiting.
	g := new(errgroup.Group)
	g.Go(func() error {
		err := c.receive(ctx, st, l)
		cancel(err)
		return err
	})
	g.Go(func() error { return c.send(ctx, st) })
	g.Go(func() error {
		err := c.watch(ctx, l)
		cancel(err)
		return err
	})
	if err := g.Wait(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	return nil
}

func (c *client) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joined, c.mute, c.queue = false, false, nil
}

func (c *client) receive(ctx context.Context, st stream, l listener) error {
	for {
		msg, err := st.Recv()
		if err != nil {
			return fmt.Errorf("reading decisions: %w", err)
		}
		if c.hear() {
			l.regard()
		}
		for _, d := range msg.GetDecisions() {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			switch d := d.GetDecision().(type) {
			case *damselflyv1.Decision_Welcome:
				c.join()
				if err := l.welcome(st.Context(), d.Welcome.GetRelease()); err != nil {
					return err
				}
				continue
			case *damselflyv1.Decision_Pong:
				c.answered(d.Pong.GetNumber())
				continue
			}
			decisions, err := decode(d)
			if err != nil {
				c.log.Error("dropped a malformed decision", zap.Error(err))
				continue
			}
			for _, d := range decisions {
				l.hear(d)
			}
		}
	}
}

// hear notes that the scheduler has said something, and tells whether it was silent
// for too long before.
func (c *client) hear() (again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard, c.quiet, c.still = time.Now(), 0, 0
	if c.mute {
		c.mute, c.slow = false, min(c.slow+1, slowMost)
		return true
	}
	return false
}

// silent tells whether the scheduler is silent for too long.
func (c *client) silent() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mute
}

func (c *client) join() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joined, c.slow, c.asked, c.queue = true, 0, time.Time{}, nil
	c.trip, c.measured = 0, time.Time{}
}

// answered takes a pong. The round trip counts from when the ping was queued:
// what a decision of the same moment would have taken.
func (c *client) answered(number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number != c.number || c.asked.IsZero() {
		return
	}
	now := time.Now()
	took := min(now.Sub(c.asked), silence)
	switch {
	case c.void:
	case c.trip == 0:
		c.trip = took
	default:
		c.trip += (took - c.trip) / smoothing
	}
	c.asked, c.measured = time.Time{}, now
}

// roundTrip is how long a word to the scheduler and its answer take.
func (c *client) roundTrip() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.trip == 0 {
		return unknownTrip
	}
	return c.trip
}

func (c *client) send(ctx context.Context, st stream) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.wake:
		}
		c.mu.Lock()
		events := c.queue
		c.queue = nil
		c.mu.Unlock()
		for len(events) > 0 {
			n := fitting(events)
			if err := st.Send(message(events[:n]...)); err != nil {
				return fmt.Errorf("telling events: %w", err)
			}
			events = events[n:]
		}
	}
}

// What one message holds at most. A scheduler takes 4096 events and 64 MiB: a node
// that holds many blobs tells them in parts.
const (
	messageEvents = 1024
	messageBytes  = 1 << 20
)

// fitting is how many of the events go into one message, one at least.
func fitting(events []*damselflyv1.NodeEvent) int {
	n, bytes := 0, 0
	for n < len(events) && n < messageEvents && bytes < messageBytes {
		bytes += proto.Size(events[n])
		n++
	}
	return n
}

// errSilent ends a stream whose scheduler is there and has not answered for long, as
// one that hangs: another scheduler may be tried, and the next stream starts both sides
// from what is true then.
var errSilent = errors.New("the scheduler does not answer")

// watch pings, says when the scheduler falls silent, and errs when it stays so.
func (c *client) watch(ctx context.Context, l listener) error {
	tick := time.NewTicker(watchTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-tick.C:
			mute, ends := c.look(now, c.waiting())
			if ends {
				return errSilent
			}
			if mute {
				l.regard()
			}
		}
	}
}

// look sends a ping where one is due, and tells whether the scheduler has just been
// silent for too long to be waited for, and whether for so long that the stream ends. A
// busy stream is pinged too, now and then, for its round trip.
//
// Silence counts in ticks of the watch. Of the time that this process slept, stopped or
// short of CPU, one tick counts, and the answer that came meanwhile is heard before the
// next. Nor do ticks count for much in which this node tells of pieces: what was leased
// helps it on, and it would not fare better by itself.
func (c *client) look(now time.Time, busy bool) (mute, ends bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.joined {
		return false, false
	}
	every := pingIdle
	if busy {
		every = pingBusy
	}
	if c.asked.IsZero() {
		if now.Sub(c.heard) >= every || now.Sub(c.measured) >= pingIdle {
			c.asked, c.quiet, c.still, c.overdue, c.void = now, 0, 0, 0, false
			c.number++
			c.push(&damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Ping{Ping: &damselflyv1.Ping{Number: c.number}}})
		}
		return false, false
	}
	c.quiet++
	c.still++
	c.overdue++
	still, quiet := time.Duration(c.still)*watchTick, time.Duration(c.quiet)*watchTick
	if now.Sub(c.muted) > slowFor {
		c.slow = 0
	}
	if !c.mute && busy && (still >= silence<<c.slow || quiet >= silenceMost) {
		c.mute, c.muted, c.void = true, now, true
		mute = true
	}
	limit := silenceIdle
	if busy {
		limit = silenceBusy
	}
	return mute, quiet >= limit || time.Duration(c.overdue)*watchTick >= pongMost
}

// push queues an event. The caller holds mu.
func (c *client) push(e *damselflyv1.NodeEvent) {
	if !c.joined {
		return
	}
	c.queue = append(c.queue, e)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func message(events ...*damselflyv1.NodeEvent) *damselflyv1.NodeMessage {
	return &damselflyv1.NodeMessage{Events: events}
}

// tell queues an event. A Have joins the event before it where the two are of one
// blob.
func (c *client) tell(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := e.(Have); ok {
		c.still = 0
		if len(c.queue) > 0 {
			if last, ok := c.queue[len(c.queue)-1].GetEvent().(*damselflyv1.NodeEvent_Have); ok && have.merge(last.Have) {
				return
			}
		}
	}
	c.push(e.wire())
}
