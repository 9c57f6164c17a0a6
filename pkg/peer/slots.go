package peer

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/limit"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// slots bounds the Reads that are served at a time. One node may have the most; some
// beyond are for nodes that have none, so that no node keeps all others out.
type slots struct {
	most, spare int

	mu    sync.Mutex
	taken int
	by    map[string]int // a node's key to its Reads
	short time.Time      // when somebody was refused last
}

// newSlots is for most Reads, and a quarter more for nodes that have none.
func newSlots(most int) *slots {
	most = max(most, 1)
	return &slots{most: most, spare: (most + 2) / 4, by: map[string]int{}}
}

// take takes a slot for a node, or returns RESOURCE_EXHAUSTED.
func (s *slots) take(node string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	has := s.by[node]
	switch {
	case s.taken >= s.most+s.spare:
		s.short = time.Now()
		return status.Error(codes.ResourceExhausted, "every upload slot of this node is taken")
	case has > 0 && s.taken >= s.most:
		return status.Error(codes.ResourceExhausted, fmt.Sprintf("%d reads of the caller are served; the upload slots that are left are for others", has))
	}
	s.taken++
	s.by[node]++
	return nil
}

// pressed tells how many Reads are served, where others were refused a moment ago because
// every slot was taken; else 0.
func (s *slots) pressed(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.short) > busyPatience {
		return 0
	}
	return s.taken
}

func (s *slots) leave(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.by[node]--; s.by[node] == 0 {
		delete(s.by, node)
	}
}

// turn is one Read that is served.
type turn struct {
	stream grpc.ServerStream
	blob   *store.Blob
	reader string // its key
	class  limit.Class

	taken atomic.Int64 // bytes of the pieces that the reader took
	moved atomic.Int64 // and of parts of pieces
	// How long this node's own limit kept the reader waiting, in nanoseconds, and since
	// when it does now, in nanoseconds since 1970, or 0.
	held, since atomic.Int64
}

// await takes n bytes off the limit.
func (t *turn) await(b *limit.Bucket, n int) error {
	if !b.Limited() {
		return nil
	}
	started := time.Now()
	t.since.Store(started.UnixNano())
	err := b.Wait(t.stream.Context(), t.class, t.reader, n)
	t.held.Add(int64(time.Since(started)))
	t.since.Store(0)
	return err
}

// waited is how long this node's own limit has kept the reader waiting.
func (t *turn) waited(now time.Time) time.Duration {
	held := t.held.Load()
	if since := t.since.Load(); since > 0 {
		held += now.UnixNano() - since
	}
	return time.Duration(held)
}

// overdue tells whether the reader has taken too little for the time that it had.
func (t *turn) overdue(now time.Time, had, patience time.Duration) bool {
	return had-t.waited(now) > patience+time.Duration(t.taken.Load()/leastRate)*time.Second
}
