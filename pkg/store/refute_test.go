package store_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// Links of others are wrong from the third on, and a piece has come by them. The origin's
// bytes contradict them: who has read what is right reads on, who has read further is
// cut off, and the blob becomes whole.
func TestRefute(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c := storetest.Random(t, 1, 5*pieceLength)
	evil := bytes.Clone(c.Data)
	evil[2*pieceLength] ^= 1 // piece 2 and all links behind it
	size, link := c.Digest.LinkSize(), c.Digest.FirstLink()
	links := bytes.Clone(link)
	for i := range c.Layout.Pieces() - 1 {
		var err error
		if link, err = blob.Advance(c.Digest, c.Layout, i, link, evil[i*pieceLength:(i+1)*pieceLength]); err != nil {
			t.Fatal(err)
		}
		links = append(links, link...)
	}
	b := create(t, s, c)
	defer b.Release()
	if err := b.AddLinks(0, links); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := b.Put(i, evil[i*pieceLength:(i+1)*pieceLength]); err != nil {
			t.Fatal(err)
		}
	}
	readers := []*store.Reader{b.Reader(t.Context(), 0, -1), b.Reader(t.Context(), 0, -1), b.Reader(t.Context(), 0, -1)}
	for i, n := range []int64{2 * pieceLength, 2*pieceLength + 1, 0} {
		if _, err := io.CopyN(io.Discard, readers[i], n); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Refute(2); err != nil {
		t.Fatal(err)
	}
	if first, got := b.Links(0, 5); first != 0 || len(got) != 3*size {
		t.Errorf("%d bytes of links from %d stay, want those of 3", len(got), first)
	}
	for i := 2; i < c.Layout.Pieces(); i++ {
		if err := b.Extend(i, c.Piece(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []error{nil, store.ErrReset, nil} {
		got, err := io.ReadAll(readers[i])
		if !errors.Is(err, want) {
			t.Errorf("reader %d: %v, want %v", i, err, want)
		}
		if tail := c.Data[len(c.Data)-len(got):]; want == nil && !bytes.Equal(got, tail) {
			t.Errorf("reader %d read wrong bytes", i)
		}
		_ = readers[i].Close()
	}
}
