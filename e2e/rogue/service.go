package main

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// source is what a rogue would answer if it did not lie. Errors are gRPC's.
type source interface {
	read(ctx context.Context, req *damselflyv1.ReadRequest, send func(*damselflyv1.Chunk) error) error
	holdings(ctx context.Context, req *damselflyv1.HoldingsRequest) (*damselflyv1.HoldingsResponse, error)
	// whole tells whether all of a blob is here.
	whole(ctx context.Context, digest string, size uint64) bool
}

// counts is what the rogue did, for those who must know that the lie was told.
type counts struct{ reads, lies, bytes, claims prometheus.Counter }

func newCounts(reg prometheus.Registerer) counts {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	return counts{
		reads:  counter("rogue_reads_total", "Reads that other nodes asked for."),
		lies:   counter("rogue_lies_total", "Of these, those that were answered falsely, or not at all."),
		bytes:  counter("rogue_lie_bytes_total", "Piece bytes sent in such answers."),
		claims: counter("rogue_claims_total", "Times that a scheduler was told of a blob that is not here."),
	}
}

// begin is the moment from which the rogue lies, where it is told.
type begin struct {
	once sync.Once
	came chan struct{}
}

func newBegin(o options) *begin {
	b := &begin{came: make(chan struct{})}
	if o.begin != told {
		b.now()
	}
	return b
}

func (b *begin) now() { b.once.Do(func() { close(b.came) }) }

func (b *begin) begun() bool {
	select {
	case <-b.came:
		return true
	default:
		return false
	}
}

// service is the Peer service of a rogue. It gives no credentials: a seed that reads
// for a private client of a rogue is turned away.
type service struct {
	damselflyv1.UnimplementedPeerServer
	options
	from   source
	begin  *begin
	counts counts
}

// lies tells whether a blob is lied about now.
func (s *service) lies(ctx context.Context, digest string, size uint64) bool {
	return s.begin.begun() && (s.options.begin != whole || s.from.whole(ctx, digest, size))
}

// Read implements damselfly.v1.Peer.
func (s *service) Read(req *damselflyv1.ReadRequest, stream grpc.ServerStreamingServer[damselflyv1.Chunk]) error {
	ctx := stream.Context()
	s.counts.reads.Inc()
	if !s.lies(ctx, req.GetDigest(), req.GetSize()) {
		return s.from.read(ctx, req, stream.Send)
	}
	switch s.lie {
	case missing:
		s.counts.lies.Inc()
		return status.Error(codes.NotFound, "none of these pieces is here")
	case hang:
		s.counts.lies.Inc()
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	send := stream.Send
	switch s.lie {
	case wrongBytes:
		send = func(c *damselflyv1.Chunk) error {
			c.Data[len(c.Data)/2] ^= 1
			return stream.Send(c)
		}
	case trickle:
		send = slowly(stream)
	}
	first := true
	return s.from.read(ctx, req, func(c *damselflyv1.Chunk) error {
		if first {
			s.counts.lies.Inc()
			first = false
		}
		s.counts.bytes.Add(float64(len(c.GetData())))
		return send(c)
	})
}

// slowly sends a byte a second.
func slowly(stream grpc.ServerStreamingServer[damselflyv1.Chunk]) func(*damselflyv1.Chunk) error {
	return func(c *damselflyv1.Chunk) error {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for i := range c.GetData() {
			if err := stream.Send(&damselflyv1.Chunk{Piece: c.GetPiece(), Offset: c.GetOffset() + uint32(i), Data: c.GetData()[i : i+1]}); err != nil {
				return err
			}
			select {
			case <-tick.C:
			case <-stream.Context().Done():
				return status.FromContextError(stream.Context().Err()).Err()
			}
		}
		return nil
	}
}

// Holdings implements damselfly.v1.Peer.
func (s *service) Holdings(ctx context.Context, req *damselflyv1.HoldingsRequest) (*damselflyv1.HoldingsResponse, error) {
	return s.from.holdings(ctx, req)
}

// serve answers other nodes until ctx ends. Reads that run are broken off.
func (s *service) serve(ctx context.Context, id *identity.Identity, listener net.Listener) error {
	table := identity.MethodRoles()
	srv := grpc.NewServer(append(peer.ServerOptions(),
		grpc.Creds(id.ServerCredentials()),
		grpc.ChainUnaryInterceptor(identity.UnaryInterceptor(table)),
		grpc.ChainStreamInterceptor(identity.StreamInterceptor(table)),
	)...)
	damselflyv1.RegisterPeerServer(srv, s)
	defer context.AfterFunc(ctx, srv.Stop)()
	if err := srv.Serve(listener); ctx.Err() == nil {
		return err
	}
	return nil
}
