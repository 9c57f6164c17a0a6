// Package task makes blobs whole on this node: it joins the callers that want
// the same blob, tells the scheduler what they wait for, carries out the leases
// that come back (source, verify, store) and helps itself from the origin when
// no scheduler answers. The proxy opens blobs through it; control feeds it
// decisions. It moves bytes only from a source into the store: readers take them
// from there.
package task

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Scheduler takes events. Joined tells whether there is a scheduler for a blob;
// events told while there is none are lost, and told again on control.Joined. Known is
// this node as others know it, without an ID before it has joined its cluster, and the
// seeds that a scheduler has told of last.
type Scheduler interface {
	Tell(control.Event)
	Joined(blob.Digest) bool
	Known() (self peer.Holder, seeds []peer.Holder)
}

// Peers is other nodes: see peer.Client for the contract of each.
type Peers interface {
	Read(ctx context.Context, h peer.Holder, d blob.Digest, l blob.Layout, run blob.Run, begin peer.Begin, progress func(n int)) error
	ReadSome(ctx context.Context, h peer.Holder, d blob.Digest, l blob.Layout, lacking *blob.Bitmap, most int, begin peer.Begin) error
	Holdings(ctx context.Context, h peer.Holder, d blob.Digest, l blob.Layout, firstLink int, address string) (peer.Holdings, error)
	Credential(ctx context.Context, h peer.Holder, d blob.Digest, o *damselflyv1.Origin) (http.Header, error)
}

// Origins reads blobs where they come from.
type Origins interface {
	Read(ctx context.Context, ref origin.Ref, header http.Header, size, off, n int64) (io.ReadCloser, error)
	Size(ctx context.Context, ref origin.Ref, header http.Header) (size int64, mediaType string, d blob.Digest, err error)
}

// Config tunes a Manager.
type Config struct {
	// Seed: this node takes leases for blobs that no client of its own wants.
	Seed bool
	// Patience is how long a task waits for a scheduler's first answer before it
	// reads the origin itself. Longer spares the origin when a scheduler is
	// slow; shorter spares the client when it hangs. Default 400 ms.
	Patience time.Duration
	// Stall is how long a task with a scheduler's word but without any lease
	// waits for a piece before it reads the origin itself. Default 20 s.
	Stall time.Duration
	// Linger is how long a task goes on after its last client went away: clients
	// that fetch in ranges come back at once. Default 30 s.
	Linger time.Duration
	// Settle is how long after a blob is whole it is synced to the disk. Default
	// 10 s.
	Settle time.Duration
}

func (c *Config) setDefaults() {
	c.Patience = orDefault(c.Patience, 400*time.Millisecond)
	c.Stall = orDefault(c.Stall, 20*time.Second)
	c.Linger = orDefault(c.Linger, 30*time.Second)
	c.Settle = orDefault(c.Settle, 10*time.Second)
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Manager owns the tasks of a node. It is safe for concurrent use.
type Manager struct {
	cfg       Config
	store     *store.Store
	scheduler Scheduler
	peers     Peers
	origins   Origins
	log       *zap.Logger
	bytes     *prometheus.CounterVec
	alone     prometheus.Counter
	pieces    sync.Pool
	running   sync.WaitGroup
	contacts  *contacts
	asking    atomic.Int64 // nanoseconds from asking a holder to the first of its bytes, smoothed

	ctx  context.Context // of every task; ended by Run
	stop context.CancelCauseFunc

	mu      sync.Mutex
	tasks   map[blob.Digest]*task
	keeping map[blob.Digest]bool // what a Keeper takes

	far       map[blob.Digest][]blob.Run // ranges that wait for others: see leadsTo
	farChange chan struct{}              // closed when these or what clients want have changed
}

// task is one blob being made whole. The manager's mutex guards its fields but
// the first group, which never changes.
type task struct {
	blob   *store.Blob
	digest blob.Digest
	ctx    context.Context // ends with the task; its cause is the task's error
	end    context.CancelCauseFunc
	poke   chan struct{} // something below has changed; capacity 1
	uses   sync.WaitGroup
	gone   chan struct{} // closed when it has failed and let go of its blob

	claim
	others  []claim // what further clients named
	turns   uint    // how often a slow origin gave way to another
	clients int
	all     bool
	wanted  *blob.Bitmap
	idle    time.Time // since when no client waits
	left    time.Time // when a client went away last

	asked    time.Time // when the scheduler was told, or last heard of, or a piece came
	answered bool
	refused  bool
	retry    time.Time  // when to want again, because the scheduler has too much to do; zero: not
	since    time.Time  // since when it has had too much to do for this
	urgent   []blob.Run // what clients of ranges read
	leases   map[uint64]running
	origin   []*originRead   // leases that read the origin
	alone    *alone          // what it fetches by itself; nil while a scheduler decides
	liars    map[string]bool // nodes that told wrong links or sent wrong bytes, by ID
	lent     bool            // others said some of its links
	own      bool            // those were wrong: its own read of the origin alone says links
	broken   int             // how often the origin's bytes missed the digest
	lead     *lead           // how far its reads of the origin are ahead; nil but on a seed
}

// running is a lease that is carried out.
type running struct {
	run blob.Run
	end context.CancelCauseFunc
}

// claim is a client's word on where a blob is, and what opens that.
type claim struct {
	ref    origin.Ref
	header http.Header
}

// maxClaims bounds the origins that one blob is tried at.
const maxClaims = 4

var (
	// ErrClosed: the node is shutting down.
	ErrClosed   = errors.New("the node is shutting down")
	errDone     = errors.New("the blob is whole")
	errNoClient = errors.New("no client waits for the blob any more")
	errRecalled = errors.New("the scheduler took the lease back")
)

// New returns a manager. Run ends it. reg may be nil.
func New(cfg Config, st *store.Store, s Scheduler, p Peers, o Origins, log *zap.Logger, reg prometheus.Registerer) *Manager {
	cfg.setDefaults()
	m := &Manager{
		cfg: cfg, store: st, scheduler: s, peers: p, origins: o, log: log, tasks: map[blob.Digest]*task{}, keeping: map[blob.Digest]bool{},
		far: map[blob.Digest][]blob.Run{}, farChange: make(chan struct{}),
		contacts: &contacts{blobs: map[blob.Digest][]contact{}},
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_pull_bytes_total", Help: "Verified bytes that reached this node's store, by what they were read from.",
		}, []string{"source"}),
		alone: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_origin_fallback_total", Help: "Reads of an origin that this node granted itself because no scheduler did.",
		}),
	}
	m.ctx, m.stop = context.WithCancelCause(context.Background())
	for _, source := range []string{"origin", "seed", "peer"} {
		m.bytes.WithLabelValues(source)
	}
	if reg != nil {
		reg.MustRegister(m.bytes, m.alone)
	}
	return m
}

