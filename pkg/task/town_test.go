package task_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/task"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// pieceTime is what a piece takes on a link of the town: about that of 100 Mbit/s.
const pieceTime = 22 * time.Millisecond

const crowdPieces = 64

// town is nodes that reach each other over links of one rate, and an origin behind
// such a link. There is no scheduler.
type town struct {
	t      *testing.T
	data   []byte
	d      blob.Digest
	l      blob.Layout
	nodes  map[string]*resident
	origin line
	room   int64 // of stores that are made from now on; 0: all there is
	mu     sync.Mutex
	served int // bytes that the origin sent
}

// line is one direction of a link: one piece at a time.
type line chan struct{}

func (l line) carry(ctx context.Context, n int) error {
	select {
	case l <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-l }()
	select {
	case <-time.After(pieceTime * time.Duration(n) / blob.MinPieceLength):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// carry takes n bytes over two lines, the second a part behind the first.
func carry(ctx context.Context, n int, first, second line) error {
	const part = 32 << 10
	parts := make(chan int, n/part+1)
	errs := make(chan error, 1)
	go func() {
		defer close(parts)
		for left := n; left > 0; left -= part {
			if err := first.carry(ctx, min(left, part)); err != nil {
				errs <- err
				return
			}
			parts <- min(left, part)
		}
		errs <- nil
	}()
	for n := range parts {
		if err := second.carry(ctx, n); err != nil {
			<-errs
			return err
		}
	}
	return <-errs
}

// resident is one node of a town: a real manager over a real store.
type resident struct {
	*task.Manager
	*scheduler
	town  *town
	id    string
	role  identity.Role
	store *store.Store
	up    line
	down  line
	slots chan struct{}
	mu    sync.Mutex
	sent  []int  // how often each piece was
	dead  bool   // answers nobody
	lie   string // how its answers are wrong
	ended chan error
	stop  context.CancelFunc
}

func newTown(t *testing.T, pieces int) *town {
	t.Helper()
	w := &town{t: t, data: make([]byte, pieces*blob.MinPieceLength-100), nodes: map[string]*resident{}, origin: make(line, 1)}
	_, _ = rand.NewChaCha8([32]byte{3}).Read(w.data)
	w.d = blob.FromBytes(w.data)
	w.l, _ = blob.NewLayout(int64(len(w.data)))
	return w
}

// settle adds a node that knows of the seeds that were added before.
func (w *town) settle(id string, role identity.Role) *resident {
	w.t.Helper()
	r := &resident{
		scheduler: &scheduler{self: peer.Holder{ID: id, Address: id + ":1"}}, town: w, id: id, role: role,
		up: make(line, 1), down: make(line, 1), slots: make(chan struct{}, 4), sent: make([]int, w.l.Pieces()), ended: make(chan error, 1),
	}
	for _, other := range w.nodes {
		if other.role == identity.RoleSeed {
			r.seeds = append(r.seeds, other.self)
		}
	}
	var err error
	if r.store, err = store.Open(store.Config{Dir: w.t.TempDir(), MaxBytes: w.room}, zap.NewNop()); err != nil {
		w.t.Fatal(err)
	}
	r.Manager = task.New(task.Config{Seed: role == identity.RoleSeed}, r.store, r.scheduler, r, r.upstream(), zap.NewNop(), nil)
	ctx, cancel := context.WithCancel(w.t.Context())
	r.stop = cancel
	go func() { r.ended <- r.Run(ctx) }()
	w.nodes[id] = r
	w.t.Cleanup(func() {
		cancel()
		<-r.ended
		if err := r.store.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return r
}

// upstream is the origin as a node reads it.
func (r *resident) upstream() *upstream {
	u := &upstream{data: map[string][]byte{r.town.d.String(): r.town.data}}
	u.slow = func(ctx context.Context, n int) error {
		r.town.mu.Lock()
		r.town.served += n
		r.town.mu.Unlock()
		return carry(ctx, n, r.town.origin, r.down)
	}
	return u
}

// hold gives a node pieces of the blob.
func (r *resident) hold(runs ...blob.Run) {
	r.town.t.Helper()
	b, err := r.store.Create(r.town.d, r.town.l.Size())
	if err != nil {
		r.town.t.Fatal(err)
	}
	defer b.Release()
	if err := b.AddLinks(0, chainOf(r.town.d, r.town.l, r.town.data).Links(0, r.town.l.Pieces())); err != nil {
		r.town.t.Fatal(err)
	}
	for _, run := range runs {
		for i := run.First; i < run.End(); i++ {
			if err := b.Put(i, piece(r.town.l, r.town.data, i)); err != nil {
				r.town.t.Fatal(err)
			}
		}
	}
}

// chainOf is every link that reading data gives.
func chainOf(d blob.Digest, l blob.Layout, data []byte) *blob.Chain {
	chain := blob.NewChain(d, l)
	for i := range l.Pieces() {
		if next, _ := blob.Advance(d, l, i, chain.Link(i), piece(l, data, i)); next != nil {
			_ = chain.Add(i+1, next)
		}
	}
	return chain
}

// forged is other bytes, of the same length.
func forged(data []byte) []byte {
	out := bytes.Clone(data)
	out[len(out)/2] ^= 1
	return out
}

// Read implements task.Peers: the run in order, as far as it is held.
func (r *resident) Read(ctx context.Context, h peer.Holder, d blob.Digest, l blob.Layout, run blob.Run, begin peer.Begin, _ func(int)) error {
	for i := run.First; i < run.End(); i++ {
		one := blob.NewBitmap(l.Pieces())
		one.Set(i)
		if err := r.ReadSome(ctx, h, d, l, one, 1, begin); err != nil {
			return err
		}
	}
	return nil
}

func (r *resident) Credential(context.Context, peer.Holder, blob.Digest, *damselflyv1.Origin) (http.Header, error) {
	return nil, peer.ErrUnreachable
}

// find is the node that a holder names, if it answers.
func (r *resident) find(ctx context.Context, h peer.Holder) (*resident, error) {
	o := r.town.nodes[h.ID]
	if o == nil || h.Address != o.self.Address {
		return nil, fmt.Errorf("%w: %v", peer.ErrUnreachable, h)
	}
	if o.dead {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return o, nil
}

func (r *resident) ReadSome(ctx context.Context, h peer.Holder, d blob.Digest, l blob.Layout, lacking *blob.Bitmap, most int, begin peer.Begin) error {
	o, err := r.find(ctx, h)
	if err != nil {
		return err
	}
	select {
	case o.slots <- struct{}{}:
		defer func() { <-o.slots }()
	default:
		return peer.ErrBusy
	}
	for range most {
		i := o.choose(lacking)
		if i < 0 {
			return peer.ErrMissing
		}
		lacking.Clear(i)
		if err := carry(ctx, int(l.Length(i)), o.up, r.down); err != nil {
			return err
		}
		p := bytes.Clone(piece(l, r.town.data, i))
		switch o.lie {
		case "bytes":
			p[5] ^= 1
		case "forged chain":
			p = piece(l, forged(r.town.data), i)
		case "silence":
			<-ctx.Done()
			return context.Cause(ctx)
		}
		taker := begin(peer.Sender{Role: o.role}, i)
		for part := range slices.Chunk(p, 100_000) {
			taker.Add(part)
		}
		if err := taker.Put(); err != nil {
			return err
		}
		if lacking.Count() == 0 {
			return nil
		}
	}
	return nil
}

// choose is what peer.Server sends: of the lacking pieces the one sent least; -1 for
// none.
func (r *resident) choose(lacking *blob.Bitmap) int {
	b, ok := r.store.Get(r.town.d)
	if !ok {
		return -1
	}
	defer b.Release()
	r.mu.Lock()
	defer r.mu.Unlock()
	have, best := b.Have(), -1
	for i := lacking.NextSet(0); i < lacking.Len(); i = lacking.NextSet(i + 1) {
		if have.Has(i) && (best < 0 || r.sent[i] < r.sent[best]) {
			best = i
		}
	}
	if best >= 0 {
		r.sent[best]++
	}
	return best
}

func (r *resident) Holdings(ctx context.Context, h peer.Holder, d blob.Digest, l blob.Layout, firstLink int, address string) (peer.Holdings, error) {
	o, err := r.find(ctx, h)
	if err != nil {
		return peer.Holdings{}, err
	}
	out := peer.Holdings{Company: o.Company(d), Have: blob.NewBitmap(l.Pieces())}
	o.Meet(d, peer.Holder{ID: r.id, Address: address})
	if b, ok := o.store.Get(d); ok {
		defer b.Release()
		out.Have, out.Sealed = b.Have(), b.Sealed()
		out.FirstLink, out.Links = b.Links(firstLink, l.Pieces())
	}
	switch {
	case o.lie == "links" && len(out.Links) > 0:
		out.Links = bytes.Repeat([]byte{7}, len(out.Links))
	case o.lie == "no links":
		out.Links = nil
	case o.lie == "forged chain":
		out.Links = chainOf(r.town.d, l, forged(r.town.data)).Links(firstLink, l.Pieces())
	}
	return out, nil
}

func (w *town) request() task.Request {
	return task.Request{
		Digest: w.d, Size: w.l.Size(), Length: -1,
		Ref: origin.Ref{Kind: origin.KindBlob, Registry: "r.example.com", Repository: "app", Reference: w.d.String()},
	}
}

// pull opens the blob at each of the nodes at once and reads it whole. It returns how
// long the last one took.
func (w *town) pull(nodes ...*resident) time.Duration {
	w.t.Helper()
	started := time.Now()
	var results []<-chan result
	for _, r := range nodes {
		h, err := r.Open(w.t.Context(), w.request())
		if err != nil {
			w.t.Fatal(err)
		}
		results = append(results, read(h))
	}
	for i, c := range results {
		r := <-c
		if r.err != nil || !bytes.Equal(r.data, w.data) {
			w.t.Errorf("%s got %d of %d bytes: %v", nodes[i].id, len(r.data), len(w.data), r.err)
		}
	}
	return time.Since(started)
}

// copies is how often the origin sent the blob.
func (w *town) copies() float64 { return float64(w.served) / float64(len(w.data)) }
