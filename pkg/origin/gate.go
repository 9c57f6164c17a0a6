package origin

import (
	"context"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// gate is what all callers of one host share: how many requests may be under
// way, the pauses that the host asked for, and the budget of retries.
type gate struct {
	asks, reads *semaphore.Weighted

	mu      sync.Mutex
	users   int // requests that hold or want a place
	pauses  map[pauseKey]*pause
	retries float64   // what is left of the budget
	filled  time.Time // when retries was brought up to date
}

// Retries of failed requests may be a tenth of all requests, and some more while
// there are few requests, so that a host in trouble does not see its load
// multiplied.
const (
	maxRetries    = 10.0
	retryShare    = 0.1
	retriesPerSec = 0.5
)

func newGate(places int, now time.Time) *gate {
	return &gate{
		asks: semaphore.NewWeighted(int64(places)), reads: semaphore.NewWeighted(int64(places)),
		pauses: map[pauseKey]*pause{}, retries: maxRetries, filled: now,
	}
}

// enter waits for a place and returns the function that gives it back, once.
func (g *gate) enter(ctx context.Context, bulk bool) (leave func(), err error) {
	places := g.asks
	if bulk {
		places = g.reads
	}
	g.mu.Lock()
	g.users++
	g.retries = min(maxRetries, g.retries+retryShare)
	g.mu.Unlock()
	if err := places.Acquire(ctx, 1); err != nil {
		g.gone()
		return nil, err
	}
	return sync.OnceFunc(func() {
		places.Release(1)
		g.gone()
	}), nil
}

func (g *gate) gone() {
	g.mu.Lock()
	g.users--
	g.mu.Unlock()
}

// idle tells whether the gate can be forgotten without anybody noticing.
func (g *gate) idle(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.pauses {
		if p.matters(now) {
			return false
		}
	}
	return g.users == 0
}

// mayRetry takes one retry out of the budget.
func (g *gate) mayRetry(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.retries = min(maxRetries, g.retries+retriesPerSec*now.Sub(g.filled).Seconds())
	g.filled = now
	if g.retries < 1 {
		return false
	}
	g.retries--
	return true
}

// sleep waits for d or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// retryAfter reads Retry-After, seconds or a date (RFC 9110 section 10.2.3).
func retryAfter(h http.Header, now time.Time) (time.Duration, bool) {
	v := h.Get("Retry-After")
	if v == "" {
		return 0, false
	}
	if n, ok := parseDigits(v); ok {
		return time.Duration(min(n, int64(365*24*time.Hour/time.Second))) * time.Second, true
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	return max(0, at.Sub(now)), true
}
