package task

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/limit"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// read reads what is missing of a lease's run from its source; at is its place among
// those that read the origin, nil with a holder.
func (m *Manager) read(ctx context.Context, t *task, l control.Lease, at *originRead) (n int64, err error) {
	ctx = limit.With(ctx, m.class(t, time.Now()))
	if at != nil {
		defer m.atIt(t)()
		if err := at.wait(ctx); err != nil {
			return 0, err
		}
		if l.Layout.Bytes(l.Run) > bytesOf(l.Layout, t.blob.Missing(l.Run)) {
			// The scheduler does not know what is here, or not what proves it, and takes
			// links only from whom it has read: it would give this lease again for ever.
			m.tellBlob(t.blob, true)
		}
		ref, header := whole(refOf(l.Origin, l.Digest), m.credential(ctx, t, l))
		return m.readOrigin(ctx, t, ref, header, l.Run)
	}
	if l.Deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = limit.WithTimeout(ctx, l.Deadline+overdue, errOverdue)
		defer cancel()
	}
	missing := t.blob.Missing(l.Run)
	p := newPace(l, missing, time.Duration(m.asking.Load()), func() { m.scheduler.Tell(control.Ending{Lease: l.ID}) })
	defer func() { m.smooth(p.stop()) }()
	for _, run := range missing {
		err := m.peers.Read(ctx, peer.Holder(*l.Holder), l.Digest, l.Layout, run, t.arrives(func(from identity.Role, i int) {
			n += l.Layout.Length(i)
			m.took(t, from, i)
		}), p.progress)
		if err != nil {
			return n, err
		}
		m.contacts.served(l.Digest, peer.Holder(*l.Holder), time.Now())
	}
	return n, nil
}

// atItEvery is between two words of who reads an origin and has nothing new. A scheduler
// has another read it that hears none for a second.
const atItEvery = 300 * time.Millisecond

// atIt tells the scheduler that this node is at its read of an origin, by a Have of
// nothing, until the caller ends it.
func (m *Manager) atIt(t *task) (end func()) {
	stop, word := make(chan struct{}), control.Have{Digest: t.digest, Size: t.blob.Size()}
	m.scheduler.Tell(word)
	m.running.Go(func() {
		tick := time.NewTicker(atItEvery)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				m.scheduler.Tell(word)
			}
		}
	})
	return func() { close(stop) }
}

// returning is how soon clients that fetch in ranges are back.
const returning = 2 * time.Second

// class is for whom this node carries out a lease of t's. A seed reads for the clients
// of others.
func (m *Manager) class(t *task, now time.Time) limit.Class {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.clients > 0 || m.cfg.Seed || now.Sub(t.left) < returning {
		return limit.Client
	}
	return limit.Background
}

// smooth notes how long a holder took to begin.
func (m *Manager) smooth(asked time.Duration) {
	if asked > 0 {
		old := m.asking.Load()
		if old == 0 {
			old = int64(asked)
		}
		m.asking.Store(old + (int64(asked)-old)/8)
	}
}

// arrival is a piece that another node sends, on its way into the store.
type arrival struct {
	*store.Arrival
	put func()
}

// Put implements peer.Taker.
func (a arrival) Put() error {
	if err := a.Arrival.Put(); err != nil {
		return err
	}
	a.put()
	return nil
}

// arrives has the store take pieces. put is told of each that it has.
func (t *task) arrives(put func(from identity.Role, i int)) peer.Begin {
	return func(from peer.Sender, i int) peer.Taker {
		for _, p := range from.Places {
			t.blob.AddPlace(p, false)
		}
		return arrival{t.blob.Arrive(i), func() { put(from.Role, i) }}
	}
}

// took counts and tells piece i, which another node has sent.
func (m *Manager) took(t *task, from identity.Role, i int) {
	source := "peer"
	if from == identity.RoleSeed {
		source = "seed"
	}
	m.bytes.WithLabelValues(source).Add(float64(t.blob.Layout().Length(i)))
	m.have(t, i, false)
}

func bytesOf(l blob.Layout, runs []blob.Run) (n int64) {
	for _, run := range runs {
		n += l.Bytes(run)
	}
	return n
}

// overdue is how long after its deadline a lease from a holder is given up here. A
// scheduler that lives takes it back at the deadline.
const overdue = 5 * time.Second

var errOverdue = errors.New("the holder is long past the lease's deadline")

// originRead is a lease that reads a run from the origin, or waits for its turn.
type originRead struct {
	run    blob.Run
	before []*originRead // that read some of it, too
	done   chan struct{}
}

// queueAtOrigin has a lease wait until no older one reads any of its run from the
// origin. Two schedulers may both have this node read a blob, where the second took
// the blob over from the first: what the first read is then not read again. The
// caller holds the manager's mutex.
func (t *task) queueAtOrigin(run blob.Run) *originRead {
	mine := &originRead{run: run, done: make(chan struct{})}
	for _, o := range t.origin {
		if o.run.First < run.End() && run.First < o.run.End() {
			mine.before = append(mine.before, o)
		}
	}
	t.origin = append(t.origin, mine)
	return mine
}

// leaveOrigin ends o's turn. The caller holds the manager's mutex.
func (t *task) leaveOrigin(o *originRead) {
	t.origin = slices.DeleteFunc(t.origin, func(other *originRead) bool { return other == o })
	o.before = nil
	close(o.done)
}

// wait returns when it is o's turn, or the cause of ctx's end.
func (o *originRead) wait(ctx context.Context) error {
	for _, before := range o.before {
		select {
		case <-before.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// failed says why a lease ended, in the words of the wire.
func failed(lease uint64, err error) control.Failed {
	f := control.Failed{Lease: lease}
	var status *origin.StatusError
	switch {
	case errors.As(err, &status):
		f.Reason, f.Status, f.RetryAfter = damselflyv1.Failed_REASON_ORIGIN, status.Code, status.RetryAfter
	case errors.Is(err, origin.ErrSize), errors.Is(err, origin.ErrProtocol), errors.Is(err, origin.ErrNoRange):
		// What the origin has is not what was asked for, and will not be for the next who
		// asks for the same: that is a refusal, and no reason to try again.
		f.Reason, f.Status = damselflyv1.Failed_REASON_ORIGIN, http.StatusRequestedRangeNotSatisfiable
	case errors.Is(err, store.ErrBadDigest):
		f.Reason = damselflyv1.Failed_REASON_BAD_DIGEST
	case errors.Is(err, blob.ErrMismatch), errors.Is(err, peer.ErrMalformed):
		f.Reason = damselflyv1.Failed_REASON_BAD_PIECE
	case errors.Is(err, peer.ErrBusy):
		f.Reason = damselflyv1.Failed_REASON_BUSY
	case errors.Is(err, peer.ErrMissing), errors.Is(err, blob.ErrUnknownLink):
		f.Reason = damselflyv1.Failed_REASON_MISSING
	case errors.Is(err, errRecalled), errors.Is(err, errNoClient), errors.Is(err, errDone), errors.Is(err, context.Canceled):
		f.Reason = damselflyv1.Failed_REASON_CANCELLED
	case errors.Is(err, store.ErrNoSpace), errors.Is(err, blob.ErrConflict):
		f.Reason = damselflyv1.Failed_REASON_STORE
	default:
		f.Reason = damselflyv1.Failed_REASON_UNREACHABLE
	}
	return f
}
