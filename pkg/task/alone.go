package task

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/limit"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// How a node fetches by itself.
const (
	// lanes is how many reads from other nodes run at a time: twice as many as a node
	// serves, because some of those that are asked are busy. With as many, links that
	// could carry 100 MB/s carried 86.
	lanes = 8
	// perHolder bounds those from one of them: who asks one node alone learns what
	// that one has, and no more.
	perHolder = 2
	// readBytes is about what one read brings. Small reads hand a rare piece on soon.
	readBytes = 512 << 10
	// claimPieces is how many pieces a holder may choose from: what one read asks for,
	// another does not.
	claimPieces = 16
	// window bounds the missing pieces that are looked at, from the first.
	window = 4096
	// slowRead and slowRate bound a read: it is given up after slowRead, and the time
	// that its bytes take at slowRate.
	slowRead = 2 * time.Second
	slowRate = 256 << 10
	// missingRest is how long, and up to as long again, one is not asked that had
	// nothing to give.
	missingRest = 30 * time.Millisecond
	// lateClaim is when a piece that is on its way is fetched from another as well,
	// where nothing else is left to do.
	lateClaim = time.Second
)

// alone makes a task's blob whole while no scheduler decides for it: pieces come from
// the nodes that this one knows of, what fewest have first, and from the origin what
// none of them has or is about to have. It is its own scheduler, of one node; those
// of other nodes know nothing of it.
type alone struct {
	m    *Manager
	t    *task
	self peer.Holder // as others know it; no ID before it has joined
	end  context.CancelCauseFunc
	log  *zap.Logger

	mu      sync.Mutex
	others  map[string]*other
	claims  map[int]time.Time       // pieces on their way here, since when
	met     chan struct{}           // capacity 1: somebody has answered
	changed chan struct{}           // closed, and made anew, when a lane may find something
	closed  bool                    // links are taken from nobody: see task.own
	lent    bool                    // others have said links
	doubt   bool                    // somebody's bytes or links did not fit
	own     bool                    // some links did not come from other nodes
	last    time.Time               // when a piece came here last, or it began
	reads   context.CancelCauseFunc // ends the read of the origin; nil when none runs
	run     blob.Run                // what that reads
	orphan  time.Time               // since when something is missing that nobody has
	retry   time.Time               // no read of the origin before
}

// other is another node that may have pieces.
type other struct {
	peer.Holder
	have     *blob.Bitmap
	company  peer.Company
	answered time.Time // when it last said what it has; zero: never
	grown    time.Time // when that was last more than before
	next     time.Time // when to ask again
	asking   bool
	reads    int       // that run
	since    time.Time // when the first of them began, or it sent a piece last
	rest     time.Time // no read before
	failures int       // in a row
	banned   bool      // it sent what no honest node sends
	word     word      // on the links
}

// word is what a node's links say of those that are known here.
type word int

const (
	silent word = iota
	agrees
	contradicts
)

// fetchAlone has t fetch by itself until a scheduler answers. The caller holds mu.
func (m *Manager) fetchAlone(t *task) {
	ctx, end := context.WithCancelCause(t.ctx)
	self, seeds := m.scheduler.Known()
	a := &alone{
		m: m, t: t, self: self, end: end, log: m.log.With(zap.Stringer("digest", t.digest)),
		others: map[string]*other{}, claims: map[int]time.Time{}, changed: make(chan struct{}),
		met: make(chan struct{}, 1),
	}
	now := time.Now()
	a.own = t.blob.Linked().Count() > 1
	a.closed, a.last, t.lent = t.own, now, t.lent || a.own
	a.meet(slices.Concat(m.contacts.after(t.digest, now), seeds, m.contacts.any(now)))
	t.alone, t.asked = a, now
	m.use(t, func() {
		err := a.fetch(ctx)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause // not a source's fault: it was told to stop
		}
		end(nil)
		m.endAlone(t, err)
	})
}

// recall ends a: no links of others come by it once recall has returned.
func (a *alone) recall() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.end(errRecalled)
}

// fetch returns nil when everything is here that clients wait for.
func (a *alone) fetch(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	g.Go(func() error {
		defer stop(errDone)
		return a.survey(ctx)
	})
	for range lanes {
		g.Go(func() error { return a.lane(ctx) })
	}
	return g.Wait()
}

