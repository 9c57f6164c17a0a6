// Package peer exchanges pieces with other nodes over gRPC: a Server that reads
// the store and a Client that is a source of pieces. It knows digests and piece
// numbers only; what to read from whom is the scheduler's business, and what is
// right is the store's. The node builds it; task reads through it.
package peer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/limit"
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

// frameLength is the most bytes that gRPC puts into one frame of HTTP/2.
const frameLength = 16 << 10

// transportBuffer is what is sealed and written to the socket at a time. Twice a record
// of TLS and no more: it stays in the nearest caches on its way, and a call that writes
// it is over before Go's runtime takes the caller for blocked, which costs both waking.
const (
	window           = 4 << 20
	connectionWindow = 16 << 20
	transportBuffer  = 2 * frameLength
)

// A reader must take leastRate bytes a second, after readPatience. The scheduler
// gives a lease up long before. Where others are refused for want of a slot, it must also
// take its part in each busyPatience: one part in busyShare of what the average reader takes.
const (
	readPatience = 30 * time.Second
	leastRate    = 64 << 10
	busyPatience = 2 * time.Second
	busyShare    = 16
)

// Blobs is what the server reads: the store.
type Blobs interface {
	Get(blob.Digest) (*store.Blob, bool)
}

// Tasks knows what this node's clients are after.
type Tasks interface {
	// Credential gives the headers with which a client of this node asked for a blob
	// at an origin; false when no client waits for it there.
	Credential(blob.Digest, *damselflyv1.Origin) (http.Header, bool)
	// Meet hears that another node wants a blob.
	Meet(blob.Digest, Holder)
	// Company is how this node stands to a blob, and who else is after it.
	Company(blob.Digest) Company
	// Given hears that another node is sent a piece from now on.
	Given(d blob.Digest, piece int)
}

// Company is how a node stands to a blob: it reads the origin, a client of it waits;
// and other nodes that want the blob or have served it, the latest first.
type Company struct {
	Reading, Wanting bool
	Others           []Holder
}

// Server answers other nodes. It is safe for concurrent use.
type Server struct {
	damselflyv1.UnimplementedPeerServer
	blobs Blobs
	tasks Tasks
	slots *slots
	limit *limit.Bucket
	pool  mem.BufferPool
	sends sends

	patience time.Duration
	moved    atomic.Int64 // bytes that all readers took
	onRead   func(blob.Digest) (done func())

	sent prometheus.Counter
	busy prometheus.Counter
}

// NewServer returns a server that serves at most reads Read calls at a time, and a
// quarter more for nodes of which it serves none yet; further ones are answered
// RESOURCE_EXHAUSTED at once. The scheduler hands out fewer, so that the limit only
// cuts overlaps and abuse. reg may be nil.
func NewServer(blobs Blobs, tasks Tasks, reads int, reg prometheus.Registerer) *Server {
	s := &Server{
		blobs: blobs, tasks: tasks, slots: newSlots(reads), patience: readPatience,
		pool:   newPool(),
		onRead: func(blob.Digest) func() { return func() {} },
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_peer_sent_bytes_total", Help: "Piece bytes sent to other nodes.",
		}),
		busy: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_peer_busy_total", Help: "Reads refused because every upload slot was taken, or the reader's share of them.",
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

// Limit has what is sent wait for b: by who waits for it, and alike for all nodes that
// read. It must be set before the server is served.
func (s *Server) Limit(b *limit.Bucket) { s.limit = b }

// ServerOptions are the gRPC options that a server of the Peer service needs:
// the piece codec, windows and limits.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec(newPool())),
		grpc.MaxRecvMsgSize(64 << 10),
		grpc.MaxConcurrentStreams(256),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(connectionWindow),
		grpc.WriteBufferSize(transportBuffer),
		grpc.ReadBufferSize(0), // Buffered has one
	}
}

// Read implements damselfly.v1.Peer.
func (s *Server) Read(req *damselflyv1.ReadRequest, stream grpc.ServerStreamingServer[damselflyv1.Chunk]) error {
	b, err := s.find(req)
	if err != nil {
		return err
	}
	reader := identity.KeyFromContext(stream.Context())
	if err := s.slots.take(reader); err != nil {
		b.Release()
		s.busy.Inc()
		return err
	}
	_ = stream.SetHeader(placesHeader(b.Places())) // fails only once something was sent
	t := &turn{stream: stream, blob: b, reader: reader, class: classOf(req)}
	pieces := s.pieces(b, req)
	done := s.onRead(b.Digest())
	// A message that nobody takes is waited for until the stream ends, which it
	// does when this returns: so sending is not done here.
	sent := make(chan error, 1)
	go func() {
		defer func() {
			s.slots.leave(reader)
			done()
			b.Release()
		}()
		sent <- s.send(t, pieces)
	}()
	return s.watch(sent, t)
}

