package task

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Handle takes what control heard. It does not block.
func (m *Manager) Handle(d control.Decision) {
	switch d := d.(type) {
	case control.Lease:
		m.lease(d)
	case control.Cancel:
		m.withTasks(func(t *task) {
			if l, ok := t.leases[d.Lease]; ok {
				l.end(errRecalled)
			}
		})
	case control.Queued:
		m.with(d.Digest, func(t *task) { m.answered(t) })
	case control.Refuse:
		m.with(d.Digest, func(t *task) { t.refuse(d, time.Now()) })
	case control.Revoke:
		m.revoke(d.Digest)
	case control.Tell:
		m.tell(d.Digest)
	case control.Joined:
		m.tellAll(d.Concerns)
	case control.Spoke:
		m.withTasks(func(t *task) {
			if t.clients > 0 && t.alone != nil && !t.refused && d.Concerns(t.digest) {
				m.want(t)
			}
		})
	case control.Lost:
		m.withTasks(func(*task) {}) // each looks whether it still has a scheduler
	}
}

// with calls fn for the task of d, if there is one, and lets it look around.
func (m *Manager) with(d blob.Digest, fn func(*task)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t, ok := m.tasks[d]; ok {
		fn(t)
		t.changed()
	}
}

func (m *Manager) withTasks(fn func(*task)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tasks {
		fn(t)
		t.changed()
	}
}

// answered notes that the scheduler looks after t: what this node granted itself
// ends. The caller holds mu.
func (m *Manager) answered(t *task) {
	t.answered, t.asked, t.since, t.retry = true, time.Now(), time.Time{}, time.Time{}
	if t.alone != nil && !t.refused {
		t.alone.end(errRecalled)
	}
}

// lease starts to carry out a lease.
func (m *Manager) lease(l control.Lease) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, err := m.leased(l)
	if err == nil {
		t.lent = t.lent || l.FirstLink > 0 || len(l.Links) > l.Digest.LinkSize()
		err = linked(t.blob, l, t.own)
	}
	if err != nil {
		m.log.Warn("a lease cannot be carried out", zap.Stringer("digest", l.Digest), zap.Error(err))
		reason := damselflyv1.Failed_REASON_STORE
		if errors.Is(err, errNoClient) {
			reason = damselflyv1.Failed_REASON_CANCELLED
		}
		m.scheduler.Tell(control.Failed{Lease: l.ID, Reason: reason})
		return
	}
	t.refused = false // by what it said before
	m.answered(t)
	ctx, end := context.WithCancelCause(t.ctx)
	t.leases[l.ID] = running{l.Run, end}
	var at *originRead
	if l.Holder == nil {
		at = t.queueAtOrigin(l.Run)
	}
	m.use(t, func() { m.execute(ctx, t, l, at) })
}

// linked gives b the links of a lease. That is done in the order in which decisions
// come: links from before a Revoke must not return after it. Where those that b has
// are others, one chain or the other is forged; what the scheduler says now is what
// the other nodes go by, so b starts over with that. Not where b's are its own, of the
// origin's bytes, after others were found wrong.
func linked(b *store.Blob, l control.Lease, own bool) error {
	if b.Sealed() {
		return nil // proven by links of its own
	}
	err := b.AddLinks(l.FirstLink, l.Links)
	if own || !errors.Is(err, blob.ErrConflict) {
		return err
	}
	if err := b.Reset(); err != nil {
		return err
	}
	return b.AddLinks(l.FirstLink, l.Links)
}

// leased is the task that a lease is for. The caller holds mu.
func (m *Manager) leased(l control.Lease) (*task, error) {
	if t, ok := m.tasks[l.Digest]; ok && t.ctx.Err() == nil {
		if t.blob.Size() != l.Layout.Size() {
			return nil, fmt.Errorf("the blob has %d bytes here, the lease says %d", t.blob.Size(), l.Layout.Size())
		}
		return t, nil
	}
	if !m.cfg.Seed {
		return nil, errNoClient
	}
	b, err := m.store.Create(l.Digest, l.Layout.Size())
	if err != nil {
		return nil, err
	}
	defer b.Release() // the task has its own use
	return m.start(b, refOf(l.Origin, l.Digest), nil)
}

