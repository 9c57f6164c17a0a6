package task

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// overflow reads a blob from the store for as long as the store has room for it,
// and then goes on at the origin: a full disk is no reason to leave a client
// without its image.
type overflow struct {
	io.ReadSeekCloser // the store's

	blob *store.Blob
	rest *originContent
	full bool
}

func (o *overflow) Read(p []byte) (int, error) {
	if !o.full {
		n, err := o.ReadSeekCloser.Read(p)
		if n > 0 || !errors.Is(err, store.ErrNoSpace) {
			return n, err
		}
		at, err := o.ReadSeekCloser.Seek(0, io.SeekCurrent)
		if err != nil {
			return 0, err
		}
		if _, err := o.rest.Seek(at, io.SeekStart); err != nil {
			return 0, err
		}
		o.rest.prove(o.blob, at)
		o.full = true
	}
	return o.rest.Read(p)
}

func (o *overflow) Seek(off int64, whence int) (int64, error) {
	if o.full {
		return o.rest.Seek(off, whence)
	}
	return o.ReadSeekCloser.Seek(off, whence)
}

func (o *overflow) Close() error {
	return errors.Join(o.rest.Close(), o.ReadSeekCloser.Close())
}

// originContent reads an origin, or what a swarm has of it, from wherever it was sought to. Who reads to the
// end from the start, or from where prove has seen what comes before, gets the
// last bytes only if all of them have the digest. A part alone cannot be proven:
// it goes to the one client that asked, as the origin sent it.
type originContent struct {
	ctx    context.Context
	from   func(ctx context.Context, off int64) (io.ReadCloser, error)
	swarm  func(ctx context.Context, off int64) (io.ReadCloser, error) // not nil: for what is proven at its end
	ref    origin.Ref
	digest blob.Digest
	size   int64
	off    int64
	body   io.ReadCloser
	sum    hash.Hash // of the bytes before summed
	summed int64
}

func (m *Manager) originContent(ctx context.Context, req Request, size int64) *originContent {
	return &originContent{
		ctx: ctx, ref: req.Ref, digest: req.Digest, size: size, sum: req.Digest.Hash(),
		from: func(ctx context.Context, off int64) (io.ReadCloser, error) {
			return m.origins.Read(ctx, req.Ref, req.Header, size, off, -1)
		},
	}
}

// prove takes the first n bytes from where they are held. Where some are not, as
// for a client that began further on, nothing is proven.
func (c *originContent) prove(held io.ReaderAt, n int64) {
	sum := c.digest.Hash()
	if _, err := io.Copy(sum, io.NewSectionReader(held, 0, n)); err == nil {
		c.sum, c.summed = sum, n
	}
}

func (c *originContent) open() error {
	if c.body != nil {
		return nil
	}
	from := c.from
	if c.swarm != nil && c.off == c.summed {
		from = c.swarm
	}
	body, err := from(c.ctx, c.off)
	if err != nil {
		return err
	}
	c.body = body
	return nil
}

func (c *originContent) Read(p []byte) (int, error) {
	if c.off >= c.size {
		return 0, io.EOF
	}
	if err := c.open(); err != nil {
		return 0, err
	}
	n, err := c.body.Read(p)
	if c.off == c.summed {
		_, _ = c.sum.Write(p[:n]) // never fails (hash.Hash)
		c.summed += int64(n)
		if c.summed == c.size && blob.Of(c.digest.Algorithm(), c.sum) != c.digest {
			return 0, fmt.Errorf("%s of %s: %w", c.digest, c.ref, blob.ErrMismatch)
		}
	}
	c.off += int64(n)
	return n, err
}

func (c *originContent) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += c.off
	case io.SeekEnd:
		off += c.size
	}
	if off < 0 {
		return 0, fmt.Errorf("seeking to %d: before the start", off)
	}
	if off != c.off {
		if err := c.Close(); err != nil {
			return 0, err
		}
		c.off = off
	}
	return off, nil
}

func (c *originContent) Close() error {
	if c.body == nil {
		return nil
	}
	err := c.body.Close()
	c.body = nil
	return err
}