// lane reads from one holder after the other, until ctx ends.
func (a *alone) lane(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		a.mu.Lock()
		changed := a.changed
		a.mu.Unlock()
		if o, claim, most := a.pick(time.Now()); o != nil {
			if err := a.read(ctx, o, claim, most); err != nil {
				return err
			}
			continue
		}
		timer.Reset(idleLane)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer.C: // a holder's rest may be over
		}
	}
	return nil
}

// idleLane is when a lane without work looks again.
const idleLane = 50 * time.Millisecond

// wake lets idle lanes look. The caller holds mu.
func (a *alone) wake() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// missing is what clients wait for and is neither here nor on its way by a lease. done:
// all of it is here.
func (a *alone) missing() (out *blob.Bitmap, done bool) {
	l := a.t.blob.Layout()
	out = blob.NewBitmap(l.Pieces())
	left := window
	needed, leased := a.m.standing(a.t)
	for _, needed := range needed {
		for _, r := range a.t.blob.Missing(needed) {
			r.Count = min(r.Count, left)
			left -= r.Count
			out.SetRun(r)
		}
	}
	done = out.Count() == 0
	for _, r := range leased {
		for i := r.First; i < r.End(); i++ {
			out.Clear(i)
		}
	}
	return out, done
}

// standing is what clients of t wait for, and the leases that run for it.
func (m *Manager) standing(t *task) (needed, leased []blob.Run) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range t.leases {
		leased = append(leased, l.run)
	}
	return t.runs(), leased
}

// provable takes out of a set what no known links prove.
func provable(pieces, linked *blob.Bitmap) *blob.Bitmap {
	out := blob.NewBitmap(pieces.Len())
	for i := pieces.NextSet(0); i < pieces.Len(); i = pieces.NextSet(i + 1) {
		if linked.Has(i) && (i+1 == pieces.Len() || linked.Has(i+1)) {
			out.Set(i)
		}
	}
	return out
}

// pick chooses a holder, and pieces of which it shall send so many as most says; they
// are claimed. No holder: there is nothing to do now.
func (a *alone) pick(now time.Time) (from *other, claim *blob.Bitmap, most int) {
	missing, _ := a.missing()
	missing = provable(missing, a.t.blob.Linked())
	a.mu.Lock()
	defer a.mu.Unlock()
	free, late := missing.Clone(), blob.NewBitmap(missing.Len())
	for i, since := range a.claims {
		if free.Clear(i) && now.Sub(since) >= lateClaim {
			late.Set(i)
		}
	}
	if free.Count() == 0 {
		free = late
	}
	copies := a.copies(free)
	var candidates []candidate
	for _, o := range a.others {
		if !o.ready(now) {
			continue
		}
		if rarest := o.rarest(free, copies); rarest > 0 {
			candidates = append(candidates, candidate{o, rarest, rand.Uint32()})
		}
	}
	if len(candidates) == 0 && free.Count() > 0 {
		candidates = a.hopes(now)
	}
	if len(candidates) == 0 {
		return nil, nil, 0
	}
	best := slices.MinFunc(candidates, candidate.compare)
	// A lane must leave something to the others.
	n := max(1, min(claimPieces, (free.Count()+lanes-1)/lanes))
	claim = blob.NewBitmap(missing.Len())
	for _, i := range best.choose(free, copies, n) {
		claim.Set(i)
		a.claims[i] = now
	}
	if best.o.reads++; best.o.reads == 1 {
		best.o.since = now
	}
	return best.o, claim, max(1, int(readBytes/a.t.blob.Layout().PieceLength()))
}

// copies counts who has each of the pieces; it is indexed by piece. The caller holds
// mu.
func (a *alone) copies(pieces *blob.Bitmap) []int {
	out := make([]int, pieces.Len())
	for _, o := range a.others {
		for i := pieces.NextSet(0); i < pieces.Len(); i = pieces.NextSet(i + 1) {
			if o.have.Has(i) {
				out[i]++
			}
		}
	}
	return out
}

// candidate is a holder that has something of what is asked for.
type candidate struct {
	o      *other
	rarest int // copies of what fewest have of that; 0: it has nothing that is known
	tie    uint32
}

