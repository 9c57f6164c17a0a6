package task

import (
	"slices"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// Where an origin has served a blob travels with its bytes, from node to node: so that no
// node but the first has to ask whether a registry keeps in one repository what the cluster
// holds from another.

// Served reports whether the origin is known to serve d at ref: to this node, or to one
// that bytes of d came from.
func (m *Manager) Served(ref origin.Ref, d blob.Digest) bool {
	b, ok := m.store.Peek(d)
	if !ok {
		return false
	}
	defer b.Release()
	return slices.Contains(b.Places(), ref.Place(d))
}

// Serves notes that the origin serves d at ref.
func (m *Manager) Serves(ref origin.Ref, d blob.Digest) {
	if b, ok := m.store.Peek(d); ok {
		b.AddPlace(ref.Place(d), true)
		b.Release()
	}
}
