package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// noise returns n bytes that do not compress, the same each time.
func noise(n int64) []byte {
	out := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(out) // it never fails
	return out
}

// fill makes a blob of size bytes and puts it into s, sealed. Each piece is the same
// noise but for its number. The caller releases the blob.
func fill(ctx context.Context, s *store.Store, size int64) (*store.Blob, error) {
	l, err := blob.NewLayout(size)
	if err != nil {
		return nil, err
	}
	piece := noise(l.PieceLength())
	at := func(i int) []byte {
		binary.BigEndian.PutUint64(piece, uint64(i))
		return piece[:l.Length(i)]
	}
	hash := sha256.New()
	for i := range l.Pieces() {
		hash.Write(at(i))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	b, err := s.Create(blob.Digest(fmt.Sprintf("sha256:%x", hash.Sum(nil))), size)
	if err != nil {
		return nil, err
	}
	for i := range l.Pieces() {
		if err := b.Extend(i, at(i)); err != nil {
			b.Release()
			return nil, err
		}
		if ctx.Err() != nil {
			b.Release()
			return nil, ctx.Err()
		}
	}
	return b, nil
}
