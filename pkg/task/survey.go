package task

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/ring"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// How a node that fetches by itself learns what others have, and who reads the origin.
const (
	// surveyEvery is between two looks around.
	surveyEvery = 50 * time.Millisecond
	// askReader and askOthers are between two questions to a node that reads the
	// origin, for what it has grows, and to any other.
	askReader = 100 * time.Millisecond
	askOthers = 300 * time.Millisecond
	// askTogether bounds the questions that are open, askLimit how long one is.
	askTogether = 8
	askLimit    = 2 * time.Second
	// settleAlone is how long a node that knows others looks around before it reads the
	// origin; settleMost, where some of them have not answered by then. askSettling is
	// between two questions meanwhile: they meet each other by those whom all ask.
	settleAlone = 100 * time.Millisecond
	settleMost  = 250 * time.Millisecond
	askSettling = 40 * time.Millisecond
	// yieldAlone is how much longer each in the ring's order waits than the one before.
	yieldAlone = 600 * time.Millisecond
	// stuckReader is when one that reads the origin and gets nothing counts no more.
	stuckReader = 3 * time.Second
	// retryOrigin is between two reads of the origin where one failed and others still
	// have something to give.
	retryOrigin = 2 * time.Second
	// originRun bounds one read of the origin, in pieces, where others may get some of
	// what follows meanwhile.
	originRun = 32
	// maxOthers bounds whom a task asks.
	maxOthers = 64
)

// survey asks the others what they have, has this node read the origin when it is
// its turn, and returns when everything is here that clients wait for.
func (a *alone) survey(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var asks errgroup.Group
	asks.SetLimit(askTogether)
	defer func() { _ = asks.Wait() }() // its functions return nil
	origin := make(chan error, 1)      // how the read of the origin ended
	defer func() {
		stop(nil)
		if a.reading() {
			a.log.Debug("the read of the origin was stopped", zap.Error(<-origin))
		}
	}()
	tick := time.NewTicker(surveyEvery)
	defer tick.Stop()
	for {
		now := time.Now()
		missing, done := a.missing()
		if done {
			return nil
		}
		for _, o := range a.due(now) {
			if !asks.TryGo(func() error { a.ask(ctx, o); return nil }) {
				a.unasked(o)
			}
		}
		if run, ok := a.mine(missing, now); ok {
			a.startOrigin(ctx, run, origin)
		}
		select {
		case <-ctx.Done():
			return nil // the cause is told by who stopped it
		case err := <-origin:
			if err := a.endOrigin(err, missing); err != nil {
				return err
			}
		case <-a.met:
		case <-tick.C:
		}
	}
}

// meet adds nodes to those that are asked.
func (a *alone) meet(holders []peer.Holder) {
	for _, h := range holders {
		if _, ok := a.others[h.ID]; ok || h.ID == a.self.ID || a.self.ID == "" || len(a.others) >= maxOthers {
			continue
		}
		a.others[h.ID] = &other{Holder: h, have: blob.NewBitmap(a.t.blob.Layout().Pieces()), banned: a.t.liars[h.ID]}
	}
}

// due lists whom to ask now, and marks them as being asked.
func (a *alone) due(now time.Time) []*other {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []*other
	for _, o := range a.others {
		if !o.asking && (!o.banned || a.doubt && o.word == silent) && !now.Before(o.next) {
			out = append(out, o)
		}
	}
	// Who has never answered first, then who was asked longest ago.
	slices.SortFunc(out, func(x, y *other) int { return x.next.Compare(y.next) })
	for _, o := range out {
		o.asking = true
	}
	return out
}

func (a *alone) unasked(o *other) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o.asking = false
}