// hopes are nodes that may have got some of the pieces since they said what they have:
// they are asked straight away. The caller holds mu.
func (a *alone) hopes(now time.Time) []candidate {
	var out []candidate
	for _, o := range a.others {
		if o.ready(now) && (o.company.Wanting || o.company.Reading) {
			out = append(out, candidate{o: o, tie: rand.Uint32()})
		}
	}
	return out
}

// ready tells whether something may be read from o now.
func (o *other) ready(now time.Time) bool {
	return !o.banned && o.word != contradicts && o.reads < perHolder && !now.Before(o.rest)
}

// rarest is how many have what fewest have of the pieces that o has; 0: it has none.
func (o *other) rarest(pieces *blob.Bitmap, copies []int) int {
	least := 0
	for i := pieces.NextSet(0); i < pieces.Len(); i = pieces.NextSet(i + 1) {
		if o.have.Has(i) && (least == 0 || copies[i] < least) {
			least = copies[i]
		}
	}
	return least
}

// choose gives n of the pieces that the holder has at most, what fewest have first; any
// where it is not known to have some.
func (c candidate) choose(pieces *blob.Bitmap, copies []int, n int) []int {
	var out []int
	for i := pieces.NextSet(0); i < pieces.Len(); i = pieces.NextSet(i + 1) {
		if c.rarest == 0 || c.o.have.Has(i) {
			out = append(out, i)
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	if c.rarest > 0 {
		slices.SortStableFunc(out, func(i, j int) int { return copies[i] - copies[j] })
	}
	return out[:min(n, len(out))]
}

// compare orders by who has what fewest have, then by who has fewer reads of ours.
func (c candidate) compare(d candidate) int {
	if c.rarest != d.rarest {
		return c.rarest - d.rarest
	}
	if c.o.reads != d.o.reads {
		return c.o.reads - d.o.reads
	}
	if c.tie < d.tie {
		return -1
	}
	return 1
}

// read reads from a holder; an error ends the task's fetching.
func (a *alone) read(ctx context.Context, o *other, claim *blob.Bitmap, most int) error {
	l := a.t.blob.Layout()
	patience := slowRead + time.Duration(int64(most)*l.PieceLength()/slowRate)*time.Second
	ctx, cancel := limit.WithTimeout(ctx, patience, errOverdue)
	defer cancel()
	err := a.m.peers.ReadSome(ctx, o.Holder, a.t.digest, l, claim, most, a.t.arrives(func(from identity.Role, i int) {
		a.m.took(a.t, from, i)
		a.mu.Lock()
		defer a.mu.Unlock()
		o.failures, o.since = 0, time.Now()
		a.last = o.since
		delete(a.claims, i)
	}))
	a.mu.Lock()
	defer a.mu.Unlock()
	o.reads--
	for i := claim.NextSet(0); i < claim.Len(); i = claim.NextSet(i + 1) {
		delete(a.claims, i)
	}
	defer a.wake()
	return a.settle(ctx, o, claim, err)
}

// endAlone settles what a task fetched by itself: an error is the task's, unless a
// scheduler has taken over or a second try is due.
func (m *Manager) endAlone(t *task, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := t.alone
	t.alone = nil
	t.asked = time.Now()
	t.lent = t.lent || a.hasLent()
	defer t.changed()
	switch {
	case err == nil, errors.Is(err, errRecalled):
		return
	case errors.Is(err, store.ErrBadDigest):
		m.missed(t, a, err)
		return
	}
	if !t.turn() {
		t.end(err)
	}
}

// hasLent tells whether others have said links.
func (a *alone) hasLent() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lent
}

// missed starts a task's blob over whose bytes have missed the digest. Where others said
// some of its links, they may have been wrong, and the origin is read with none of those.
// Else its bytes are wrong: another origin may do better, or this one once more. The
// caller holds mu.
func (m *Manager) missed(t *task, a *alone, err error) {
	a.distrust()
	resetErr := t.blob.Reset()
	switch {
	case resetErr != nil:
		t.end(errors.Join(err, resetErr))
	case t.lent && !t.own:
		t.own = true
	default:
		if t.broken++; t.broken > 1 && !t.turn() {
			t.end(err)
		}
	}
}
