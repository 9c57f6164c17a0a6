package origin

import (
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"net/http"
	"time"
)

// pauseKey says whom a 429 is for. Registries count by account, by kind of request and
// by repository: who may not fetch manifests may fetch blobs, and others may both. Where
// the account is what counts, each repository learns that by a 429 of its own.
type pauseKey struct {
	cred    [sha256.Size]byte // of the client's header, see secret
	anybody bool              // without the node's own credential
	entry   string            // of the node's own credentials, where there are several
	repo    string
	kind    Kind
	head    bool // some count only GET, others only HEAD
}

// pauseKeyOf is the key of requests for ref with a header that passHeader made.
func pauseKeyOf(method string, ref Ref, header http.Header, who asker) pauseKey {
	return pauseKey{
		cred: secret(ref, header).cred, anybody: who == askAnybody,
		repo: ref.Repository, kind: ref.Kind, head: method == http.MethodHead,
	}
}

// pause is what a gate keeps of the 429s to one key.
type pause struct {
	began   time.Time // when the 429 came that it is of
	until   time.Time // this node's reads wait until then
	due     time.Time // when the host said to come back, past until where that is far
	hinted  bool      // the host did say
	refusal *refusal
	strikes int // 429s in a row
	probe   *probe
}

// probe is a client's question that is put although there is a pause. Others with the
// same key wait for what comes of it.
type probe struct {
	done    chan struct{}
	refusal *refusal // once done; nil: there was an answer, or none
}

const (
	// maxPause bounds one pause: after it a single read tells whether the host still
	// refuses. A longer wait that the host asked for is in that refusal's Retry-After.
	maxPause = time.Minute
	// firstPause is that of a 429 without Retry-After; it doubles with each in a
	// row.
	firstPause = time.Second
	maxStrikes = 5
	// maxPauses bounds the keys of one host that a gate keeps.
	maxPauses = 256
)

// matters tells whether a pause, were it forgotten, would be missed.
func (p *pause) matters(now time.Time) bool { return p.probe != nil || now.Before(p.until) }

// pause is how long the reads of a key are to wait, whether the host said so, and
// the refusal that began it with the Retry-After that is left of it.
func (g *gate) pause(key pauseKey, now time.Time) (left time.Duration, hinted bool, why *refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pauses[key]
	if p == nil || !now.Before(p.until) {
		return 0, false, nil
	}
	return p.until.Sub(now), p.hinted, p.refusal.later(p.due.Sub(now))
}

// wait sleeps through the pause if it is at most limit, and some more, so that
// not everybody who waited comes at once. Else, or when one pause follows the
// other, it returns the refusal.
func (g *gate) wait(ctx context.Context, key pauseKey, limit time.Duration) (*refusal, error) {
	last := time.Now().Add(limit)
	for {
		now := time.Now()
		left, _, why := g.pause(key, now)
		if left == 0 {
			return nil, nil
		}
		if now.Add(left).After(last) {
			return why, nil
		}
		if err := sleep(ctx, jittered(left)); err != nil {
			return nil, err
		}
	}
}

// waitAsk sleeps through a pause that is over by then, for a client who would ask
// again at once, or give up. again: this question has been refused, so the pause is
// its own even where the host did not say how long it is to be.
func (g *gate) waitAsk(ctx context.Context, key pauseKey, by time.Time, again bool) error {
	for {
		now := time.Now()
		left, hinted, _ := g.pause(key, now)
		if left == 0 || !hinted && !again || now.Add(left).After(by) {
			return nil
		}
		if err := sleep(ctx, jittered(left)); err != nil {
			return err
		}
	}
}

func jittered(d time.Duration) time.Duration { return d + rand.N(min(d/4, 2*time.Second)+1) }

// saw takes note of an answer of the host itself to a request that was sent then. r
// is the copy of a 429, else nil.
func (g *gate) saw(key pauseKey, sent, now time.Time, r *refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pauses[key]
	// What was under way when the pause began says nothing about its end or the next.
	late := p != nil && sent.Before(p.began)
	if r == nil {
		if p != nil && !late {
			p.strikes, p.until = 0, now
			g.tidy(key, p)
		}
		return
	}
	if p == nil {
		g.makeRoom(now)
		p = &pause{}
		g.pauses[key] = p
	}
	d, hinted := retryAfter(r.header, now)
	if !hinted {
		if late {
			return
		}
		d = firstPause << min(p.strikes, maxStrikes)
	}
	if !late {
		p.strikes++
		p.began = now
	}
	if until := now.Add(min(d, maxPause)); until.After(p.until) || !late {
		p.until, p.due, p.hinted, p.refusal = until, now.Add(d), hinted, r
	}
}

// makeRoom forgets pauses that are over, and where that is not enough others.
func (g *gate) makeRoom(now time.Time) {
	if len(g.pauses) < maxPauses {
		return
	}
	for key, p := range g.pauses {
		if !p.matters(now) {
			delete(g.pauses, key)
		}
	}
	for key, p := range g.pauses {
		if len(g.pauses) < maxPauses {
			return
		}
		if p.probe == nil {
			delete(g.pauses, key)
		}
	}
}

// tidy forgets a pause that ended with an answer.
func (g *gate) tidy(key pauseKey, p *pause) {
	if p.probe == nil && g.pauses[key] == p {
		delete(g.pauses, key)
	}
}

// admit lets a question of a client pass. Without a pause it does so at once. In one
// it lets one question at a time: done, which then is not nil, must be called with
// what came of it. Others wait for that, and get the refusal if it was one.
func (g *gate) admit(ctx context.Context, key pauseKey) (done func(*refusal), fresh *refusal, err error) {
	for {
		g.mu.Lock()
		p := g.pauses[key]
		if p == nil || p.probe == nil && !time.Now().Before(p.until) {
			g.mu.Unlock()
			return func(*refusal) {}, nil, nil
		}
		if p.probe == nil {
			mine := &probe{done: make(chan struct{})}
			p.probe = mine
			g.mu.Unlock()
			return func(r *refusal) { g.probed(key, p, mine, r) }, nil, nil
		}
		theirs := p.probe
		g.mu.Unlock()
		select {
		case <-theirs.done:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		if theirs.refusal != nil {
			return nil, theirs.refusal, nil
		}
	}
}

func (g *gate) probed(key pauseKey, p *pause, mine *probe, r *refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	mine.refusal, p.probe = r, nil
	close(mine.done)
	if r == nil && !time.Now().Before(p.until) {
		g.tidy(key, p)
	}
}
