package proxy

import "context"

// gate lets the bytes of a blob out that is not whole here, stretch by stretch.
type gate struct {
	claim *claim
	open  span  // what may go out
	next  int64 // length of the next stretch
}

// pass opens a stretch of which the server has shown places.
func (g *gate) pass(ctx context.Context, b *content, s span, seen []shown) error {
	if err := check(ctx, &contentAt{c: b, within: s}, seen); err != nil {
		return err
	}
	g.open, g.next = s, growth*s.n
	return nil
}

// at opens the stretch that begins at off.
func (g *gate) at(ctx context.Context, b *content, off int64) error {
	s := span{off, min(g.next, g.claim.size-off)}
	if wanted, _ := b.covering(off); wanted.n >= 0 {
		s.n = min(s.n, wanted.off+wanted.n-off)
	}
	if least := int64(proofPlaces * proofLength); s.n < least {
		s.off, s.n = min(off, g.claim.size-least), least // the blob is larger: see serve
	}
	seen := places(s)
	ctx, cancel := context.WithTimeout(ctx, g.claim.p.cfg.OriginTimeout)
	defer cancel()
	whole, err := g.claim.show(ctx, seen)
	if whole != nil {
		_ = whole.Body.Close()
		err = errNotKept // it showed a part before
	}
	if err == nil {
		err = g.pass(ctx, b, s, seen)
	}
	return err
}

// contentAt reads a content elsewhere than its response is.
type contentAt struct {
	c      *content
	within span // of which no more than that is opened
	off    int64
}

// Seek implements io.Seeker, from the start alone.
func (r *contentAt) Seek(off int64, _ int) (int64, error) {
	r.off = off
	return off, nil
}

// Read implements io.Reader.
func (r *contentAt) Read(p []byte) (int, error) {
	n, err := r.c.readAt(p, r.off, r.within)
	r.off += int64(n)
	return n, err
}