// execute carries out a lease and tells how it ended.
func (m *Manager) execute(ctx context.Context, t *task, l control.Lease, at *originRead) {
	started := time.Now()
	n, err := m.read(ctx, t, l, at)
	if err != nil && len(t.blob.Missing(l.Run)) == 0 {
		err = nil // another source was first: what the lease was for is here
	}
	m.mu.Lock()
	if at != nil {
		t.leaveOrigin(at)
	}
	t.leases[l.ID].end(nil)
	delete(t.leases, l.ID)
	t.asked = time.Now()
	t.idle = t.asked
	m.mu.Unlock()
	if err == nil {
		m.scheduler.Tell(control.Done{Lease: l.ID, Bytes: n, Took: time.Since(started)})
	} else {
		m.log.Debug("a lease failed", zap.Stringer("digest", t.digest), zap.Uint64("lease", l.ID), zap.Error(err))
		m.scheduler.Tell(failed(l.ID, err))
	}
	if errors.Is(err, store.ErrNoSpace) || at != nil && errors.Is(err, origin.ErrSize) {
		t.end(err) // no other source would mend that
	}
	t.changed()
}

// credential is what opens the origin for a lease: the headers of the client
// that waits here, or of the one that waits on the node it is read for. Without
// either the origin client's own credentials are left.
func (m *Manager) credential(ctx context.Context, t *task, l control.Lease) http.Header {
	if l.OnBehalf == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		header, _ := t.headerFor(refOf(l.Origin, l.Digest)) // none for another node's origin
		return header
	}
	header, err := m.peers.Credential(ctx, peer.Holder(*l.OnBehalf), l.Digest, l.Origin)
	if err != nil {
		m.log.Debug("no credential from the node that is read for", zap.Error(err))
		return nil
	}
	return header
}

// sameOrigin tells whether a credential for one reference is meant for the other:
// the same blob may be leased from another registry than a client here named.
func sameOrigin(a, b origin.Ref) bool {
	return a.Registry == b.Registry && a.Repository == b.Repository && a.URL == b.URL
}

