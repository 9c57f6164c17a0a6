package control

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/ring"
)

// backoff is the wait before the next try to attend: none before the first.
type backoff struct{ wait time.Duration }

// more waits longer the next time.
func (b *backoff) more() {
	b.wait = min(max(2*b.wait, backoffFirst), backoffMost)
}

// lasted notes for how long the last try went well.
func (b *backoff) lasted(d time.Duration) {
	if d > backoffMost {
		b.wait = 0
	}
	b.more()
}

// sleep waits, a part of it at random; false when ctx ends.
func (b *backoff) sleep(ctx context.Context) bool {
	if b.wait == 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(b.wait/2 + rand.N(b.wait/2+1))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// ownedBy tells of a blob whether a scheduler owns it among live ones.
func ownedBy(id string, live []string) func(blob.Digest) bool {
	return func(d blob.Digest) bool { return ring.Owner(d.String(), live) == id }
}
