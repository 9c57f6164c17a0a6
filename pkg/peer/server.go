// Package peer exchanges pieces with other nodes over gRPC: a Server that reads
// the store and a Client that is a source of pieces. It knows digests and piece
// numbers only; what to read from whom is the scheduler's business, and what is
// right is the store's. The node builds it; task reads through it.
package peer

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// chunkLength is the most piece bytes that one message carries. Small enough
// that streams of one connection take turns, large enough that the cost of a
// message does not show. Small pieces come in leastChunks parts, of leastChunk at
// least: a reader sees from them how fast the piece comes.
const (
	chunkLength = 256 << 10
	leastChunk  = 64 << 10
	leastChunks = 4
)

const (
	window           = 4 << 20
	connectionWindow = 16 << 20
	transportBuffer  = 128 << 10
)

// A reader must take leastRate bytes a second, after readPatience. The scheduler
// gives a lease up long before.
const (
	readPatience = 30 * time.Second
	leastRate    = 64 << 10
)

// Blobs is what the server reads: the store.
type Blobs interface {
	Get(blob.Digest) (*store.Blob, bool)
}

// Credentials gives the headers with which a client of this node asked for a blob
// at an origin; false when no client waits for it there.
type Credentials interface {
	Credential(blob.Digest, *damselflyv1.Origin) (http.Header, bool)
}

// Server answers other nodes. It is safe for concurrent use.
type Server struct {
	damselflyv1.UnimplementedPeerServer
	blobs Blobs
	creds Credentials
	slots chan struct{}
	pool  mem.BufferPool

	patience time.Duration
	onRead   func(blob.Digest) (done func())

	sent prometheus.Counter
	busy prometheus.Counter
}

// NewServer returns a server that serves at most reads Read calls at a time;
// further ones are answered RESOURCE_EXHAUSTED at once. The scheduler hands out
// fewer, so that the limit only cuts overlaps and abuse. reg may be nil.
func NewServer(blobs Blobs, creds Credentials, reads int, reg prometheus.Registerer) *Server {
	s := &Server{
		blobs: blobs, creds: creds, slots: make(chan struct{}, max(reads, 1)), patience: readPatience,
		pool:   mem.NewTieredBufferPool(leastChunk, chunkLength),
		onRead: func(blob.Digest) func() { return func() {} },
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_peer_sent_bytes_total", Help: "Piece bytes sent to other nodes.",
		}),
		busy: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_peer_busy_total", Help: "Reads refused because every upload slot was taken.",
		}),
	}
	if reg != nil {
		reg.MustRegister(s.sent, s.busy)
	}
	return s
}

// OnRead has fn called when a Read that is served begins, and what fn returns when it
// has ended. It must be set before the server is served.
func (s *Server) OnRead(fn func(d blob.Digest) (done func())) { s.onRead = fn }

// ServerOptions are the gRPC options that a server of the Peer service needs:
// the piece codec, windows and limits.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(64 << 10),
		grpc.MaxConcurrentStreams(256),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(connectionWindow),
		grpc.WriteBufferSize(transportBuffer),
		grpc.ReadBufferSize(32 << 10),
	}
}

// Read implements damselfly.v1.Peer.
func (s *Server) Read(req *damselflyv1.ReadRequest, stream grpc.ServerStreamingServer[damselflyv1.Chunk]) error {
	b, run, err := s.find(req)
	if err != nil {
		return err
	}
	select {
	case s.slots <- struct{}{}:
	default:
		b.Release()
		s.busy.Inc()
		return status.Error(codes.ResourceExhausted, "every upload slot of this node is taken")
	}
	done := s.onRead(b.Digest())
	// A message that nobody takes is waited for until the stream ends, which it
	// does when this returns: so sending is not done here.
	var taken atomic.Int64
	sent := make(chan error, 1)
	go func() {
		defer func() {
			<-s.slots
			done()
			b.Release()
		}()
		sent <- s.send(stream, b, run, &taken)
	}()
	return s.watch(sent, &taken)
}

// watch returns the result of sending, or gives up a reader that takes too
// little: it would keep a slot from the others.
func (s *Server) watch(sent <-chan error, taken *atomic.Int64) error {
	started := time.Now()
	tick := time.NewTicker(s.patience / 4)
	defer tick.Stop()
	for {
		select {
		case err := <-sent:
			return err
		case now := <-tick.C:
			if now.Sub(started) > s.patience+time.Duration(taken.Load()/leastRate)*time.Second {
				return status.Error(codes.DeadlineExceeded, "the reader takes too little; others wait for its slot")
			}
		}
	}
}