// Run waits for ctx to end, then ends the tasks and waits for them. Blobs that are
// opened afterwards get ErrClosed.
func (m *Manager) Run(ctx context.Context) error {
	<-ctx.Done()
	m.mu.Lock()
	m.stop(ErrClosed)
	m.mu.Unlock()
	m.running.Wait()
	return ctx.Err()
}

// Waiting tells whether this node depends on a scheduler now: a client of it waits,
// or it carries out leases.
func (m *Manager) Waiting() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tasks {
		if t.clients > 0 || len(t.leases) > 0 {
			return true
		}
	}
	return false
}

// Credential returns the headers with which a client of this node asked for d at
// the origin o.
func (m *Manager) Credential(d blob.Digest, o *damselflyv1.Origin) (http.Header, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tasks[d]
	if !ok || t.clients == 0 {
		return nil, false
	}
	return t.headerFor(refOf(o, d))
}

// Meet implements peer.Tasks.
func (m *Manager) Meet(d blob.Digest, h peer.Holder) { m.contacts.meet(d, h, time.Now()) }

// Company implements peer.Tasks.
func (m *Manager) Company(d blob.Digest) peer.Company {
	c := peer.Company{Others: m.contacts.after(d, time.Now())}
	m.mu.Lock()
	defer m.mu.Unlock()
	if t, ok := m.tasks[d]; ok {
		c.Reading = len(t.origin) > 0 || t.alone != nil && t.alone.reading()
		c.Wanting = t.clients > 0
	}
	return c
}

// headerFor is what opens ref, as others are told it: what a client sent for it, and for
// no other.
func (t *task) headerFor(ref origin.Ref) (http.Header, bool) {
	for _, c := range append([]claim{t.claim}, t.others...) {
		if sameOrigin(told(c.ref), ref) {
			return c.opening(), true
		}
	}
	return nil, false
}

// Dropped tells the scheduler that the store let go of pieces of a blob, and what
// is left of it.
func (m *Manager) Dropped(d blob.Digest) {
	m.scheduler.Tell(control.Drop{Digest: d})
	m.tell(d)
}

// start begins a task for b, which the task uses until it ends. The caller holds
// mu.
func (m *Manager) start(b *store.Blob, ref origin.Ref, header http.Header) (*task, error) {
	if m.ctx.Err() != nil {
		return nil, ErrClosed
	}
	ctx, end := context.WithCancelCause(m.ctx)
	t := &task{
		blob: b, digest: b.Digest(), ctx: ctx, end: end, poke: make(chan struct{}, 1), gone: make(chan struct{}),
		claim: claim{ref, header}, wanted: blob.NewBitmap(b.Layout().Pieces()),
		leases: map[uint64]running{}, liars: map[string]bool{}, idle: time.Now(), lead: m.lead(b.Layout()),
	}
	b.Acquire()
	m.tasks[t.digest] = t
	m.running.Go(func() { m.supervise(t) })
	return t, nil
}

