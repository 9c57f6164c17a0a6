// Package limit bounds bytes a second: a token bucket whose waiters are served by
// who waits for the bytes. The Peer service takes from one what it sends, the peer
// client and the origin client what they read; pkg/node makes the buckets and sets
// them anew when the configuration changes. It moves no bytes itself.
package limit

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// How finely tokens are given.
const (
	// quantum is what one waiter is given at a time, in bytes: the grain at which
	// nodes share a bucket, and at which a client that comes overtakes others.
	quantum = 16 << 10
	// leastBurst and burstSpan bound what an idle bucket saves up: so many bytes, and
	// what the limit gives in so long. Timers that come late cost no rate within it.
	leastBurst = 64 << 10
	burstSpan  = 20 * time.Millisecond
	// leastSleep spares timers at rates where a quantum takes microseconds.
	leastSleep = time.Millisecond
	// mercy is how many times a quantum the classes above may be given while a lower
	// one waits.
	mercy = 15
)

// Bucket gives out tokens, one a byte, at no more than its limit. Waiters of a higher
// class are served first; among those of a class all parties get alike, however many
// waiters each has, and a party's waiters are served in the order in which they came. A
// lower class that waits gets every sixteenth byte in the worst case, so that it goes on.
//
// A Bucket is safe for concurrent use and starts no goroutine but to serve waiters when
// tokens have come. A nil Bucket has no limit. Without a limit Wait costs one atomic
// load.
type Bucket struct {
	limited atomic.Bool // written under mu

	mu      sync.Mutex
	tokens  *rate.Limiter // nil until there was a limit
	queues  [classes]queue
	waiting int
	spare   int         // tokens that waiters had been given and did not use
	timer   *time.Timer // calls due
}

// queue is the waiters of a class, by party; the next to be served is the first.
type queue struct {
	parties []*party
	passed  int // bytes given to higher classes while this one waited
}

type party struct {
	name    string
	waiters []*waiter
}

type waiter struct {
	left int           // bytes that it has not been given
	done chan struct{} // closed when it has been given all
}

// New returns a bucket with a limit of perSecond bytes a second; 0 is none.
func New(perSecond int64) *Bucket {
	b := &Bucket{}
	b.Set(perSecond)
	return b
}

// Set changes the limit to perSecond bytes a second; 0 or less is none. It holds at
// once, for those that wait already, too.
func (b *Bucket) Set(perSecond int64) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if perSecond <= 0 {
		b.limited.Store(false)
		b.release()
		return
	}
	limit, burst := rate.Limit(perSecond), int(max(leastBurst, perSecond/int64(time.Second/burstSpan)))
	if b.limited.Load() {
		b.tokens.SetLimitAt(now, limit)
		b.tokens.SetBurstAt(now, burst)
	} else {
		b.tokens = rate.NewLimiter(limit, burst)
	}
	b.limited.Store(true)
	b.grant(now)
}

// Limit is the limit in bytes a second; 0 is none.
func (b *Bucket) Limit() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.limited.Load() {
		return 0
	}
	return int64(b.tokens.Limit())
}

// Wait takes n tokens, as soon as that is within the limit and the waiter's turn. It
// returns the cause of ctx's end if that comes first; then it has taken none. party is
// on whose behalf it waits: a node, or "" where nobody competes.
func (b *Bucket) Wait(ctx context.Context, c Class, party string, n int) error {
	if !b.Limited() {
		return nil
	}
	return b.wait(ctx, c, party, n)
}

// Limited tells whether there is a limit, so that Wait may wait.
func (b *Bucket) Limited() bool { return b != nil && b.limited.Load() }

func (b *Bucket) wait(ctx context.Context, c Class, party string, n int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c = min(c, classes-1)
	now := time.Now()
	b.mu.Lock()
	if n <= 0 || !b.limited.Load() || b.waiting == 0 && b.tokens.AllowN(now, n) {
		b.mu.Unlock()
		return nil
	}
	w := &waiter{left: n, done: make(chan struct{})}
	b.queues[c].add(party, w)
	b.waiting++
	b.grant(now)
	b.mu.Unlock()
	defer held(ctx)()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.queues[c].remove(party, w) {
		b.waiting--
	}
	if b.limited.Load() {
		b.spare = min(b.spare+n-w.left, b.tokens.Burst())
		b.grant(time.Now())
	}
	return context.Cause(ctx)
}

// due is called by the timer.
func (b *Bucket) due() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limited.Load() {
		b.grant(time.Now())
	}
}

// grant gives out the tokens that there are, and sets the timer for the next where
// waiters are left. The caller holds mu.
func (b *Bucket) grant(now time.Time) {
	for b.waiting > 0 {
		c := b.next()
		w := b.queues[c].first()
		n := min(w.left, quantum)
		if !b.draw(now, n) {
			b.arm(now, n)
			return
		}
		w.left -= n
		b.queues[c].served(w)
		if w.left == 0 {
			close(w.done)
			b.waiting--
		}
		for lower := c + 1; lower < classes; lower++ {
			b.queues[lower].pass(n)
		}
	}
	if b.timer != nil {
		b.timer.Stop()
	}
}

// next is the class that is to be served. Some waiter waits. The caller holds mu.
func (b *Bucket) next() Class {
	next := -1
	for c := range b.queues {
		if q := &b.queues[c]; len(q.parties) > 0 && (next < 0 || q.passed >= mercy*quantum) {
			next = c
		}
	}
	return Class(next)
}

// draw takes n tokens if they are there. The caller holds mu.
func (b *Bucket) draw(now time.Time, n int) bool {
	spared := min(b.spare, n)
	if spared < n && !b.tokens.AllowN(now, n-spared) {
		return false
	}
	b.spare -= spared
	return true
}

// arm sets the timer for when n tokens will be there. The caller holds mu.
func (b *Bucket) arm(now time.Time, n int) {
	lack := float64(n-b.spare) - b.tokens.TokensAt(now)
	sleep := time.Duration(lack/float64(b.tokens.Limit())*float64(time.Second)) + time.Microsecond // tokens are fractions
	sleep = max(sleep, leastSleep)
	if b.timer == nil {
		b.timer = time.AfterFunc(sleep, b.due)
		return
	}
	b.timer.Reset(sleep)
}

// release lets all waiters go. The caller holds mu.
func (b *Bucket) release() {
	for c := range b.queues {
		for _, p := range b.queues[c].parties {
			for _, w := range p.waiters {
				close(w.done)
			}
		}
		b.queues[c] = queue{}
	}
	b.waiting, b.spare = 0, 0
	if b.timer != nil {
		b.timer.Stop()
	}
}