// ask asks one node what it has.
func (a *alone) ask(ctx context.Context, o *other) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	l, from := a.t.blob.Layout(), a.t.blob.Linked().NextClear(0)
	a.mu.Lock()
	if a.doubt && o.word == silent {
		from = 0
	}
	a.mu.Unlock()
	got, err := a.m.peers.Holdings(ctx, o.Holder, a.t.digest, l, from, a.self.Address)
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	o.asking = false
	if ctx.Err() != nil && err == nil {
		return // recalled
	}
	if err != nil {
		a.unheard(o, err, now)
		return
	}
	if got.Have.Count() != o.have.Count() || o.answered.IsZero() {
		o.grown = now
	}
	o.have, o.company, o.answered = got.Have, got.Company, now
	o.next = now.Add(askOthers)
	switch {
	case !a.orphan.IsZero() && a.reads == nil && now.Sub(a.orphan) < settleMost:
		o.next = now.Add(askSettling)
	case got.Reading:
		o.next = now.Add(askReader)
	case got.Sealed:
		o.next = now.Add(10 * askOthers)
	}
	a.link(o, got)
	a.meet(got.Others)
	a.wake()
	select {
	case a.met <- struct{}{}:
	default:
	}
}

// unheard notes that a node did not answer. The caller holds mu.
func (a *alone) unheard(o *other, err error, now time.Time) {
	o.failures++
	o.have, o.company, o.answered = blob.NewBitmap(o.have.Len()), peer.Company{}, time.Time{}
	o.next = now.Add(min(time.Second<<min(o.failures, 5), 30*time.Second))
	o.banned = o.banned || errors.Is(err, peer.ErrMalformed)
}

// link takes links that another node told. The caller holds mu.
func (a *alone) link(o *other, got peer.Holdings) {
	if len(got.Links) == 0 || got.FirstLink == 0 && len(got.Links) == a.t.digest.LinkSize() {
		return // link 0 is no news
	}
	if a.closed {
		return
	}
	err := a.t.blob.AddLinks(got.FirstLink, got.Links)
	a.lent = a.lent || err == nil
	switch {
	case err == nil && o.word != agrees:
		o.word = agrees
	case err != nil && o.word != contradicts:
		a.log.Warn("a node tells other links than are known", zap.String("node", o.ID), zap.Error(err))
		o.word, a.doubt = contradicts, true
	default:
		return
	}
	a.vote()
}

func (a *alone) reading() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reads != nil
}

// mine is the run of missing pieces that this node reads from the origin now, where
// it is its turn: nobody that it knows has them or is about to.
func (a *alone) mine(missing *blob.Bitmap, now time.Time) (blob.Run, bool) {
	linked := a.t.blob.Linked()
	a.mu.Lock()
	defer a.mu.Unlock()
	run := a.orphans(missing, provable(missing, linked), now)
	if a.closed && a.reads == nil && run.Count > 0 && !now.Before(a.retry) {
		return a.fromLink(run, linked), true
	}
	if a.reads != nil {
		if a.turn(now) < 0 {
			a.reads(errYield)
		}
		return blob.Run{}, false
	}
	if run.Count == 0 {
		a.orphan = time.Time{}
		return blob.Run{}, false
	}
	if a.orphan.IsZero() {
		a.orphan = now
	}
	turn := a.turn(now)
	if turn < 0 || now.Before(a.orphan.Add(a.unsure()+time.Duration(turn)*yieldAlone)) || now.Before(a.retry) {
		return blob.Run{}, false
	}
	run = a.fromLink(run, linked)
	if len(a.others) > 0 {
		run.Count = min(run.Count, originRun)
	}
	return run, true
}

// fromLink has a run begin where the chain ends: the origin is read in order from there.
func (*alone) fromLink(run blob.Run, linked *blob.Bitmap) blob.Run {
	for !linked.Has(run.First) { // link 0 is known
		run.First--
		run.Count++
	}
	return run
}

// orphans is the first run of missing pieces that no other node gives: none has them,
// or only some that do not send, or tell nothing that would prove them. The caller holds
// mu.
func (a *alone) orphans(missing, provable *blob.Bitmap, now time.Time) blob.Run {
	run := blob.Run{}
	var givers []*other
	for _, o := range a.others {
		if o.gives() && !a.keeps(o, now) {
			givers = append(givers, o)
		}
	}
	for i := missing.NextSet(0); i < missing.Len(); i = missing.NextSet(i + 1) {
		held := provable.Has(i) && slices.ContainsFunc(givers, func(o *other) bool { return o.have.Has(i) })
		switch {
		case held && run.Count > 0, run.Count > 0 && i != run.End():
			return run
		case held:
		case run.Count == 0:
			run = blob.Run{First: i, Count: 1}
		default:
			run.Count++
		}
	}
	return run
}

