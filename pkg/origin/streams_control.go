package origin

import (
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// How the number of streams is found.
const (
	tick = 25 * time.Millisecond
	// trialSpan is over how long a number of streams is measured, longer where less than
	// trialBytes come in it, and at most trialLimit in all.
	trialSpan  = 80 * time.Millisecond
	trialBytes = 256 << 10
	trialLimit = time.Second
	// answerLimit is how long helpers have to get an answer in a trial.
	answerLimit = 3 * time.Second
	// growth is the share of what more streams could bring at best that they must bring,
	// for yet more to be tried; keeping is that for which they are kept; rising is what
	// shows that their connections still gain speed.
	growth, keeping, rising = 0.5, 0.25, 1.1
	// full is the share from which on each stream has a rate of its own: then there are
	// four times as many next, else twice.
	full = 0.8
	// firstAgain and lastAgain bound the time between two trials.
	firstAgain, lastAgain = 10 * time.Second, 5 * time.Minute
	plateauSpan           = time.Second
	// halveSpan: refusals within it are one.
	halveSpan = 300 * time.Millisecond
)

// ctl is how many streams a read has and why. It is guarded by the mu of its streams.
type ctl struct {
	most   int
	opened time.Duration // that the first stream took to begin
	kick   chan struct{}

	started bool
	target  int
	single  float64 // rate of the one stream, in bytes a second
	trial   *trial
	next    time.Time // no trial before
	again   time.Duration
	off     bool // for this read
	halved  time.Time

	received int64
	waited   time.Duration // that Read waited for bytes
	waits    time.Time     // since when it does; zero: it does not
	rates    []float64     // of the last streams that ended
	plateau  sample
}

// sample is where a measurement began.
type sample struct {
	at       time.Time
	received int64
	waited   time.Duration
	limited  int64
}

// trial is a try whether more streams bring more.
type trial struct {
	from, to int
	base     float64 // rate of from streams
	last     float64 // what was measured last
	began    time.Time
	added    []*segment
	sample   sample // zero until all have an answer
	measured time.Time
}

// begin starts with a trial of a second stream. It tells whether it is the first one.
func (c *ctl) begin(rate float64, now time.Time) bool {
	first := !c.started
	c.started, c.target, c.single, c.plateau = true, 1, rate, sample{}
	c.next = now
	return first
}

// hurry has the controller look at once.
func (c *ctl) hurry() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// finished takes note of the rate of a stream that brought all it was asked for.
func (c *ctl) finished(rate float64) {
	c.rates = append(c.rates, rate)
	if len(c.rates) > 8 {
		c.rates = c.rates[1:]
	}
}

// control finds the number of streams and starts them, until there is one alone.
func (s *streams) control() {
	defer s.running.Done()
	defer s.budget.disengage()
	timer := time.NewTicker(tick)
	defer timer.Stop()
	for s.adjust(time.Now()) {
		select {
		case <-s.ctx.Done():
			return
		case <-timer.C:
		case <-s.ctl.kick:
		}
	}
}

// adjust is one step of control. It tells whether there is another.
func (s *streams) adjust(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.ctx.Err() != nil {
		return false
	}
	s.measure(now)
	switch c := &s.ctl; {
	case c.trial != nil:
		s.judge(c.trial, now)
	case c.target == 1 && !c.off && !now.Before(c.next) && len(s.segs) == 1:
		s.try(1, 2, c.single, now)
	case c.target > 1:
		s.hold(now)
	}
	s.fill(now)
	s.rescue(now)
	return !s.alone()
}

// alone leaves the one stream to Read, when there is one again. The caller holds mu.
func (s *streams) alone() bool {
	if c := &s.ctl; c.trial != nil || c.target > 1 || len(s.segs) != 1 {
		return false
	}
	g := s.segs[0]
	if !g.open || g.done || g.rescuer != nil || g.start > s.pos {
		return false
	}
	g.hand = true
	g.room.Broadcast()
	return true
}

// sampled is a measurement that begins now. The caller holds mu.
func (s *streams) sampled(now time.Time) sample {
	c := &s.ctl
	waited := c.waited
	if !c.waits.IsZero() {
		waited += now.Sub(c.waits)
	}
	return sample{at: now, received: c.received, waited: waited, limited: s.limited.Load()}
}

// since is the rate since a sample, and whether it was the origin's: that neither the
// reader of the bytes nor a limit was slower. The caller holds mu.
func (s *streams) since(from sample, now time.Time) (rate float64, origins bool) {
	to := s.sampled(now)
	took := now.Sub(from.at)
	limited := time.Duration(to.limited-from.limited) / time.Duration(max(1, s.active()))
	return float64(to.received-from.received) / took.Seconds(), to.waited-from.waited >= took/2 && limited < took/3
}

// try starts a trial of times as many streams. The caller holds mu.
func (s *streams) try(from, times int, base float64, now time.Time) {
	c := &s.ctl
	to := min(times*from, c.most)
	t := &trial{from: from, to: to, base: base, last: base, began: now}
	c.target = to
	for s.active() < to {
		g := s.launch(now, from == 1)
		if g == nil {
			break
		}
		t.added = append(t.added, g)
	}
	if len(t.added) == 0 {
		c.target, c.next = from, now.Add(firstAgain/4)
		return
	}
	c.trial = t
}

// judge looks how a trial goes. The caller holds mu.
func (s *streams) judge(t *trial, now time.Time) {
	if t.sample.at.IsZero() && !s.answered(t, now) {
		return
	}
	span := max(trialSpan, min(trialLimit, time.Duration(trialBytes/t.base*float64(time.Second))))
	over := t.from == 1 && (len(s.segs) == 0 || s.segs[0] == t.added[0] || s.segs[0].done) // the first has been cut
	if took := now.Sub(t.sample.at); took < span && !(over && took >= span/2) {
		if over {
			s.giveUp(t, now, false)
		}
		return
	}
	rate, origins := s.since(t.sample, now)
	more := float64(t.to-t.from) / float64(t.from)
	c := &s.ctl
	switch {
	case !origins:
		s.giveUp(t, now, false)
	case rate >= t.base*(1+growth*more):
		s.log.Debug("more streams of the origin bring more",
			zap.Stringer("ref", s.like.ref), zap.Int("streams", t.to), zap.Float64("rate", rate), zap.Float64("before", t.base))
		c.trial, c.again = nil, 0
		times := 2
		if rate >= t.base*(1+full*more) {
			times = 4
		}
		if t.to < c.most {
			s.try(t.to, times, rate, now)
		}
	case rate >= t.last*rising && now.Sub(t.measured) < trialLimit && !over:
		t.last, t.sample = rate, s.sampled(now)
	case rate >= t.base*(1+keeping*more):
		c.trial = nil
		c.wait(now)
	default:
		s.giveUp(t, now, true)
	}
}

// answered tells whether the helpers of a trial have begun to bring something. Those
// that could not are no part of it. The caller holds mu.
func (s *streams) answered(t *trial, now time.Time) bool {
	late := now.Sub(t.began) >= answerLimit
	for _, g := range t.added {
		if !g.proven && !g.cut && late {
			s.drop(g)
		}
	}
	t.added = slices.DeleteFunc(t.added, func(g *segment) bool { return g.cut })
	if slices.ContainsFunc(t.added, func(g *segment) bool { return !g.proven }) {
		return false
	}
	t.to = t.from + len(t.added)
	if len(t.added) == 0 {
		s.giveUp(t, now, false)
		return false
	}
	s.ctl.target = min(s.ctl.target, max(t.to, 1))
	t.sample, t.measured = s.sampled(now), now
	return true
}

// giveUp ends a trial that brought nothing. A helper that has about half of the line
// goes on in place of the first stream, when that has come to where it began: nothing
// is read twice, and no request is lost. The caller holds mu.
func (s *streams) giveUp(t *trial, now time.Time, tell bool) {
	c := &s.ctl
	c.trial = nil
	c.target = min(c.target, t.from)
	c.wait(now)
	if t.from > 1 || len(t.added) == 0 || len(s.segs) == 0 {
		return
	}
	if tell {
		s.budget.close(now.Add(aloneLife))
	}
	first, helper := s.segs[0], t.added[0]
	if first != helper && !first.done && !helper.cut && 4*(helper.pos-helper.start) < s.ctl.received-t.sample.received {
		s.drop(helper)
	}
}

// wait puts the next trial off, longer each time. The caller holds mu.
func (c *ctl) wait(now time.Time) {
	c.again = min(max(firstAgain, 2*c.again), lastAgain)
	c.next = now.Add(c.again)
}

// hold keeps several streams while they bring more than one did. The caller holds mu.
func (s *streams) hold(now time.Time) {
	c := &s.ctl
	if c.plateau.at.IsZero() {
		c.plateau = s.sampled(now)
	}
	if now.Sub(c.plateau.at) < plateauSpan {
		return
	}
	rate, origins := s.since(c.plateau, now)
	c.plateau = s.sampled(now)
	switch {
	case !origins:
	case rate < c.single*(1+keeping):
		c.target = 1
		c.wait(now)
	case c.target < c.most && !c.off && !now.Before(c.next):
		s.try(c.target, 2, rate, now)
	}
}

// blame takes the failure of a helper as a sign of what the origin can do. The caller
// holds mu.
func (c *ctl) blame(s *streams, err error) {
	now := time.Now()
	if s.err != nil || s.ctx.Err() != nil {
		return
	}
	s.log.Debug("a further stream of the origin failed", zap.Stringer("ref", s.like.ref), zap.Error(err))
	c.trial = nil
	var status *StatusError
	switch ofHost := errors.As(err, &status) || errors.Is(err, ErrNoRange) || errors.Is(err, ErrProtocol) || errors.Is(err, ErrSize); {
	case status != nil && (status.Code == 429 || passing(status.Code)), !ofHost && !permanent(err) && !ofVersion(err):
		if now.Sub(c.halved) < halveSpan {
			return
		}
		c.halved = now
		c.target = max(1, c.target/2)
		c.wait(now)
		if status != nil {
			s.budget.close(now.Add(min(max(status.RetryAfter, time.Second), maxPause)))
		}
	default:
		c.off, c.target, c.next = true, 1, now.Add(24*time.Hour)
		if ofHost {
			s.budget.close(now.Add(barLife))
		}
	}
}

// ofVersion tells whether err says that the content is not what the read began with.
func ofVersion(err error) bool {
	return errors.Is(err, ErrChanged) || errors.Is(err, errUnsure)
}

// measure takes the rates of the streams. The caller holds mu.
func (s *streams) measure(now time.Time) {
	const span = 250 * time.Millisecond
	for _, g := range s.segs {
		took := now.Sub(g.mark)
		if g.done || took < span {
			continue
		}
		g.rate = float64(g.pos-g.marked) / took.Seconds()
		g.mark, g.marked = now, g.pos
	}
}

// active counts the streams. The caller holds mu.
func (s *streams) active() (n int) {
	for _, g := range s.segs {
		if !g.done {
			n++
		}
	}
	return n
}

// newSegment makes a segment that covers [start, end). The caller holds mu.
func (s *streams) newSegment(start, end int64, now time.Time) *segment {
	return &segment{s: s, room: sync.NewCond(&s.mu), start: start, pos: start, end: end, marked: start, began: now, mark: now}
}