func (s *Server) send(stream grpc.ServerStream, b *store.Blob, run blob.Run, taken *atomic.Int64) error {
	for i := run.First; i < run.End(); i++ {
		if err := s.sendPiece(stream, b, i); err != nil {
			return err
		}
		taken.Add(b.Layout().Length(i))
	}
	return nil
}

func (s *Server) find(req *damselflyv1.ReadRequest) (*store.Blob, blob.Run, error) {
	d, err := blob.ParseDigest(req.GetDigest())
	if err != nil {
		return nil, blob.Run{}, status.Error(codes.InvalidArgument, err.Error())
	}
	b, ok := s.blobs.Get(d)
	if !ok {
		return nil, blob.Run{}, status.Error(codes.NotFound, "this node does not hold the blob")
	}
	run, err := s.check(b, req)
	if err != nil {
		b.Release()
		return nil, blob.Run{}, err
	}
	return b, run, nil
}

func (*Server) check(b *store.Blob, req *damselflyv1.ReadRequest) (blob.Run, error) {
	run := blob.Run{First: int(req.GetRun().GetFirst()), Count: int(req.GetRun().GetCount())}
	if err := b.Layout().Check(run); err != nil {
		return blob.Run{}, status.Error(codes.InvalidArgument, err.Error())
	}
	if req.GetSize() != uint64(b.Size()) {
		return blob.Run{}, status.Errorf(codes.FailedPrecondition, "the blob has %d bytes here, %d were asked for", b.Size(), req.GetSize())
	}
	return run, nil
}

func (s *Server) sendPiece(stream grpc.ServerStream, b *store.Blob, i int) error {
	length := int(b.Layout().Length(i))
	chunk := min(chunkLength, max(leastChunk, length/leastChunks))
	for off := 0; off < length; off += chunk {
		n := min(chunk, length-off)
		buf := s.pool.Get(n)
		if _, err := b.ReadAt(*buf, b.Layout().Offset(i)+int64(off)); err != nil {
			s.pool.Put(buf)
			if errors.Is(err, store.ErrMissing) {
				return status.Errorf(codes.NotFound, "piece %d is not here", i)
			}
			return status.Errorf(codes.Unavailable, "piece %d cannot be read here", i)
		}
		// SendMsg takes over the reference whether it succeeds or not.
		if err := stream.SendMsg(&outgoing{piece: uint32(i), offset: uint32(off), data: mem.NewBuffer(buf, s.pool)}); err != nil {
			return err
		}
		s.sent.Add(float64(n))
	}
	return nil
}

// Holdings implements damselfly.v1.Peer.
func (s *Server) Holdings(_ context.Context, req *damselflyv1.HoldingsRequest) (*damselflyv1.HoldingsResponse, error) {
	d, err := blob.ParseDigest(req.GetDigest())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	b, ok := s.blobs.Get(d)
	if !ok {
		return nil, status.Error(codes.NotFound, "this node does not hold the blob")
	}
	defer b.Release()
	if req.GetSize() != uint64(b.Size()) {
		return nil, status.Errorf(codes.FailedPrecondition, "the blob has %d bytes here, %d were asked for", b.Size(), req.GetSize())
	}
	res := &damselflyv1.HoldingsResponse{Sealed: b.Sealed()}
	_, res.Links = b.Links(0, b.Layout().Pieces())
	for _, r := range b.Have().Runs() {
		res.Runs = append(res.Runs, &damselflyv1.Run{First: uint32(r.First), Count: uint32(r.Count)})
	}
	return res, nil
}

// Credential implements damselfly.v1.Peer. That only seeds call it is the role
// table's work (pkg/identity).
func (s *Server) Credential(_ context.Context, req *damselflyv1.CredentialRequest) (*damselflyv1.CredentialResponse, error) {
	d, err := blob.ParseDigest(req.GetDigest())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	header, ok := s.creds.Credential(d, req.GetOrigin())
	if !ok {
		return nil, status.Error(codes.NotFound, "no client of this node waits for the blob from that origin")
	}
	res := &damselflyv1.CredentialResponse{}
	for name, values := range header {
		for _, v := range values {
			res.Headers = append(res.Headers, &damselflyv1.Header{Name: name, Value: v})
		}
	}
	return res, nil
}
