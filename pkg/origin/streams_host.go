package origin

import (
	"sync"
	"time"
)

const (
	// leastChunk and mostChunk bound what one request of a helper asks for; at the end of
	// the content it may be half as little.
	leastChunk = 1 << 20
	mostChunk  = 4 << 20
	// barLife is how long a host is not asked for parts again that did not serve them.
	barLife = 10 * time.Minute
	// aloneLife is how long nobody tries again where a second stream brought nothing.
	aloneLife = 15 * time.Second
)

// streamBudget is what the reads of one host share: how many streams may help, and how
// many bytes may have come before their turn.
type streamBudget struct {
	most      int
	mostBytes int64
	blocks    sync.Pool

	mu     sync.Mutex
	reads  int // that have helpers or want some
	places int
	bytes  int64
	closed time.Time // no helper before
}

func newStreamBudget(cfg Config) *streamBudget {
	// Half of the requests at a time are left to those that nobody can do without.
	most := min(cfg.MaxExtraStreams, cfg.MaxRequests/2)
	return &streamBudget{most: most, mostBytes: int64(most) * mostChunk}
}

// open tells whether a read may try helpers.
func (b *streamBudget) open(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.most > 0 && !now.Before(b.closed)
}

// close has no read try helpers before until.
func (b *streamBudget) close(until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if until.After(b.closed) {
		b.closed = until
	}
}

// engage counts a read that wants helpers, disengage one that does no more.
func (b *streamBudget) engage()    { b.count(1) }
func (b *streamBudget) disengage() { b.count(-1) }

func (b *streamBudget) count(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads += n
}

// enter takes a place and n bytes for a read that has so many places, unless that is
// more than its share.
func (b *streamBudget) enter(has int, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if has >= max(1, b.most/max(1, b.reads)) || b.places >= b.most || b.bytes+n > b.mostBytes {
		return false
	}
	b.places++
	b.bytes += n
	return true
}

// leave gives a place back, and n bytes.
func (b *streamBudget) leave(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.places--
	b.bytes -= n
}

// free gives n bytes back.
func (b *streamBudget) free(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes -= n
}

func (b *streamBudget) block() *block {
	if k, ok := b.blocks.Get().(*block); ok {
		return k
	}
	return &block{bytes: make([]byte, blockSize)}
}

func (b *streamBudget) recycle(k *block) {
	k.used = 0
	b.blocks.Put(k)
}
