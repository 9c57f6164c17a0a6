package proxy

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// claimant is who makes claims: a credential, and where the client is.
type claimant struct {
	who  credential
	host string
}

const (
	// maxClaims is how many claims of one client, not proven yet, are looked at at a time.
	maxClaims = 32
	// freeGuesses is how many claims of one blob may fail within guessTime before others
	// have to pause, for maxPause at most.
	freeGuesses = 4
	guessTime   = 5 * time.Minute
	maxPause    = time.Minute
	// maxGuessed bounds the blobs that are remembered so.
	maxGuessed = 4096
)

// claims bounds what claims that nothing permits can cost. Safe for concurrent use.
type claims struct {
	mu     sync.Mutex
	open   map[claimant]int
	failed *lru[blob.Digest, guesses]
}

// guesses are the claims of a blob that failed.
type guesses struct {
	n     int
	last  time.Time
	until time.Time // no further one before
}

func newClaims() *claims {
	return &claims{open: map[claimant]int{}, failed: newLRU[blob.Digest, guesses](maxGuessed)}
}

// begin takes a claim, or says why not now. done must be called when it is proven or over;
// further calls do nothing.
func (c *claims) begin(by claimant, d blob.Digest, now time.Time) (done func(), _ error) {
	if g, ok := c.failed.get(d); ok && now.Before(g.until) {
		return nil, busy(g.until.Sub(now), "servers that were named for this blob did not keep it")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open[by] >= maxClaims {
		return nil, busy(time.Second, fmt.Sprintf("%d requests of this client for blobs by URL are under way that no server has proven yet", maxClaims))
	}
	c.open[by]++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.open[by]--; c.open[by] == 0 {
			delete(c.open, by)
		}
	}), nil
}

// fail notes that a server did not keep the blob.
func (c *claims) fail(d blob.Digest, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, _ := c.failed.get(d)
	if now.Sub(g.last) > guessTime {
		g.n = 0
	}
	g.n, g.last = g.n+1, now
	if g.n > freeGuesses {
		g.until = now.Add(min(time.Second<<min(g.n-freeGuesses-1, 16), maxPause))
	}
	c.failed.put(d, g, nil)
}

func busy(after time.Duration, why string) error {
	e := &apiError{status: http.StatusTooManyRequests, code: codeTooManyRequests, message: why + "; ask again later"}
	e.retryAfter = after
	return e
}