func (t *task) changed() {
	select {
	case t.poke <- struct{}{}:
	default:
	}
}

// supervise looks after a task until the blob is whole, the task fails, or
// nobody needs it any more.
func (m *Manager) supervise(t *task) {
	// What a restart left of the blob is checked now, and told. Readers do not
	// wait for it: they check what they need.
	if t.blob.Verify(t.ctx) == nil {
		m.tellBlob(t.blob, !t.blob.Sealed())
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-t.ctx.Done():
			m.finish(t)
			return
		case <-t.poke:
		case <-timer.C:
		}
		m.mu.Lock()
		timer.Reset(m.step(t, time.Now()))
		m.mu.Unlock()
	}
}

// step does what a task needs now and returns when to look again. The caller
// holds mu.
func (m *Manager) step(t *task, now time.Time) time.Duration {
	const later = time.Minute
	switch {
	case t.blob.Sealed():
		t.end(errDone)
		return later
	case t.clients == 0 && len(t.leases) == 0 && now.Sub(t.idle) >= m.linger(t):
		t.end(errNoClient)
		return later
	case t.clients > 0 && t.alone != nil && len(t.others) > 0:
		return m.overtake(t, now)
	case t.clients == 0 || t.alone != nil || m.served(t):
		return m.linger(t)
	}
	patience := m.cfg.Patience
	if t.answered {
		patience = m.cfg.Stall
	}
	due := t.asked.Add(patience)
	why := "no scheduler attends"
	switch {
	case t.refused:
		why = "the scheduler refused"
	case m.scheduler.Joined(t.digest):
		if len(t.leases) > 0 {
			return later // the end of a lease wakes
		}
		if !t.retry.IsZero() {
			return m.wantAgain(t, now)
		}
		if now.Before(due) {
			return due.Sub(now)
		}
		why = "the scheduler decided nothing in time"
	}
	m.log.Debug("fetching by itself", zap.Stringer("digest", t.digest), zap.String("why", why))
	m.fetchAlone(t)
	if len(t.others) > 0 {
		return m.overtake(t, now)
	}
	return later
}

// overtake has a slow origin give way to the next that clients named: nobody shall
// hold up a blob for those who know a better place. Each turn gets more time than
// the last, so that slow ones come to an end too. It returns when to look again.
func (m *Manager) overtake(t *task, now time.Time) time.Duration {
	const patience, rate = 2 * time.Second, 256 << 10 // bytes a second
	due := t.asked.Add((patience + time.Duration(t.blob.Layout().PieceLength()/rate)*time.Second) << min(t.turns, 6))
	if now.Before(due) {
		return due.Sub(now)
	}
	t.turns++
	t.others = append(t.others, t.claim)
	t.turn()
	t.alone.end(errRecalled)
	return m.linger(t)
}

// turn goes on to the next origin, if there is one.
func (t *task) turn() bool {
	if len(t.others) == 0 {
		return false
	}
	t.claim, t.others, t.broken = t.others[0], t.others[1:], 0
	t.own, t.lent = false, false // the origin was wrong, it may be
	return true
}

// claimed notes where another client says that the blob is. The caller holds mu.
func (t *task) claimed(c claim) {
	switch {
	case t.clients == 0:
		if t.alone != nil && !sameOrigin(t.ref, c.ref) {
			t.alone.end(errRecalled) // nobody named that one but who has gone
		}
		t.claim, t.others, t.turns = c, nil, 0
	case sameOrigin(t.ref, c.ref) || len(t.others) >= maxClaims-1:
	case !slices.ContainsFunc(t.others, func(o claim) bool { return sameOrigin(o.ref, c.ref) }):
		t.others = append(t.others, c)
	}
}

// linger is how long a task without a client goes on: a seed's tasks, which
// never had one, end with their leases.
func (m *Manager) linger(t *task) time.Duration {
	if m.cfg.Seed && t.wanted.Count() == 0 {
		return time.Second
	}
	return m.cfg.Linger
}

// runs is what clients of t wait for. The caller holds the manager's mutex.
func (t *task) runs() []blob.Run {
	if t.all {
		return []blob.Run{t.blob.Layout().All()}
	}
	return t.wanted.Runs()
}

// served tells whether every piece that clients want is here.
func (m *Manager) served(t *task) bool {
	if t.all {
		return false
	}
	for _, r := range t.runs() {
		if len(t.blob.Missing(r)) > 0 {
			return false
		}
	}
	return true
}
