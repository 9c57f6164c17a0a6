package task

import (
	"sync"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
)

// pace watches how fast a lease comes, and tells once that the rest will be here
// before the next lease could have brought anything: its slots are then leased again
// without a pause between the two leases.
type pace struct {
	started time.Time
	lead    time.Duration // what a word to the scheduler, its answer, and asking a holder take
	tell    func()

	mu        sync.Mutex
	got, left int64
	asked     time.Duration // until the first part came
	timer     *time.Timer   // runs while the rest comes in one part
	over      bool          // told, or of no use any more
}

// newPace watches the missing runs of a lease. stop ends it.
func newPace(l control.Lease, missing []blob.Run, asking time.Duration, tell func()) *pace {
	return &pace{started: time.Now(), lead: l.RoundTrip + asking, tell: tell, left: bytesOf(l.Layout, missing)}
}

// progress takes n bytes more.
func (p *pace) progress(n int) {
	if p.took(int64(n)) {
		p.tell()
	}
}

// took tells whether this is the moment to tell. Where the rest comes in one part,
// that moment has no progress of its own: a timer stands for it.
func (p *pace) took(n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.got == 0 {
		p.asked = time.Since(p.started)
	}
	p.got += n
	p.left -= n
	if p.over || p.got <= 0 {
		return false
	}
	p.over = p.left <= 0
	took := float64(time.Since(p.started))
	rest := took * float64(p.left) / float64(p.got)
	if p.over {
		return false
	}
	if rest <= float64(p.lead) {
		p.over = true
		return true
	}
	if wait := time.Duration(rest) - p.lead; p.left <= n && p.timer == nil {
		p.timer = time.AfterFunc(wait, p.due)
	}
	return false
}

func (p *pace) due() {
	p.mu.Lock()
	over := p.over
	p.over = true
	p.mu.Unlock()
	if !over {
		p.tell()
	}
}

// stop ends the watch: nothing is told after it has returned, but what is being told.
// It returns how long it took until the first part came, 0 where none has.
func (p *pace) stop() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	if p.timer != nil {
		p.timer.Stop()
	}
	return p.asked
}
