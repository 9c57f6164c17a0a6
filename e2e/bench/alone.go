package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/pkg/node"
)

// atOnce does something as often at a time as the piece exchange runs leases, for
// cores that are shared do less each. part is told which of how many it is.
func atOnce(ctx context.Context, part func(ctx context.Context, at, of int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	of := node.DefaultConfig().Peer.DownloadSlots
	for at := range of {
		g.Go(func() error { return part(ctx, at, of) })
	}
	return g.Wait()
}

// hashAlone hashes so many bytes in pieces, each as long as data.
func hashAlone(ctx context.Context, data []byte, bytes int64) error {
	return atOnce(ctx, func(ctx context.Context, at, of int) error {
		step := int64(len(data))
		var sum [sha256.Size]byte
		for off := int64(at) * step; off < bytes && ctx.Err() == nil; off += int64(of) * step {
			sum = sha256.Sum256(data[:min(step, bytes-off)])
		}
		if sum == [sha256.Size]byte{} && ctx.Err() == nil && bytes >= int64(of)*step {
			return errors.New("nothing was hashed")
		}
		return ctx.Err()
	})
}

// writeAlone writes so many bytes into a new file as the store does: pieces as long as
// data, at offsets, with no sync.
func writeAlone(ctx context.Context, file string, data []byte, bytes int64) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return atOnce(ctx, func(ctx context.Context, at, of int) error {
		step := int64(len(data))
		for off := int64(at) * step; off < bytes && ctx.Err() == nil; off += int64(of) * step {
			if _, err := f.WriteAt(data[:min(step, bytes-off)], off); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
}
