// Package control is a node's end of the scheduler stream: it attends, tells
// events in order, hands on decisions, and notices when the scheduler no longer
// answers. It holds no blobs and decides nothing; task feeds it and is its
// handler, node runs it.
package control

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Protocol is the version of the wire that this node speaks.
const Protocol = 1

// Timing of the stream. A node that waits hears from its scheduler within
// silence, or counts it as lost and helps itself; DESIGN.md promises 500 ms.
const (
	pingBusy     = 150 * time.Millisecond
	pingIdle     = 5 * time.Second
	silence      = 400 * time.Millisecond
	silenceIdle  = 15 * time.Second
	backoffFirst = 100 * time.Millisecond
	backoffMost  = 2 * time.Second
)

// Handler takes decisions, one at a time and in order. It must not block: while
// it runs, nothing else is heard.
type Handler interface {
	Handle(Decision)
}

// Dialer opens Attend streams.
type Dialer interface {
	Attend(ctx context.Context, opts ...grpc.CallOption) (grpc.BidiStreamingClient[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage], error)
}

// Client is the stream to one scheduler. Its methods are safe for concurrent
// use and never block: events wait in a queue for the stream, and are dropped
// while there is none, because the handler tells everything again on Joined.
type Client struct {
	dial    Dialer
	attend  *damselflyv1.Attend
	log     *zap.Logger
	wake    chan struct{}
	waiting func() bool

	mu     sync.Mutex
	joined bool
	queue  []*damselflyv1.NodeEvent
	heard  time.Time // last message from the scheduler
	asked  time.Time // ping without an answer; zero when it is answered
	number uint64
}

// New returns a client that introduces itself with attend. waiting tells
// whether this node waits for a decision: it is asked often and must be cheap.
func New(dial Dialer, attend *damselflyv1.Attend, waiting func() bool, log *zap.Logger) *Client {
	attend.Protocol = Protocol
	return &Client{dial: dial, attend: attend, waiting: waiting, log: log, wake: make(chan struct{}, 1)}
}

// Joined tells whether a scheduler attends and answers.
func (c *Client) Joined() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.joined
}

// Run keeps a stream open until ctx ends, reconnecting with a jittered backoff,
// and gives decisions to h. It returns ctx's error.
func (c *Client) Run(ctx context.Context, h Handler) error {
	wait := backoffFirst
	for {
		started := time.Now()
		err := c.attendOnce(ctx, h)
		if c.leave() {
			h.Handle(Lost{})
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(started) > backoffMost {
			wait = backoffFirst
		}
		c.log.Warn("the stream to the scheduler ended; connecting again", zap.Error(err), zap.Duration("after", wait))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait/2 + rand.N(wait/2+1)):
		}
		wait = min(2*wait, backoffMost)
	}
}

func (c *Client) leave() (was bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was = c.joined
	c.joined, c.queue = false, nil
	return was
}

func (c *Client) attendOnce(ctx context.Context, h Handler) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := c.dial.Attend(ctx)
	if err != nil {
		return fmt.Errorf("attending: %w", err)
	}
	if err := stream.Send(message(&damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Attend{Attend: c.attend}})); err != nil {
		return fmt.Errorf("attending: %w", err)
	}
	// Ended by cancel: a stream that is stuck must not keep the watch waiting.
	g := new(errgroup.Group)
	g.Go(func() error {
		err := c.receive(stream, h)
		cancel(err)
		return err
	})
	g.Go(func() error { return c.send(ctx, stream) })
	g.Go(func() error {
		err := c.watch(ctx)
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

func (c *Client) receive(stream grpc.BidiStreamingClient[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage], h Handler) error {
	for {
		msg, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("reading decisions: %w", err)
		}
		c.hear()
		for _, d := range msg.GetDecisions() {
			switch d := d.GetDecision().(type) {
			case *damselflyv1.Decision_Welcome:
				c.log.Info("attending a scheduler", zap.String("release", d.Welcome.GetRelease()))
				c.join()
				h.Handle(Joined{})
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
				h.Handle(d)
			}
		}
	}
}

func (c *Client) hear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
}

func (c *Client) join() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joined, c.asked, c.queue = true, time.Time{}, nil
}

func (c *Client) answered(number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number == c.number {
		c.asked = time.Time{}
	}
}

func (c *Client) send(ctx context.Context, stream grpc.BidiStreamingClient[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage]) error {
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
			if err := stream.Send(message(events[:n]...)); err != nil {
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

// errSilent ends a stream whose scheduler is there and does not answer, as one
// that hangs does: the next stream starts both sides from what is true then.
var errSilent = errors.New("the scheduler does not answer")

// watch pings, and errs when the scheduler stays silent.
func (c *Client) watch(ctx context.Context) error {
	tick := time.NewTicker(pingBusy)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-tick.C:
			if c.silent(now, c.waiting()) {
				return errSilent
			}
		}
	}
}

// silent sends a ping where one is due and tells whether the scheduler has been
// silent for too long.
func (c *Client) silent(now time.Time, busy bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.joined {
		return false
	}
	every, limit := pingIdle, silenceIdle
	if busy {
		every, limit = pingBusy, silence
	}
	if c.asked.IsZero() {
		if now.Sub(c.heard) >= every {
			c.asked = now
			c.number++
			c.push(&damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Ping{Ping: &damselflyv1.Ping{Number: c.number}}})
		}
		return false
	}
	return now.Sub(c.asked) >= limit && now.Sub(c.heard) >= limit
}

// push queues an event. The caller holds mu.
func (c *Client) push(e *damselflyv1.NodeEvent) {
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

// Tell queues an event for the scheduler: a Want, Unwant, Have, Drop, Done or
// Failed. A Have joins the event before it where the two are of one blob.
func (c *Client) Tell(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := e.(Have); ok && len(c.queue) > 0 {
		if last, ok := c.queue[len(c.queue)-1].GetEvent().(*damselflyv1.NodeEvent_Have); ok && have.merge(last.Have) {
			return
		}
	}
	c.push(e.wire())
}
