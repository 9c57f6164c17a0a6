package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// stream collects what a Read sends.
type stream struct {
	grpc.ServerStream
	ctx  context.Context
	sent []byte
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) Send(c *damselflyv1.Chunk) error {
	s.sent = append(s.sent, c.GetData()...)
	return s.ctx.Err()
}

// honest holds a blob of a few bytes.
type honest struct{ sealed bool }

func (*honest) read(_ context.Context, _ *damselflyv1.ReadRequest, send func(*damselflyv1.Chunk) error) error {
	return send(&damselflyv1.Chunk{Data: []byte("abcdefgh")})
}

func (*honest) holdings(context.Context, *damselflyv1.HoldingsRequest) (*damselflyv1.HoldingsResponse, error) {
	return &damselflyv1.HoldingsResponse{}, nil
}

func (h *honest) whole(context.Context, string, uint64) bool { return h.sealed }

// read asks a service for a piece and waits for at most three and a half seconds.
func read(s *service) (sent string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3500*time.Millisecond)
	defer cancel()
	to := &stream{ctx: ctx}
	err = s.Read(&damselflyv1.ReadRequest{}, to)
	return string(to.sent), err
}

func value(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// TestLies checks what each lie looks like to who is lied to, and that it is counted.
func TestLies(t *testing.T) {
	for _, row := range []struct {
		lie, sent string
		code      codes.Code
		bytes     float64
	}{
		{wrongBytes, "abcddfgh", codes.OK, 8},
		{missing, "", codes.NotFound, 0},
		{trickle, "abcd", codes.DeadlineExceeded, 8},
		{hang, "", codes.DeadlineExceeded, 0},
		{forgedChain, "abcdefgh", codes.OK, 8},
	} {
		t.Run(row.lie, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := options{lie: row.lie, begin: now}
				s := &service{options: o, from: &honest{}, begin: newBegin(o), counts: newCounts(prometheus.NewRegistry())}
				if sent, err := read(s); sent != row.sent || status.Code(err) != row.code {
					t.Errorf("sent %q, %v, want %q and %v", sent, err, row.sent, row.code)
				}
				if lies, n := value(t, s.counts.lies), value(t, s.counts.bytes); lies != 1 || n != row.bytes {
					t.Errorf("counted %v lies of %v bytes, want 1 of %v", lies, n, row.bytes)
				}
			})
		})
	}
}

// TestBegins checks that a rogue is honest until it is to lie.
func TestBegins(t *testing.T) {
	for _, row := range []struct {
		begin string
		start func(*service, *honest)
	}{
		{whole, func(_ *service, h *honest) { h.sealed = true }},
		{told, func(s *service, _ *honest) { s.begin.now() }},
	} {
		o := options{lie: wrongBytes, begin: row.begin}
		from := &honest{}
		s := &service{options: o, from: from, begin: newBegin(o), counts: newCounts(prometheus.NewRegistry())}
		for _, want := range []string{"abcdefgh", "abcddfgh"} {
			if sent, err := read(s); sent != want || err != nil {
				t.Errorf("--begin %s: sent %q, %v, want %q", row.begin, sent, err, want)
			}
			row.start(s, from)
		}
	}
}

// TestForge checks that a forged chain holds for every piece but the last, which
// cannot lead to the digest.
func TestForge(t *testing.T) {
	const size = 3*blob.MinPieceLength + 5
	o := options{lie: forgedChain, begin: now, claim: claimPieces, blobs: []string{"sha256:" + strings.Repeat("ab", 32) + ",786437"}}
	if err := o.check(); err != nil {
		t.Fatal(err)
	}
	in, err := invent(o, newBegin(o))
	if err != nil {
		t.Fatal(err)
	}
	f := in.blobs[o.subjects[0].digest]
	if f.layout.Size() != size {
		t.Fatalf("size %d, want %d", f.layout.Size(), size)
	}
	chain := blob.NewChain(f.digest, f.layout)
	if err := chain.Add(1, f.links); err != nil || !chain.Whole() {
		t.Fatalf("%d bytes of links: %v", len(f.links), err)
	}
	pieces := map[int][]byte{}
	req := &damselflyv1.ReadRequest{Digest: f.digest.String(), Size: size, Lacking: []*damselflyv1.Run{{First: 0, Count: 1}, {First: 1, Count: 3}}, Most: 4}
	err = in.read(t.Context(), req, func(c *damselflyv1.Chunk) error {
		if int(c.GetOffset()) != len(pieces[int(c.GetPiece())]) {
			t.Errorf("chunk at %d of piece %d, want %d", c.GetOffset(), c.GetPiece(), len(pieces[int(c.GetPiece())]))
		}
		pieces[int(c.GetPiece())] = append(pieces[int(c.GetPiece())], c.GetData()...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range f.layout.Pieces() {
		next, err := blob.Advance(f.digest, f.layout, i, chain.Link(i), pieces[i])
		if last := i == f.layout.Pieces()-1; last != (err != nil) || !last && !bytes.Equal(next, chain.Link(i+1)) {
			t.Errorf("piece %d: %v", i, err)
		}
	}
}
