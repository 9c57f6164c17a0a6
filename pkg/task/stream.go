package task

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/limit"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// How a client is fed that the store has no room for.
const (
	// streamPatience is how long nobody may have the next piece until the origin is
	// read for this client alone; firstPatience, while nobody has had any.
	streamPatience = 3 * time.Second
	firstPatience  = 400 * time.Millisecond
	// streamPieces bounds the pieces that one node is asked for at a time.
	streamPieces = 4
	// streamPause is between two rounds of asking everybody.
	streamPause = 50 * time.Millisecond
)

// swarmContent is originContent that reads from other nodes what they have: a node
// without room must not take the origin's line from those that read it for all. held
// has links that prove pieces; nil: the digest proves them in the end.
func (m *Manager) swarmContent(ctx context.Context, req Request, size int64, held *store.Blob) *originContent {
	c := m.originContent(ctx, req, size)
	fromOrigin := c.from
	c.swarm = func(ctx context.Context, off int64) (io.ReadCloser, error) {
		l, err := blob.NewLayout(size)
		if err != nil {
			return nil, err
		}
		if len(m.acquainted(req.Digest)) == 0 {
			return fromOrigin(ctx, off)
		}
		ctx, end := context.WithCancel(ctx)
		r, w := io.Pipe()
		s := &swarmStream{m: m, digest: req.Digest, layout: l, held: held, liars: map[string]bool{}, off: off, out: w}
		if held != nil {
			held.Acquire()
		}
		m.running.Go(func() {
			err := s.run(ctx)
			if err == nil && s.off < size {
				var body io.ReadCloser
				if body, err = fromOrigin(ctx, s.off); err == nil {
					_, err = io.Copy(w, body)
					err = errors.Join(err, body.Close())
				}
			}
			if held != nil {
				held.Release()
			}
			w.CloseWithError(err)
		})
		return &streamBody{r, end}, nil
	}
	return c
}

// acquainted lists whom this node can ask for a blob, seeds last.
func (m *Manager) acquainted(d blob.Digest) []peer.Holder {
	now := time.Now()
	self, seeds := m.scheduler.Known()
	if self.ID == "" {
		return nil
	}
	out := slices.Concat(m.contacts.after(d, now), m.contacts.any(now))
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	known := map[string]bool{self.ID: true}
	return slices.DeleteFunc(append(out, seeds...), func(h peer.Holder) bool {
		defer func() { known[h.ID] = true }()
		return known[h.ID]
	})
}

// streamBody ends its stream when it is closed.
type streamBody struct {
	*io.PipeReader
	end context.CancelFunc
}

func (b *streamBody) Close() error {
	b.end()
	return b.PipeReader.Close()
}

// swarmStream reads a blob in order from whoever has the next piece. Who reads it
// proves the whole; links that are known find liars before.
type swarmStream struct {
	m      *Manager
	digest blob.Digest
	layout blob.Layout
	held   *store.Blob // may be nil
	liars  map[string]bool
	off    int64 // of what comes next
	out    *io.PipeWriter
}

// run returns nil when the blob has ended, or nobody has what comes next: the origin
// goes on at off.
func (s *swarmStream) run(ctx context.Context) error {
	last, patience := time.Now(), firstPatience
	timer := time.NewTimer(0)
	defer timer.Stop()
	for s.off < s.layout.Size() {
		before := s.off
		for _, h := range s.m.acquainted(s.digest) {
			if s.liars[h.ID] {
				continue
			}
			if err := s.read(ctx, h); err != nil {
				return err
			}
			if s.off > before {
				break
			}
		}
		if s.off > before {
			last, patience = time.Now(), streamPatience
			continue
		}
		if time.Since(last) > patience {
			s.m.log.Debug("nobody has the next piece for a client without room; reading the origin", zap.Stringer("digest", s.digest))
			return nil
		}
		timer.Reset(streamPause)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
	return nil
}

// read passes on what one node has of the next pieces. It errs when the client is gone.
func (s *swarmStream) read(ctx context.Context, h peer.Holder) error {
	first := s.layout.At(s.off)
	run := blob.Run{First: first, Count: min(streamPieces, s.layout.Pieces()-first)}
	patient, cancel := limit.WithTimeout(ctx, slowRead+time.Duration(s.layout.Bytes(run)/slowRate)*time.Second, errOverdue)
	defer cancel()
	err := s.m.peers.Read(patient, h, s.digest, s.layout, run, func(_ peer.Sender, i int) peer.Taker { return &passage{s: s, from: h.ID, i: i} }, nil)
	if ctx.Err() != nil || errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	return nil // another may do better
}

// passage is a piece on its way to the client of a swarmStream.
type passage struct {
	s     *swarmStream
	from  string // its holder
	i     int
	parts [][]byte
}

// Add implements peer.Taker.
func (p *passage) Add(part []byte) { p.parts = append(p.parts, part) }

// Put implements peer.Taker.
func (p *passage) Put() error {
	s := p.s
	if s.misfits(p.i, p.parts) {
		s.liars[p.from] = true
		return blob.ErrMismatch
	}
	at := s.layout.Offset(p.i)
	for _, part := range p.parts {
		if had := max(s.off-at, 0); had < int64(len(part)) {
			n, err := s.out.Write(part[had:])
			s.off += int64(n)
			if err != nil {
				return err
			}
		}
		at += int64(len(part))
	}
	return nil
}

// misfits tells whether known links say that piece i is another.
func (s *swarmStream) misfits(i int, parts [][]byte) bool {
	if s.held == nil {
		return false
	}
	size := s.digest.LinkSize()
	first, links := s.held.Links(i, 2)
	if first != i || len(links) < size || len(links) < 2*size && i+1 < s.layout.Pieces() {
		return false
	}
	a, err := blob.Absorb(s.digest, s.layout, i, links[:size])
	if err != nil {
		return true
	}
	for _, part := range parts {
		a.Add(part)
	}
	next, err := a.Next()
	return err != nil || next != nil && !bytes.Equal(next, links[size:])
}
