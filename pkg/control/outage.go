package control

import (
	"sync"
	"time"

	"go.uber.org/zap"
)

// Repeats thins out a message that would come again and again. The first is to be
// logged, then one after a second, after ten, after a minute, and every ten minutes.
// Its zero value is ready. It is not safe for concurrent use.
type Repeats struct {
	count int
	steps int
	first time.Time
	next  time.Time
}

// Due counts one more at now, and tells whether it is to be logged.
func (r *Repeats) Due(now time.Time) bool {
	if r.count++; r.count == 1 {
		r.first = now
	} else if now.Before(r.next) {
		return false
	}
	waits := [...]time.Duration{time.Second, 10 * time.Second, time.Minute, 10 * time.Minute}
	r.next = now.Add(waits[min(r.steps, len(waits)-1)])
	r.steps++
	return true
}

// Count is how many there were.
func (r *Repeats) Count() int { return r.count }

// Since is when the first was; zero where there was none.
func (r *Repeats) Since() time.Time { return r.first }

const (
	// steady is how long a stream must last before its end is news again: streams that
	// end soon after each other are one trouble.
	steady = time.Minute
	// untried is after how long an address that nobody tries any more is forgotten.
	untried = 10 * time.Minute
)

// outages logs which schedulers this node does not attend: when that begins, now and
// then while it lasts, and when it is over. It is safe for concurrent use.
type outages struct {
	log *zap.Logger

	mu sync.Mutex
	at map[string]*outage // by address
}

// outage is the trouble with the scheduler at one address.
type outage struct {
	id      string // "" as long as nobody has answered there
	since   time.Time
	last    time.Time // when it last failed, or was over
	over    bool
	said    bool // a warning was logged since it was last over
	repeats Repeats
}

func newOutages(log *zap.Logger) *outages {
	return &outages{log: log, at: map[string]*outage{}}
}

// failed notes that a scheduler cannot be attended, or not any more.
func (o *outages) failed(to Holder, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	o.forget(now)
	t := o.at[to.Address]
	if t == nil {
		t = &outage{since: now}
		o.at[to.Address] = t
	}
	if t.over {
		t.since, t.over = now, false
	}
	t.id, t.last = to.ID, now
	if !t.repeats.Due(now) {
		return
	}
	t.said = true
	o.log.Warn("no stream to a scheduler; trying again until there is one",
		zap.String("address", to.Address), zap.String("scheduler", to.ID), zap.Error(err),
		zap.Int("failed", t.repeats.Count()), zap.Duration("away", now.Sub(t.since)))
}

// welcomed notes that a scheduler attends this node. A scheduler may have gone at one of
// its addresses and come back at another.
func (o *outages) welcomed(by Holder, release string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	o.forget(now)
	var away time.Duration
	failed, known, said := 0, false, false
	for address, t := range o.at {
		if address != by.Address && t.id != by.ID {
			continue
		}
		known, said = true, said || t.said
		if !t.over {
			away = max(away, now.Sub(t.since))
		}
		failed += t.repeats.Count()
		t.over, t.said, t.last = true, false, now
	}
	fields := []zap.Field{zap.String("scheduler", by.ID), zap.String("address", by.Address), zap.String("release", release)}
	switch {
	case !known:
		o.log.Info("attending a scheduler", fields...)
	case said:
		o.log.Info("a scheduler is back", append(fields, zap.Duration("away", away), zap.Int("failed", failed))...)
	}
}

// forget drops what is long over. The caller holds mu.
func (o *outages) forget(now time.Time) {
	for address, t := range o.at {
		if past := now.Sub(t.last); past > untried || t.over && past > steady {
			delete(o.at, address)
		}
	}
}
