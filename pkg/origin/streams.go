package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// When other streams are tried beside the first.
const (
	// leastRest: a shorter rest is left to the stream that runs.
	leastRest = 8 << 20
	// warmUp is how long the first stream has delivered before it is judged, in samples
	// of half as long.
	warmUp = 80 * time.Millisecond
	// worthwhile: a rest that takes no longer is left to the stream that runs.
	worthwhile = 700 * time.Millisecond
	// fastRate: a stream that brings so many bytes a second is left alone. On a line that it
	// fills, a trial costs what lies in sockets when one of two streams is cut, 2 % of 64 MiB
	// at 100 Mbit/s, and an origin that bounds connections to more is rare.
	fastRate = 8 << 20
	// busyRate is from which on other work on the machine shows in a measurement, which
	// then takes longer: little is to be won, and much to be asked for in vain.
	busyRate = 32 << 20
	// mostWaiting is what may wait unread in the socket, in bytes. More says that this
	// machine is slower than the origin: others would bring nothing, and what waits were
	// sent in vain when the first stream is cut.
	mostWaiting = 256 << 10
	// steady is how far two samples in a row may differ.
	steady = 1.5
)

// streams reads what one reader would, by several where that is quicker. It begins as
// that one reader. While there are others, each reads a segment into memory, and Read
// delivers the segments in order. Its fields but ctx are guarded by mu; direct and
// watch are Read's own.
type streams struct {
	like    *reader // what the readers of segments are made like
	budget  *streamBudget
	log     *zap.Logger
	ctx     context.Context
	cancel  context.CancelFunc
	limited *atomic.Int64 // time that the bytes waited for limits of this node
	running sync.WaitGroup

	direct *reader // what Read reads from while there is one stream; else nil
	watch  watch

	mu        sync.Mutex
	data      *sync.Cond // of mu: there may be something for Read
	err       error      // sticky
	pos, end  int64      // next byte to deliver; the end of the read
	segs      []*segment // in order, apart from each other
	validator string
	ctl       ctl
}

// watch is what Read sees of the one stream.
type watch struct {
	began   time.Time // of the sample
	bytes   int64     // in it
	inside  time.Duration
	limited int64
	rate    float64 // of the sample before; 0: none
	next    time.Time
	behind  bool // more than mostWaiting waited in the sample
}

// several is r as a reader that may use other streams beside it, where what it reads is
// worth that. opened is how long the origin took to answer; ctx is what the context of
// r was made of, and cancel ends it.
func (c *Client) several(ctx context.Context, cancel context.CancelFunc, r *reader, opened time.Duration) io.ReadCloser {
	if r.end-r.pos < leastRest+leastChunk || c.cfg.MaxStreams < 2 || r.single() {
		r.cancel = cancel
		return r
	}
	s := &streams{
		like: r, budget: r.host.streams, log: c.log, limited: r.limited, direct: r,
		pos: r.pos, end: r.end, validator: r.validator, ctx: ctx, cancel: cancel,
	}
	s.data = sync.NewCond(&s.mu)
	s.ctl = ctl{most: c.cfg.MaxStreams, opened: opened, kick: make(chan struct{}, 1)}
	return s
}

// single tells whether what the first answer said leaves no choice but one stream: other
// parts could be of another version, or ranges are not served.
func (r *reader) single() bool {
	return r.rangeless || r.versioned() && !strings.HasPrefix(r.validator, `"`)
}

// Read implements io.Reader.
func (s *streams) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	from, n, err := s.next(p)
	if from == nil {
		return n, err
	}
	return s.readDirect(from, p)
}

// next is what to read directly, or else what came for p.
func (s *streams) next(p []byte) (from *reader, n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, 0, s.err
	}
	if s.direct == nil {
		n, err = s.deliver(p)
	}
	return s.direct, n, err
}

// readDirect reads from the one stream, and gives it company where that is worth it.
func (s *streams) readDirect(from *reader, p []byte) (int, error) {
	began := time.Now()
	n, err := from.Read(p)
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pos += int64(n)
	if err != nil {
		if s.err == nil {
			s.err = err
		}
		return n, s.err
	}
	s.watch.inside += now.Sub(began)
	s.watch.bytes += int64(n)
	if rate := s.look(began, now); rate > 0 && s.err == nil {
		s.engage(rate, now)
	}
	return n, nil
}

// look tells whether others may be worth a try, by the rate of the one stream; else it
// returns 0. Often it only takes note. The caller holds mu.
func (s *streams) look(began, now time.Time) float64 {
	w := &s.watch
	if w.began.IsZero() {
		*w = watch{began: now, limited: s.limited.Load(), next: w.next} // the first bytes may have waited for us
		return 0
	}
	w.behind = w.behind || s.direct.line != nil && s.direct.line.waiting() > mostWaiting
	took := now.Sub(w.began)
	if took < warmUp/2 {
		return 0
	}
	held := s.limited.Load()
	rate, before := float64(w.bytes)/took.Seconds(), w.rate
	waits, limits := w.inside, time.Duration(held-w.limited)
	if w.behind {
		rate = 0
	}
	*w = watch{began: now, limited: held, rate: rate, next: w.next}
	left := s.end - s.pos
	switch {
	case left < leastRest, float64(left) < rate*worthwhile.Seconds(), rate > fastRate,
		before == 0, rate == 0, rate > before*steady, before > rate*steady,
		waits-limits < took/2, // the reader of the bytes is slower than who sends them, or a limit is
		now.Before(w.next), !s.budget.open(now):
		return 0
	}
	return (rate + before) / 2
}

