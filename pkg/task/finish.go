package task

import (
	"context"
	"errors"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// How a task ends.

// finish takes an ended task away.
func (m *Manager) finish(t *task) {
	cause := context.Cause(t.ctx)
	whole := errors.Is(cause, errDone)
	m.mu.Lock()
	if m.tasks[t.digest] == t && t.wanted.Count() > 0 && !whole { // else another task has come after it
		m.scheduler.Tell(control.Unwant{Digest: t.digest})
	}
	if whole {
		m.forget(t)
	}
	m.mu.Unlock()
	if whole {
		close(t.gone)
		m.keep(t)
		t.blob.Release()
		return
	}
	if !errors.Is(cause, errNoClient) && !errors.Is(cause, ErrClosed) && !errors.Is(cause, context.Canceled) {
		m.log.Warn("a blob could not be made whole", zap.Stringer("digest", t.digest), zap.Error(cause))
	}
	t.uses.Wait()
	m.release(t.blob)
	close(t.gone)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(t)
}

// release ends a use of b. A part without a piece, which has its room on the disk, goes with
// the last.
func (m *Manager) release(b *store.Blob) {
	nothing := b.Empty()
	b.Release()
	if nothing {
		_ = m.store.Discard(b.Digest()) // somebody else uses it, or it is gone
	}
}

// forget removes t from the tasks, unless another has come after it. The caller holds mu.
func (m *Manager) forget(t *task) {
	if m.tasks[t.digest] == t {
		delete(m.tasks, t.digest)
	}
}

// use runs fn, which uses t's blob: the task may end before fn has.
func (m *Manager) use(t *task, fn func()) {
	t.blob.Acquire()
	t.uses.Add(1)
	m.running.Go(func() {
		defer t.uses.Done()
		defer t.blob.Release()
		fn()
	})
}
