package task

import (
	"context"
	"sync"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// How far a seed's read of the origin runs ahead of the nodes that it reads for.
const (
	// leastLead is what it may have that no other node was given, in bytes; where nodes
	// take more, what they take in leadTime.
	leastLead = 4 << 20
	leadTime  = 250 * time.Millisecond
	// leadPatience is how long it waits for them to take something new. When they have
	// not by then, they have the rest or do not want it, and the read may have twice as
	// much from then on. So nodes that want parts, or go, cost a read a few waits.
	leadPatience = 250 * time.Millisecond
	// leadRate is what they take in a window at least, in bytes: those that are slower
	// must not keep a place at the origin's host from others.
	leadRate = 4 << 20
	// leadWindow is over how long what they take is measured.
	leadWindow = time.Second
)

// lead holds a read of the origin back while nodes are behind it. What a seed has
// given to nobody is lost to the cluster with the seed, and the origin sends it again.
// nil holds nothing back. Safe for concurrent use.
type lead struct {
	layout blob.Layout

	mu      sync.Mutex
	given   *blob.Bitmap // pieces that another node was given
	counted *blob.Bitmap // pieces read since the first was given, and not given before
	ahead   int64        // bytes of counted pieces that nobody was given
	least   int64        // of these it may always have so many
	last    time.Time    // when somebody was given something new; zero: never
	since   time.Time    // when the present window began
	now     int64        // bytes given in it
	before  int64        // and in the one before
	changed chan struct{}
}

// lead is the lead of a new task: a node reads for its own client, too, and has none.
func (m *Manager) lead(l blob.Layout) *lead {
	if !m.cfg.Seed {
		return nil
	}
	return newLead(l)
}

func newLead(l blob.Layout) *lead {
	return &lead{layout: l, given: blob.NewBitmap(l.Pieces()), counted: blob.NewBitmap(l.Pieces()), least: leastLead, changed: make(chan struct{})}
}

// read notes that piece i has come from the origin.
func (l *lead) read(i int) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.last.IsZero() && !l.given.Has(i) && l.counted.Set(i) {
		l.ahead += l.layout.Length(i)
	}
}

// give notes that another node is given piece i.
func (l *lead) give(i int) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.given.Set(i) {
		return
	}
	now, fresh := time.Now(), l.layout.Length(i)
	if passed := now.Sub(l.since); passed >= leadWindow {
		l.before = 0
		if passed < 2*leadWindow {
			l.before = l.now
		}
		l.now, l.since = 0, now
	}
	l.now += fresh
	if l.counted.Has(i) {
		l.ahead -= fresh
	}
	l.last = now
	close(l.changed)
	l.changed = make(chan struct{})
}

// wait returns when the next piece may be read, or ctx has ended.
func (l *lead) wait(ctx context.Context) {
	if l == nil {
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		rest, changed := l.due()
		if rest <= 0 {
			return
		}
		timer.Reset(rest)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-timer.C:
		}
	}
}

// due is how long the next piece has to wait, unless changed is closed before.
func (l *lead) due() (rest time.Duration, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := max(l.now, l.before)
	if taken < leadRate {
		return 0, nil
	}
	if l.ahead < max(l.least, int64(float64(taken)*leadTime.Seconds()/leadWindow.Seconds())) {
		return 0, nil
	}
	rest = leadPatience - time.Since(l.last)
	if rest <= 0 {
		l.least = min(2*l.least, l.layout.Size())
	}
	return rest, l.changed
}

// Given implements peer.Tasks.
func (m *Manager) Given(d blob.Digest, piece int) {
	m.mu.Lock()
	t := m.tasks[d]
	m.mu.Unlock()
	if t != nil {
		t.lead.give(piece)
	}
}
