package store_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

func exampleSidecar(tb testing.TB, c *storetest.Content, held ...int) *store.Sidecar {
	tb.Helper()
	m := &store.Sidecar{Layout: c.Layout, Held: blob.NewBitmap(c.Layout.Pieces()), Chain: blob.NewChain(c.Digest, c.Layout)}
	for _, i := range held {
		m.Held.Set(i)
		size := c.Digest.LinkSize()
		for _, k := range []int{i, i + 1} {
			if k < c.Layout.Pieces() {
				if err := m.Chain.Add(k, c.Links[k*size:(k+1)*size]); err != nil {
					tb.Fatal(err)
				}
			}
		}
	}
	return m
}

func TestSidecarRoundTrip(t *testing.T) {
	contents := []*storetest.Content{
		storetest.Random(t, 1, 0), storetest.Random(t, 2, 7), storetest.Random(t, 3, 9*pieceLength), storetest.Random512(t, 4, 17*pieceLength+1),
	}
	rapid.Check(t, func(t *rapid.T) {
		c := rapid.SampledFrom(contents).Draw(t, "content")
		m := &store.Sidecar{Layout: c.Layout, Pinned: rapid.Bool().Draw(t, "pinned"), Held: blob.NewBitmap(c.Layout.Pieces()), Chain: blob.NewChain(c.Digest, c.Layout),
			Shared: rapid.Bool().Draw(t, "shared"), Adopted: rapid.Bool().Draw(t, "adopted")}
		for i := range rapid.IntRange(0, blob.MaxPlaces).Draw(t, "places") {
			m.Places = append(m.Places, blob.PlaceOf(c.Digest, strconv.Itoa(i)))
		}
		size := c.Digest.LinkSize()
		for i := 1; i < c.Layout.Pieces(); i++ {
			if rapid.Bool().Draw(t, "known") {
				_ = m.Chain.Add(i, c.Links[i*size:(i+1)*size])
			}
		}
		for i := range c.Layout.Pieces() {
			if m.Chain.Proves(i) && rapid.Bool().Draw(t, "held") {
				m.Held.Set(i)
			}
		}
		m.Sealed = m.Held.Full()
		data := m.Encode(c.Digest)
		got, err := store.DecodeSidecar(c.Digest, data)
		if err != nil {
			t.Fatal(err)
		}
		if got.Sealed != m.Sealed || got.Pinned != m.Pinned || got.Shared != m.Shared || got.Adopted != m.Adopted || got.Layout != m.Layout || !slices.Equal(got.Places, m.Places) || !bytes.Equal(got.Encode(c.Digest), data) {
			t.Fatalf("decoded %+v", got)
		}
		for i := range c.Layout.Pieces() {
			if !m.Sealed && got.Held.Has(i) != m.Held.Has(i) || !bytes.Equal(got.Chain.Link(i), m.Chain.Link(i)) {
				t.Fatalf("piece or link %d differs", i)
			}
		}
		// Every single bit counts.
		bit := rapid.IntRange(0, len(data)*8-1).Draw(t, "bit")
		data[bit/8] ^= 1 << (bit % 8)
		if _, err := store.DecodeSidecar(c.Digest, data); !errors.Is(err, store.ErrCorrupt) && !errors.Is(err, store.ErrVersion) {
			t.Fatalf("with bit %d flipped: %v", bit, err)
		}
	})
}

func TestSidecarOfAnotherBlob(t *testing.T) {
	c, other := storetest.Random(t, 1, 2*pieceLength), storetest.Random(t, 2, 2*pieceLength)
	data := exampleSidecar(t, c, 0).Encode(c.Digest)
	_, err := store.DecodeSidecar(other.Digest, data)
	wantError(t, "sidecar of another blob", err, store.ErrCorrupt)
}

// FuzzSidecar decodes anything, its checksums made to fit: no panic, and what is
// taken is what encoding it gives again.
func FuzzSidecar(f *testing.F) {
	c := storetest.Random(f, 3, 9*pieceLength)
	wide := storetest.Random512(f, 4, 3*pieceLength)
	for _, m := range []*store.Sidecar{exampleSidecar(f, c), exampleSidecar(f, c, 0, 1, 5), exampleSidecar(f, c, 8)} {
		f.Add(false, m.Encode(c.Digest))
	}
	whole := exampleSidecar(f, wide, 0, 1, 2)
	whole.Sealed = true
	f.Add(true, whole.Encode(wide.Digest))
	f.Add(true, exampleSidecar(f, wide, 2).Encode(wide.Digest))
	f.Fuzz(func(t *testing.T, isWide bool, data []byte) {
		d, hash := c.Digest, 32
		if isWide {
			d, hash = wide.Digest, 64
		}
		if end := 20 + hash; len(data) >= end+8 {
			data = bytes.Clone(data)
			binary.LittleEndian.PutUint32(data[end:], store.Checksum(data[:end]))
			binary.LittleEndian.PutUint32(data[len(data)-4:], store.Checksum(data[:len(data)-4]))
		}
		m, err := store.DecodeSidecar(d, data)
		if err != nil {
			if !errors.Is(err, store.ErrCorrupt) && !errors.Is(err, store.ErrVersion) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(m.Encode(d), data) {
			t.Fatal("encodes to other bytes")
		}
	})
}
