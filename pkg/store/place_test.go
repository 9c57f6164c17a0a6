package store_test

import (
	"slices"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// Where an origin has served a blob is known after a restart, and forgotten with bytes that
// turned out to be another's. What this node has heard itself gives way to nothing that
// others say.
func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	s := storetest.Open(t, store.Config{Dir: dir})
	c := storetest.Random(t, 1, 3*pieceLength)
	own, told := blob.PlaceOf(c.Digest, "own"), blob.PlaceOf(c.Digest, "told")
	b := create(t, s, c)
	b.AddPlace(told, false)
	if err := b.Reset(); err != nil || len(b.Places()) != 0 {
		t.Fatalf("after a reset: %d places, %v", len(b.Places()), err)
	}
	b.AddPlace(own, true)
	b.AddPlace(own, false)
	for i := range 2 * blob.MaxPlaces {
		b.AddPlace(blob.PlaceOf(c.Digest, "of others", string(rune(i))), false)
	}
	for i := range c.Layout.Pieces() {
		if err := b.Extend(i, c.Piece(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Seal(); err != nil {
		t.Fatal(err)
	}
	known := b.Places()
	if len(known) != blob.MaxPlaces || !slices.Contains(known, own) {
		t.Errorf("%d places, that of this node is one of them: %v", len(known), slices.Contains(known, own))
	}
	b.Release()
	closeStore(t, s)
	s = reopen(t, dir)
	b, ok := s.Get(c.Digest)
	if !ok || !slices.Equal(b.Places(), known) {
		t.Fatal("the places are not those of before the restart")
	}
	b.AddPlace(told, true)
	if !slices.Contains(b.Places(), told) || len(b.Places()) != blob.MaxPlaces {
		t.Error("what this node hears now is left out")
	}
	b.Release()
}
