package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/limit"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// What a holder answered instead of pieces.
var (
	// ErrBusy: the holder is at its limit; nobody is to blame.
	ErrBusy = errors.New("holder is busy")
	// ErrMissing: the holder has not what was asked for.
	ErrMissing = errors.New("holder has not the piece")
	// ErrUnreachable: the holder did not answer or broke off.
	ErrUnreachable = errors.New("holder cannot be reached")
	// ErrMalformed: the holder sent what no honest holder sends.
	ErrMalformed = errors.New("holder sent a malformed answer")
)

// Holder is a node to read from: its peer ID, which its certificate must carry,
// and the host:port of its Peer service.
type Holder struct{ ID, Address string }

// Transport gives the TLS configuration for a connection to whom it expects.
type Transport interface {
	ClientTLS(identity.Expect) *tls.Config
}

// Client reads from other nodes, one connection a node. It is safe for
// concurrent use; Close ends it.
type Client struct {
	transport Transport
	limit     *limit.Bucket
	buffers   mem.BufferPool

	mu    sync.Mutex
	conns map[Holder]*conn
}

type conn struct {
	cc   *grpc.ClientConn
	used int
	last time.Time
}

// idleConnections is how many connections without a call are kept for the next.
const idleConnections = 64

// NewClient returns a client that trusts whom transport trusts.
func NewClient(transport Transport) *Client {
	return &Client{transport: transport, buffers: newPool(), conns: map[Holder]*conn{}}
}

// Limit has what is read wait for b, as the class that each call's context says. It must
// be set before the first call.
func (c *Client) Limit(b *limit.Bucket) { c.limit = b }

// Close closes every connection; calls that run end.
func (c *Client) Close() error {
	c.mu.Lock()
	conns := c.conns
	c.conns = map[Holder]*conn{}
	c.mu.Unlock()
	var errs []error
	for _, cn := range conns {
		errs = append(errs, cn.cc.Close())
	}
	return errors.Join(errs...)
}

// Sender is the node that sends pieces.
type Sender struct {
	// Role is what its certificate says.
	Role identity.Role
	// Places is where an origin has served the blob, as that node knows.
	Places []blob.Place
}

// Begin says who takes piece i, which begins to come from a node.
type Begin func(from Sender, i int) Taker

// Taker takes one piece.
type Taker interface {
	// Add takes the next part of the piece, in order. The part stays as it is until Put
	// has returned, and no longer; nor longer than the Read that adds it.
	Add(part []byte)
	// Put is called once the whole piece was added.
	Put() error
}