// classOf is who waits for what req asks for; who is unknown here is in the background.
func classOf(req *damselflyv1.ReadRequest) limit.Class {
	p := req.GetPriority()
	if p < 0 || p > damselflyv1.Want_PRIORITY_BACKGROUND {
		return limit.Background
	}
	return limit.Class(p)
}

// watch returns the result of sending, or gives up a reader that takes too
// little: it would keep a slot from the others.
func (s *Server) watch(sent <-chan error, t *turn) error {
	started := time.Now()
	tick := time.NewTicker(min(s.patience/4, busyPatience))
	defer tick.Stop()
	before := share{at: started, all: s.moved.Load()}
	for {
		select {
		case err := <-sent:
			return err
		case now := <-tick.C:
			after := share{now, t.moved.Load(), s.moved.Load(), t.waited(now)}
			switch {
			case t.overdue(now, now.Sub(started), s.patience):
				return status.Error(codes.DeadlineExceeded, "the reader takes too little; others wait for its slot")
			case before.idle(after, s.slots.pressed(now)):
				return status.Error(codes.ResourceExhausted, "others wait for the slot, and the reader takes less than they would")
			}
			if now.Sub(before.at) >= busyPatience {
				before = after
			}
		}
	}
}

// share is what one reader and all of them have taken at a time.
type share struct {
	at        time.Time
	mine, all int64
	waited    time.Duration // for this node's own limit
}

// idle reports whether a reader has taken so little since that it keeps others out for
// nothing; of readers there are so many, 0 where nobody is kept out.
func (s share) idle(now share, readers int) bool {
	had := now.at.Sub(s.at) - (now.waited - s.waited)
	return readers > 0 && had >= busyPatience && (now.mine-s.mine)*busyShare*int64(readers) <= now.all-s.all
}

// send sends pieces in their order; none is an answer, too.
func (s *Server) send(t *turn, pieces iter.Seq[int]) error {
	none := true
	for i := range pieces {
		none = false
		if err := s.sendPiece(t, i); err != nil {
			return err
		}
		t.taken.Add(t.blob.Layout().Length(i))
	}
	if none {
		return status.Error(codes.NotFound, "none of these pieces is here")
	}
	return nil
}

func (s *Server) find(req *damselflyv1.ReadRequest) (*store.Blob, error) {
	d, err := blob.ParseDigest(req.GetDigest())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	b, ok := s.blobs.Get(d)
	if !ok {
		return nil, status.Error(codes.NotFound, "this node does not hold the blob")
	}
	if err := check(b.Layout(), req); err != nil {
		b.Release()
		return nil, err
	}
	return b, nil
}