// gives tells whether o has not failed to send what it has.
func (o *other) gives() bool {
	return !o.banned && o.word != contradicts && o.failures < failsMost
}

// keeps tells whether o has sent nothing for longer than a piece takes, and a second, of
// what is being read from it.
func (a *alone) keeps(o *other, now time.Time) bool {
	piece := time.Duration(a.t.blob.Layout().PieceLength()) * time.Second / quietRate
	return o.reads > 0 && now.Sub(o.since) > time.Second+piece
}

// quietRate is how fast a piece comes at least, in bytes per second, from who does not keep
// others waiting.
const quietRate = 1 << 20

// failsMost is how many reads in a row may fail until a node counts as one that has
// nothing. It is still asked now and then.
const failsMost = 2

// unsure is how long this node waits to hear of others. The caller holds mu.
func (a *alone) unsure() time.Duration {
	wait := time.Duration(0)
	for _, o := range a.others {
		if o.answered.IsZero() && o.failures == 0 {
			return settleMost
		}
		wait = settleAlone
	}
	return wait
}

// turn is this node's place among those that may read the origin, the first being 0;
// -1 where another reads it that comes before this one, or is no client's node and
// reads for all. The caller holds mu.
func (a *alone) turn(now time.Time) int {
	ids, reads := []string{a.self.ID}, map[string]bool{}
	for _, o := range a.others {
		switch {
		case o.banned || o.answered.IsZero():
		case o.company.Reading && now.Sub(o.grown) < stuckReader && now.Sub(later(a.last, a.orphan)) < stuckReader && !a.keeps(o, now):
			if !o.company.Wanting {
				return -1
			}
			reads[o.ID] = true
			ids = append(ids, o.ID)
		case o.company.Wanting:
			ids = append(ids, o.ID)
		}
	}
	turn := 0
	for _, id := range ring.Rank(a.t.digest.String(), ids) {
		if id == a.self.ID {
			break
		}
		if reads[id] {
			return -1
		}
		turn++
	}
	if a.reads == nil && len(reads) > 0 {
		return -1
	}
	return turn
}

// later is the later of two times.
func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// errYield ends a read of the origin that another node does as well.
var errYield = errors.New("another node reads them")

// startOrigin reads a run from the origin in the background.
func (a *alone) startOrigin(ctx context.Context, run blob.Run, done chan<- error) {
	ctx, end := context.WithCancelCause(ctx)
	a.mu.Lock()
	a.reads, a.run = end, run
	a.mu.Unlock()
	a.m.mu.Lock()
	ref, header := a.t.ref, a.t.header.Clone()
	a.m.mu.Unlock()
	a.m.alone.Inc()
	a.log.Debug("reading the origin by itself", zap.Int("first", run.First), zap.Int("pieces", run.Count))
	a.m.running.Go(func() {
		_, err := a.m.readOrigin(ctx, a.t, ref, header, run)
		if errors.Is(context.Cause(ctx), errYield) {
			err = nil
		}
		end(nil)
		done <- err
	})
}

// endOrigin settles a read of the origin. Its error is the task's, unless others have
// or read something that is missing here.
func (a *alone) endOrigin(err error, missing *blob.Bitmap) error {
	if differs := (*pieceError)(nil); errors.As(err, &differs) && errors.Is(err, blob.ErrMismatch) && !errors.Is(err, store.ErrBadDigest) {
		err = a.refute(differs)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reads, a.run = nil, blob.Run{}
	if err == nil {
		return nil
	}
	helped := false
	for _, o := range a.others {
		helped = helped || o.company.Reading && !o.banned || overlap(o, missing)
	}
	if !helped || errors.Is(err, store.ErrBadDigest) {
		return err
	}
	a.retry = time.Now().Add(retryOrigin)
	return nil
}

func overlap(o *other, missing *blob.Bitmap) bool {
	for i := missing.NextSet(0); o.gives() && i < missing.Len(); i = missing.NextSet(i + 1) {
		if o.have.Has(i) {
			return true
		}
	}
	return false
}
