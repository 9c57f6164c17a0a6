// Package storetest helps tests of packages that use a store: content with known
// digests, and stores that are filled with it.
package storetest

import (
	"context"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// Content is a blob's bytes with all that describes them.
type Content struct {
	Digest blob.Digest
	Layout blob.Layout
	Data   []byte
	Links  []byte // every link of the chain, side by side, from link 0 on
}

// Random returns size random bytes, the same for the same seed, under a sha256
// digest.
func Random(tb testing.TB, seed uint64, size int64) *Content {
	tb.Helper()
	data := random(seed, size)
	return must(tb, blob.FromBytes(data), data)
}

// Random512 is Random under a sha512 digest.
func Random512(tb testing.TB, seed uint64, size int64) *Content {
	tb.Helper()
	data := random(seed, size)
	return must(tb, blob.Digest(fmt.Sprintf("sha512:%x", sha512.Sum512(data))), data)
}

func random(seed uint64, size int64) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	data := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(data) // never fails
	return data
}

func must(tb testing.TB, d blob.Digest, data []byte) *Content {
	tb.Helper()
	c, err := Describe(d, data)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// Describe cuts data into pieces and computes its chain. It errs when d is not
// the digest of data.
func Describe(d blob.Digest, data []byte) (*Content, error) {
	l, err := blob.NewLayout(int64(len(data)))
	if err != nil {
		return nil, err
	}
	c := &Content{Digest: d, Layout: l, Data: data}
	link := d.FirstLink()
	for i := range l.Pieces() {
		c.Links = append(c.Links, link...)
		if link, err = blob.Advance(d, l, i, link, c.Piece(i)); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Size is the content's length in bytes.
func (c *Content) Size() int64 { return int64(len(c.Data)) }

// Piece returns the bytes of piece i, which are the content's own.
func (c *Content) Piece(i int) []byte {
	off := c.Layout.Offset(i)
	return c.Data[off : off+c.Layout.Length(i)]
}

// Open opens a store for the time of the test, in a new directory unless cfg
// names one.
func Open(tb testing.TB, cfg store.Config) *store.Store {
	tb.Helper()
	if cfg.Dir == "" {
		cfg.Dir = tb.TempDir()
	}
	s, err := store.Open(cfg, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// Fill puts the whole of c into s, as a reader of the origin would.
func Fill(tb testing.TB, s *store.Store, c *Content) {
	tb.Helper()
	b, err := s.Create(c.Digest, c.Size())
	if err != nil {
		tb.Fatal(err)
	}
	defer b.Release()
	for i := b.Front(); i < c.Layout.Pieces(); i = b.Front() {
		if err := b.Extend(i, c.Piece(i)); err != nil {
			tb.Fatal(err)
		}
	}
	if !b.Sealed() {
		tb.Fatalf("%s is not sealed after its last piece", c.Digest)
	}
	if err := b.Seal(); err != nil {
		tb.Fatal(err)
	}
}

// Read reads the whole blob, waiting for what is not there.
func Read(ctx context.Context, b *store.Blob) ([]byte, error) {
	r := b.Reader(ctx, 0, -1)
	defer r.Close()
	data := make([]byte, b.Size())
	n, err := io.ReadFull(r, data)
	if err == io.EOF && n == len(data) {
		err = nil // an empty blob
	}
	return data[:n], err
}
