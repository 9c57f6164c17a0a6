package limit

import (
	"context"
	"sync"
	"time"
)

type clockKey struct{}

// WithTimeout is context.WithTimeoutCause, but the time in which a Bucket holds a
// waiter with this context does not count: who bounds how slow another may be does not
// mean this node's own limit.
func WithTimeout(ctx context.Context, d time.Duration, cause error) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	c := &clock{left: d, since: time.Now()}
	c.timer = time.AfterFunc(d, func() { cancel(cause) })
	return context.WithValue(ctx, clockKey{}, c), func() {
		c.hold() // for ever
		cancel(context.Canceled)
	}
}

// clock is a timer that stands while anything holds it.
type clock struct {
	timer *time.Timer

	mu    sync.Mutex
	holds int
	since time.Time // when it began to run
	left  time.Duration
}

func (c *clock) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holds++; c.holds == 1 {
		c.timer.Stop()
		c.left -= time.Since(c.since)
	}
}

func (c *clock) run() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holds--; c.holds == 0 {
		c.since = time.Now()
		c.timer.Reset(c.left)
	}
}

// held stops the clock that ctx may have; what it returns lets it run again.
func held(ctx context.Context) func() {
	c, ok := ctx.Value(clockKey{}).(*clock)
	if !ok {
		return func() {}
	}
	c.hold()
	return c.run
}
