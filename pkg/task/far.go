package task

import (
	"context"
	"slices"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

const (
	// reach is how many pieces beyond the part of a blob that is here a bounded
	// range may start and still wait for the swarm, whatever else is wanted.
	reach = 64
	// gather is how long a range further on waits for others that lead up to it.
	// maxFar bounds those of one blob that wait so.
	maxFar = 64
	gather = 300 * time.Millisecond
)

// leadsTo tells whether a bounded range of b, run, is to wait for the swarm. The chain
// that proves it does not reach there yet, and what lies between may be gigabytes that
// nobody asked for: a lazy reader's range is read from the origin for its client alone.
// But clients that fetch a whole blob in ranges (SOCI, containerd) want what lies between
// as well, in requests that come at the same time: reading their ranges one by one would
// cost the origin the blob once for each node.
func (m *Manager) leadsTo(ctx context.Context, b *store.Blob, run blob.Run) bool {
	front := b.Front()
	if run.First <= front+reach || len(b.Missing(run)) == 0 {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d := b.Digest()
	if len(m.far[d]) >= maxFar {
		return false
	}
	m.far[d] = append(m.far[d], run)
	m.farChanged()
	defer func() {
		if i := slices.Index(m.far[d], run); i >= 0 {
			m.far[d] = slices.Delete(m.far[d], i, i+1)
		}
		if len(m.far[d]) == 0 {
			delete(m.far, d)
		}
	}()
	timer := time.NewTimer(gather)
	defer timer.Stop()
	for !m.wantedUpTo(b, front, run.First) {
		changed := m.farChange
		m.mu.Unlock()
		over := false
		select {
		case <-changed:
		case <-timer.C:
			over = true
		case <-ctx.Done():
			over = true
		}
		m.mu.Lock()
		if over {
			return m.wantedUpTo(b, front, run.First)
		}
	}
	return true
}

// farChanged wakes ranges that wait for others. The caller holds mu.
func (m *Manager) farChanged() {
	close(m.farChange)
	m.farChange = make(chan struct{})
}

// wantedUpTo tells whether clients want, or have got, all of b from piece first to
// before end. The caller holds mu.
func (m *Manager) wantedUpTo(b *store.Blob, first, end int) bool {
	wanted := b.Have()
	if t, ok := m.tasks[b.Digest()]; ok {
		if t.all {
			return true
		}
		for _, r := range t.wanted.Runs() {
			wanted.SetRun(r)
		}
	}
	for _, r := range m.far[b.Digest()] {
		wanted.SetRun(r)
	}
	return wanted.NextClear(first) >= end
}