// readOrigin reads the missing pieces of a run from the origin, in order,
// extending the chain as it goes.
func (m *Manager) readOrigin(ctx context.Context, t *task, ref origin.Ref, header http.Header, run blob.Run) (n int64, err error) {
	for _, r := range t.blob.Missing(run) {
		got, err := m.stream(ctx, t, ref, header, r)
		n += got
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// stream reads one run from the origin: one goroutine takes the next pieces off
// the line while this one verifies and writes those before.
func (m *Manager) stream(ctx context.Context, t *task, ref origin.Ref, header http.Header, run blob.Run) (n int64, err error) {
	l := t.blob.Layout()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := m.origins.Read(ctx, ref, header, l.Size(), l.Offset(run.First), l.Bytes(run))
	if err != nil {
		return 0, err
	}
	t.blob.AddPlace(ref.Place(t.digest), true)
	line := make(chan *[]byte, readAhead)
	var g errgroup.Group
	g.Go(func() error {
		defer close(line)
		defer func() { _ = body.Close() }() // read to where it was wanted
		for i := run.First; i < run.End(); i++ {
			if m.scheduler.Joined(t.digest) {
				t.lead.wait(ctx)
			} // else nodes have to find the pieces: the more there are, the sooner
			buf := m.buffer(int(l.PieceLength()))
			*buf = (*buf)[:l.Length(i)]
			if _, err := io.ReadFull(body, *buf); err != nil {
				m.pieces.Put(buf)
				return err
			}
			select {
			case line <- buf:
			case <-ctx.Done():
				m.pieces.Put(buf)
				return context.Cause(ctx)
			}
		}
		return nil
	})
	i := run.First
	for buf := range line {
		if err == nil {
			if err = t.blob.Extend(i, *buf); err == nil {
				n += int64(len(*buf))
				m.bytes.WithLabelValues("origin").Add(float64(len(*buf)))
				t.lead.read(i)
				m.have(t, i, true)
			} else {
				err = &pieceError{i, err}
				cancel()
			}
		}
		m.pieces.Put(buf)
		i++
	}
	if readErr := g.Wait(); err == nil {
		err = readErr
	}
	return n, err
}

// pieceError says which piece of an origin could not be taken.
type pieceError struct {
	piece int
	err   error
}

func (e *pieceError) Error() string { return e.err.Error() }
func (e *pieceError) Unwrap() error { return e.err }

// readAhead is how many pieces of an origin wait in memory to be verified.
const readAhead = 1

func (m *Manager) buffer(n int) *[]byte {
	if b, ok := m.pieces.Get().(*[]byte); ok && cap(*b) >= n {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n)
	return &b
}

// have tells the scheduler of piece i, with the link that reading it from the
// origin gave.
func (m *Manager) have(t *task, i int, linked bool) {
	m.mu.Lock()
	t.asked = time.Now()
	own := t.own
	m.mu.Unlock()
	if own && !t.blob.Sealed() {
		return // what others go by contradicts it
	}
	h := control.Have{Digest: t.digest, Size: t.blob.Size(), Runs: []blob.Run{{First: i, Count: 1}}, Sealed: t.blob.Sealed()}
	if linked && i+1 < t.blob.Layout().Pieces() {
		h.FirstLink, h.Links = t.blob.Links(i+1, 1)
	}
	m.scheduler.Tell(h)
	if h.Sealed {
		t.changed()
	}
}

// tell gives the scheduler all that is known of a blob, links included.
func (m *Manager) tell(d blob.Digest) {
	if b, ok := m.store.Peek(d); ok {
		defer b.Release()
		m.tellBlob(b, true)
	}
}

func (m *Manager) tellBlob(b *store.Blob, links bool) {
	h := control.Have{Digest: b.Digest(), Size: b.Size(), Runs: b.Have().Runs(), Sealed: b.Sealed()}
	if links {
		h.FirstLink, h.Links = b.Links(0, b.Layout().Pieces())
	}
	if len(h.Runs) > 0 || h.Sealed {
		m.scheduler.Tell(h)
	}
}

// Held tells the scheduler that the store holds a whole blob that no task brought.
func (m *Manager) Held(d blob.Digest) {
	if b, ok := m.store.Peek(d); ok {
		defer b.Release()
		m.tellBlob(b, false)
	}
}

// tellAll introduces this node to a scheduler that knows nothing of some blobs: what
// it holds of them, with the links where the blob is still on its way, and what it
// wants.
func (m *Manager) tellAll(concerned func(blob.Digest) bool) {
	for _, info := range m.store.Blobs() {
		if !concerned(info.Digest) {
			continue
		}
		if b, ok := m.store.Peek(info.Digest); ok {
			m.tellBlob(b, !b.Sealed())
			b.Release()
		}
	}
	m.withTasks(func(t *task) {
		if t.clients > 0 && concerned(t.digest) {
			t.answered = false // by this one
			m.want(t)
		}
	})
}

// reliesOnItself tells whether a blob's links are of this node's own read of the origin,
// after others were found wrong.
func (m *Manager) reliesOnItself(d blob.Digest) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tasks[d]
	return ok && t.own
}

// revoke drops what a chain that led to a wrong digest had let in, says so, and
// asks anew where clients still wait.
func (m *Manager) revoke(d blob.Digest) {
	m.with(d, func(t *task) {
		for _, l := range t.leases {
			l.end(errRecalled)
		}
		t.refused = false // that came of the same links, as what this node grants itself
		if t.alone != nil {
			t.alone.recall()
		}
	})
	if b, ok := m.store.Get(d); ok && !m.reliesOnItself(d) {
		if err := b.Reset(); err != nil {
			m.log.Error("a revoked blob could not be reset", zap.Stringer("digest", d), zap.Error(err))
		}
		b.Release()
	} else if ok {
		b.Release()
	}
	m.Dropped(d)
	m.with(d, func(t *task) {
		if t.clients > 0 {
			m.want(t)
		}
	})
}