// Read asks holder for the pieces of run, which come in order, each to the taker that
// begin names, on this goroutine. progress, unless nil, is told of each part of a piece
// as it comes, also here and before Put: its length in bytes. Read returns Put's
// error or one of this package's.
func (c *Client) Read(ctx context.Context, h Holder, d blob.Digest, l blob.Layout, run blob.Run, begin Begin, progress func(n int)) error {
	req := &damselflyv1.ReadRequest{Digest: d.String(), Size: uint64(l.Size()), Run: wireRun(run)}
	return c.read(ctx, h, req, func(r *reading) error {
		r.progress = progress
		for i := run.First; i < run.End(); i++ {
			err := r.piece(l, func(p int) bool { return p == i }, begin)
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("%w: %s ended before piece %d was whole", ErrMissing, h.ID, i)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// ReadSome asks holder for at most so many of the lacking pieces as most says, which
// it chooses, and gives each away as Read does. No piece at all is ErrMissing.
func (c *Client) ReadSome(ctx context.Context, h Holder, d blob.Digest, l blob.Layout, lacking *blob.Bitmap, most int, begin Begin) error {
	req := &damselflyv1.ReadRequest{Digest: d.String(), Size: uint64(l.Size()), Most: uint32(most)}
	for _, run := range lacking.Runs() {
		req.Lacking = append(req.Lacking, wireRun(run))
	}
	open := lacking.Clone()
	return c.read(ctx, h, req, func(r *reading) error {
		for range most {
			err := r.piece(l, open.Clear, begin)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func wireRun(r blob.Run) *damselflyv1.Run {
	return &damselflyv1.Run{First: uint32(r.First), Count: uint32(r.Count)}
}

// read opens a Read stream for take.
func (c *Client) read(ctx context.Context, h Holder, req *damselflyv1.ReadRequest, take func(*reading) error) error {
	cn, err := c.acquire(h)
	if err != nil {
		return err
	}
	defer c.release(cn)
	ctx, cancel := context.WithCancel(ctx) // a stream that is left early is torn down
	defer cancel()
	class := limit.ClassOf(ctx)
	req.Priority = damselflyv1.Want_Priority(class)
	stream, err := damselflyv1.NewPeerClient(cn.cc).Read(ctx, req)
	if err != nil {
		return readError(ctx, h, err)
	}
	return take(&reading{c: c, ctx: ctx, h: h, stream: stream, class: class})
}

// reading is one Read stream.
type reading struct {
	c        *Client
	ctx      context.Context // the stream's
	h        Holder
	stream   grpc.ClientStream
	class    limit.Class
	from     Sender // without a role until a piece came
	progress func(n int)
}

// piece receives the chunks of the next piece, which may says is one of those asked
// for, and gives them away. Where the stream ends before it begins, it returns io.EOF.
func (r *reading) piece(l blob.Layout, may func(i int) bool, begin Begin) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	var in incoming
	defer in.free()
	var taker Taker
	i, got, length := -1, 0, 1
	for got < length {
		if err := r.stream.RecvMsg(&in); err != nil {
			switch {
			case !errors.Is(err, io.EOF):
				return readError(r.ctx, r.h, err)
			case got == 0:
				return io.EOF
			}
			return fmt.Errorf("%w: %s ended before piece %d was whole", ErrMissing, r.h.ID, i)
		}
		if taker == nil && in.offset == 0 && int64(in.piece) < int64(l.Pieces()) && may(int(in.piece)) {
			i = int(in.piece)
			length = int(l.Length(i))
			in.buffers = slices.Grow(in.buffers, length/frameLength+2*leastChunks)
			taker = begin(r.sender(), i)
		}
		if int64(in.piece) != int64(i) || int64(in.offset) != int64(got) || in.length > length-got {
			return fmt.Errorf("%w: %s: chunk %d+%d of piece %d, want piece %d from %d", ErrMalformed, r.h.ID, in.offset, in.length, in.piece, i, got)
		}
		// Parts are kept as they came, with what they came in: crumbs would fill the memory.
		if in.length < min(leastChunk, length-got) {
			return fmt.Errorf("%w: %s: a chunk of %d bytes of piece %d", ErrMalformed, r.h.ID, in.length, i)
		}
		for _, b := range in.buffers[in.first:] {
			taker.Add(b.ReadOnlyData()[in.skip:])
			in.skip = 0
		}
		got += in.length
		if r.progress != nil {
			r.progress(in.length)
		}
		if err := r.c.limit.Wait(r.ctx, r.class, "", in.length); err != nil {
			return err
		}
	}
	return taker.Put()
}

// sender is the holder. It can be asked once a message came.
func (r *reading) sender() Sender {
	if r.from.Role == "" {
		remote, _ := identity.PeerFromContext(r.stream.Context()) // verified by the handshake
		r.from.Role = remote.Role
		if header, err := r.stream.Header(); err == nil { // it came before the message
			r.from.Places = readPlaces(header)
		}
	}
	return r.from
}

// Holdings is what a node has of a blob.
type Holdings struct {
	Company
	Have      *blob.Bitmap
	Sealed    bool
	FirstLink int
	Links     []byte
}

// Holdings asks a node what it holds of d, its links from firstLink on, and who else
// is after it. address, unless empty, is where that node and those whom it tells of
// this one reach its Peer service.
func (c *Client) Holdings(ctx context.Context, h Holder, d blob.Digest, l blob.Layout, firstLink int, address string) (Holdings, error) {
	cn, err := c.acquire(h)
	if err != nil {
		return Holdings{}, err
	}
	defer c.release(cn)
	res, err := damselflyv1.NewPeerClient(cn.cc).Holdings(ctx, &damselflyv1.HoldingsRequest{
		Digest: d.String(), Size: uint64(l.Size()), FirstLink: uint32(firstLink), Address: address,
	})
	if err != nil {
		return Holdings{}, readError(ctx, h, err)
	}
	out := Holdings{
		Company: Company{Reading: res.GetReading(), Wanting: res.GetWanting()}, Have: blob.NewBitmap(l.Pieces()),
		Sealed: res.GetSealed(), FirstLink: int(res.GetFirstLink()), Links: res.GetLinks(),
	}
	for _, r := range res.GetRuns() {
		if err := l.Check(runOf(r)); err != nil {
			return Holdings{}, fmt.Errorf("%w: %s: %w", ErrMalformed, h.ID, err)
		}
		out.Have.SetRun(runOf(r))
	}
	if len(res.GetOthers()) > maxOthers {
		return Holdings{}, fmt.Errorf("%w: %s names %d others", ErrMalformed, h.ID, len(res.GetOthers()))
	}
	for _, o := range res.GetOthers() {
		if o.GetNode() == "" || checkAddress(o.GetAddress()) != nil {
			return Holdings{}, fmt.Errorf("%w: %s names a node %.80q at %.300q", ErrMalformed, h.ID, o.GetNode(), o.GetAddress())
		}
		out.Others = append(out.Others, Holder{ID: o.GetNode(), Address: o.GetAddress()})
	}
	return out, nil
}

// Credential asks a node for the headers of its client that waits for d from the
// origin o.
func (c *Client) Credential(ctx context.Context, h Holder, d blob.Digest, o *damselflyv1.Origin) (http.Header, error) {
	cn, err := c.acquire(h)
	if err != nil {
		return nil, err
	}
	defer c.release(cn)
	res, err := damselflyv1.NewPeerClient(cn.cc).Credential(ctx, &damselflyv1.CredentialRequest{Digest: d.String(), Origin: o})
	if err != nil {
		return nil, readError(ctx, h, err)
	}
	header := http.Header{}
	for _, f := range res.GetHeaders() {
		header.Add(f.GetName(), f.GetValue())
	}
	return header, nil
}

func readError(ctx context.Context, h Holder, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	switch status.Code(err) {
	case codes.ResourceExhausted:
		return fmt.Errorf("%w: %s: %s", ErrBusy, h.ID, status.Convert(err).Message())
	case codes.NotFound, codes.FailedPrecondition:
		return fmt.Errorf("%w: %s", ErrMissing, h.ID)
	case codes.Internal, codes.InvalidArgument:
		return fmt.Errorf("%w: %s: %s", ErrMalformed, h.ID, status.Convert(err).Message())
	default:
		return fmt.Errorf("%w: %s at %s: %s", ErrUnreachable, h.ID, h.Address, status.Convert(err).Message())
	}
}

func (c *Client) acquire(h Holder) (*conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cn, ok := c.conns[h]
	if !ok {
		cc, err := c.dial(h)
		if err != nil {
			return nil, fmt.Errorf("%w: %s at %q: %w", ErrUnreachable, h.ID, h.Address, err)
		}
		cn = &conn{cc: cc}
		c.conns[h] = cn
	}
	cn.used++
	return cn, nil
}

func (c *Client) dial(h Holder) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+h.Address,
		grpc.WithTransportCredentials(Buffered(credentials.NewTLS(c.transport.ClientTLS(identity.Expect{Roles: []identity.Role{identity.RoleNode, identity.RoleSeed}, ID: h.ID})))),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(newCodec(c.buffers)),
			grpc.MaxCallRecvMsgSize(chunkLength+headerLimit),
		),
		grpc.WithInitialWindowSize(window),
		grpc.WithInitialConnWindowSize(connectionWindow),
		grpc.WithReadBufferSize(0), // Buffered has one
		experimental.WithBufferPool(c.buffers),
		grpc.WithIdleTimeout(time.Minute),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
	)
}

// release gives a connection back and closes the longest idle ones over the
// limit.
func (c *Client) release(cn *conn) {
	c.mu.Lock()
	cn.used--
	cn.last = time.Now()
	var victim *conn
	if len(c.conns) > idleConnections {
		var key Holder
		for h, other := range c.conns {
			if other.used == 0 && (victim == nil || other.last.Before(victim.last)) {
				key, victim = h, other
			}
		}
		if victim != nil {
			delete(c.conns, key)
		}
	}
	c.mu.Unlock()
	if victim != nil {
		_ = victim.cc.Close() // it has no call to lose
	}
}
