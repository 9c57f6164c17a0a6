package origin

import (
	"context"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// gate is what all callers of one host share: how many requests may be under
// way, the pause that the host asked for, and the budget of retries.
type gate struct {
	asks, reads *semaphore.Weighted

	mu      sync.Mutex
	users   int       // requests that hold or want a place
	until   time.Time // no request before
	due     time.Time // when the host said to come back, past until where that is far
	refusal *refusal  // the 429 that began the pause
	strikes int       // 429s in a row
	retries float64   // what is left of the budget
	filled  time.Time // when retries was brought up to date
}

const (
	// maxPause bounds one pause: after it a single caller's request tells whether
	// the host still refuses. A longer wait that the host asked for is in that
	// refusal's Retry-After.
	maxPause = time.Minute
	// firstPause is that of a 429 without Retry-After; it doubles with each in a
	// row.
	firstPause = time.Second
	maxStrikes = 5

	// Retries of failed requests may be a tenth of all requests, and some more
	// while there are few requests, so that a host in trouble does not see its
	// load multiplied.
	maxRetries    = 10.0
	retryShare    = 0.1
	retriesPerSec = 0.5
)

func newGate(places int, now time.Time) *gate {
	return &gate{
		asks: semaphore.NewWeighted(int64(places)), reads: semaphore.NewWeighted(int64(places)),
		retries: maxRetries, filled: now,
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
	return g.users == 0 && !now.Before(g.until)
}

// pause is how long the host is to be left alone, and the refusal that said so
// with the Retry-After that is left of it.
func (g *gate) pause(now time.Time) (time.Duration, *refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	left := g.until.Sub(now)
	if left <= 0 {
		return 0, nil
	}
	return left, g.refusal.later(g.due.Sub(now))
}

// opens tells whether the pause is over by then.
func (g *gate) opens(now, by time.Time) bool {
	left, _ := g.pause(now)
	return !now.Add(left).After(by)
}

// wait sleeps through the pause if it is at most limit, and some more, so that
// not everybody who waited comes at once. Else, or when one pause follows the
// other, it returns the refusal.
func (g *gate) wait(ctx context.Context, limit time.Duration) (*refusal, error) {
	last := time.Now().Add(limit)
	for {
		now := time.Now()
		left, why := g.pause(now)
		if left == 0 {
			return nil, nil
		}
		if now.Add(left).After(last) {
			return why, nil
		}
		if err := sleep(ctx, left+rand.N(min(left/4, 2*time.Second)+1)); err != nil {
			return nil, err
		}
	}
}

// saw takes note of an answer of the host. r is the copy of a 429, else nil.
func (g *gate) saw(now time.Time, r *refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r == nil {
		g.strikes = 0
		return
	}
	d, ok := retryAfter(r.header, now)
	if !ok {
		d = firstPause << min(g.strikes, maxStrikes)
	}
	g.strikes++
	if until := now.Add(min(d, maxPause)); until.After(g.until) {
		g.until, g.due, g.refusal = until, now.Add(d), r
	}
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
