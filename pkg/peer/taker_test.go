package peer_test

import (
	"slices"

	"github.com/damselfly-p2p/damselfly/pkg/peer"
)

// taker gives put a piece in one part. Until then the parts lie where they came.
type taker struct {
	put   func(piece []byte) error
	parts [][]byte
}

func (t *taker) Add(part []byte) { t.parts = append(t.parts, part) }
func (t *taker) Put() error      { return t.put(slices.Concat(t.parts...)) }

// whole gives put each piece once it is whole.
func whole(put func(from peer.Sender, i int, piece []byte) error) peer.Begin {
	return func(from peer.Sender, i int) peer.Taker {
		return &taker{put: func(piece []byte) error { return put(from, i, piece) }}
	}
}

// away takes pieces and drops them.
type away struct{}

func (away) Add([]byte) {}
func (away) Put() error { return nil }