// engage lets the one stream read into memory, so that others can be tried beside it.
// The caller holds mu.
func (s *streams) engage(rate float64, now time.Time) {
	r := s.direct
	s.validator = r.validator
	g := &segment{s: s, from: r, open: true, whole: true, proven: true, start: s.pos, pos: s.pos, end: s.end, most: 2 * blockSize, began: now}
	g.room = sync.NewCond(&s.mu)
	s.direct, s.segs = nil, []*segment{g}
	if s.ctl.begin(rate, now) {
		context.AfterFunc(s.ctx, s.wakeAll)
	}
	s.budget.engage()
	s.running.Add(2)
	go g.pump(r)
	go s.control()
}

// deliver waits for the next bytes and copies them to p. It returns without any when
// there is one stream again, which is to be read directly. The caller holds mu.
func (s *streams) deliver(p []byte) (int, error) {
	for {
		switch g := s.front(); {
		case s.err != nil:
			return 0, s.err
		case s.ctx.Err() != nil:
			return s.fail(about(s.like.ref, fmt.Errorf("at byte %d of %d: %w", s.pos, s.like.size, s.ctx.Err())))
		case s.pos == s.end && (g == nil || g.done):
			if g != nil && g.err != nil && g.err != io.EOF {
				return s.fail(g.err)
			}
			return s.fail(io.EOF)
		case g == nil:
			s.restart()
		case g.pos > s.pos:
			return g.take(p), nil
		case g.err != nil && g.err != io.EOF:
			return s.fail(g.err)
		case g.handed:
			g.leave()
			g.from.helps = false // it is the one stream now
			s.direct, s.segs = g.from, nil
			s.watch = watch{next: s.ctl.next}
			return 0, nil
		case g.done:
			g.leave()
			s.segs = s.segs[1:]
		default:
			began := time.Now()
			s.ctl.waits = began
			s.data.Wait()
			s.ctl.waits = time.Time{}
			s.ctl.waited += time.Since(began)
		}
	}
}

// front is the segment that holds the next byte, nil if none does. The caller holds mu.
func (s *streams) front() *segment {
	if len(s.segs) > 0 && s.segs[0].start <= s.pos {
		return s.segs[0]
	}
	return nil
}

// restart asks for the next byte as a single reader would: those who were to bring it
// have not. The caller holds mu.
func (s *streams) restart() {
	g := &segment{s: s, open: true, whole: true, start: s.pos, pos: s.pos, end: s.nextStart(0), most: 2 * blockSize, began: time.Now()}
	g.room = sync.NewCond(&s.mu)
	g.from = s.fork(s.pos, s.end, false)
	s.segs = append([]*segment{g}, s.segs...)
	s.running.Add(1)
	go g.pump(g.from)
}

// fork makes a reader of a part. One that helps gives up where another could wait or
// try again.
func (s *streams) fork(off, end int64, helps bool) *reader {
	l := s.like
	r := &reader{
		client: l.client, host: l.host, ref: l.ref, question: l.question, key: l.key, limited: l.limited,
		size: l.size, first: l.first, pos: off, end: end, validator: s.validator, helps: helps,
	}
	r.ctx, r.cancel = context.WithCancel(s.ctx)
	return r
}

// nextStart is where the first segment from the i-th on starts, or the end. The caller
// holds mu.
func (s *streams) nextStart(i int) int64 {
	if i < len(s.segs) {
		return s.segs[i].start
	}
	return s.end
}

// fail makes err that of every Read from now on. The caller holds mu.
func (s *streams) fail(err error) (int, error) {
	if s.err == nil {
		s.err = err
	}
	if !errors.Is(err, io.EOF) {
		s.cancel()
	}
	s.wake()
	s.ctl.hurry()
	return 0, s.err
}

// wake wakes everybody, to look whether it is over. The caller holds mu.
func (s *streams) wake() {
	s.data.Broadcast()
	for _, g := range s.segs {
		g.room.Broadcast()
	}
}

func (s *streams) wakeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake()
}

// Close ends the reader and all its streams. It is safe to call while a Read waits, and
// twice.
func (s *streams) Close() error {
	s.mu.Lock()
	s.err = os.ErrClosed
	s.cancel()
	direct := s.direct
	s.wake()
	s.mu.Unlock()
	if direct != nil {
		_ = direct.Close()
	}
	s.running.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segs {
		_ = g.from.Close()
		g.leave()
	}
	s.segs = nil
	return nil
}

// limitedKey is of a context: the time in which limits of this node hold its bytes.
type limitedKey struct{}

func withLimited(ctx context.Context, spent *atomic.Int64) context.Context {
	return context.WithValue(ctx, limitedKey{}, spent)
}

// noteLimited notes that limits held the bytes of ctx since then.
func noteLimited(ctx context.Context, since time.Time) {
	if spent, ok := ctx.Value(limitedKey{}).(*atomic.Int64); ok {
		spent.Add(int64(time.Since(since)))
	}
}

// errWhole: a helper was sent the whole instead of a part.
var errWhole = fmt.Errorf("%w: it sends the whole in reply to a range", ErrNoRange)

// errUnsure: a part came of content that may change, without word of its version.
var errUnsure = errors.New("a part without the validator of the first answer")