func check(l blob.Layout, req *damselflyv1.ReadRequest) error {
	if req.GetSize() != uint64(l.Size()) {
		return status.Errorf(codes.FailedPrecondition, "the blob has %d bytes here, %d were asked for", l.Size(), req.GetSize())
	}
	runs := req.GetLacking()
	if req.GetRun() != nil {
		if len(runs) > 0 {
			return status.Error(codes.InvalidArgument, "both a run and lacking pieces are named")
		}
		runs = append(runs, req.GetRun())
	}
	if len(runs) == 0 || len(runs) > l.Pieces() {
		return status.Errorf(codes.InvalidArgument, "%d runs of a blob of %d pieces", len(runs), l.Pieces())
	}
	for _, r := range runs {
		if err := l.Check(runOf(r)); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
	return nil
}

func runOf(r *damselflyv1.Run) blob.Run {
	return blob.Run{First: int(r.GetFirst()), Count: int(r.GetCount())}
}

// pieces are those that a request is answered with: its run, or what it lacks and is
// here and was sent least.
func (s *Server) pieces(b *store.Blob, req *damselflyv1.ReadRequest) iter.Seq[int] {
	if req.GetRun() != nil {
		run := runOf(req.GetRun())
		s.sends.add(b.Digest(), b.Layout().Pieces(), run)
		return func(yield func(int) bool) {
			for i := run.First; i < run.End() && yield(i); i++ {
			}
		}
	}
	have, asked := b.Have(), blob.NewBitmap(b.Layout().Pieces())
	for _, r := range req.GetLacking() {
		for i := have.NextSet(int(r.GetFirst())); i < runOf(r).End(); i = have.NextSet(i + 1) {
			asked.Set(i)
		}
	}
	return slices.Values(s.sends.least(b.Digest(), asked, int(max(req.GetMost(), 1))))
}

func (s *Server) sendPiece(t *turn, i int) error {
	b := t.blob
	length := int(b.Layout().Length(i))
	chunk := min(chunkLength, max(leastChunk, length/leastChunks))
	for off := 0; off < length; off += chunk {
		n := min(chunk, length-off)
		if err := t.await(s.limit, n); err != nil {
			return err
		}
		buf := s.pool.Get(n)
		if _, err := b.ReadAt(*buf, b.Layout().Offset(i)+int64(off)); err != nil {
			s.pool.Put(buf)
			if errors.Is(err, store.ErrMissing) {
				return status.Errorf(codes.NotFound, "piece %d is not here", i)
			}
			return status.Errorf(codes.Unavailable, "piece %d cannot be read here", i)
		}
		if off == 0 {
			s.tasks.Given(b.Digest(), i)
		}
		// SendMsg takes over the reference whether it succeeds or not.
		if err := t.stream.SendMsg(&outgoing{piece: uint32(i), offset: uint32(off), data: mem.NewBuffer(buf, s.pool)}); err != nil {
			return err
		}
		s.sent.Add(float64(n))
		t.moved.Add(int64(n))
		s.moved.Add(int64(n))
	}
	return nil
}

// Bounds of one answer to Holdings: links go on at first_link, runs are of no use
// beyond what one asks for next.
const (
	maxHoldingsLinks = 128 << 10
	maxHoldingsRuns  = 4096
)

// Holdings implements damselfly.v1.Peer.
func (s *Server) Holdings(ctx context.Context, req *damselflyv1.HoldingsRequest) (*damselflyv1.HoldingsResponse, error) {
	d, err := blob.ParseDigest(req.GetDigest())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	asker, _ := identity.PeerFromContext(ctx)
	company := s.tasks.Company(d)
	res := &damselflyv1.HoldingsResponse{Reading: company.Reading, Wanting: company.Wanting}
	for _, o := range company.Others {
		if o.ID != asker.ID && len(res.Others) < maxOthers {
			res.Others = append(res.Others, &damselflyv1.Holder{Node: o.ID, Address: o.Address})
		}
	}
	if a := req.GetAddress(); a != "" && asker.ID != "" {
		if err := checkAddress(a); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		s.tasks.Meet(d, Holder{ID: asker.ID, Address: a})
	}
	b, ok := s.blobs.Get(d)
	if !ok {
		return res, nil
	}
	defer b.Release()
	if req.GetSize() != uint64(b.Size()) {
		return nil, status.Errorf(codes.FailedPrecondition, "the blob has %d bytes here, %d were asked for", b.Size(), req.GetSize())
	}
	res.Sealed = b.Sealed()
	first := int(min(req.GetFirstLink(), uint32(b.Layout().Pieces())))
	first, res.Links = b.Links(first, min(b.Layout().Pieces()-first, maxHoldingsLinks/d.LinkSize()))
	res.FirstLink = uint32(first)
	for _, r := range b.Have().Runs() {
		if len(res.Runs) == maxHoldingsRuns {
			break
		}
		res.Runs = append(res.Runs, &damselflyv1.Run{First: uint32(r.First), Count: uint32(r.Count)})
	}
	return res, nil
}

// maxOthers bounds whom one answer names.
const maxOthers = 32

// checkAddress errs unless a node could be reached at address, host:port. Names are
// as long as DNS allows (RFC 1035, 2.3.4).
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || port == "" || len(address) > 255+len(":65535") {
		return fmt.Errorf("address %.300q: want host:port", address)
	}
	return nil
}

// Credential implements damselfly.v1.Peer. That only seeds call it is the role
// table's work (pkg/identity).
func (s *Server) Credential(_ context.Context, req *damselflyv1.CredentialRequest) (*damselflyv1.CredentialResponse, error) {
	d, err := blob.ParseDigest(req.GetDigest())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	header, ok := s.tasks.Credential(d, req.GetOrigin())
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
