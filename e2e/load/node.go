package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Timing of a real node's stream, see pkg/control: a node that waits and has heard
// nothing for pingBusy pings, and helps itself after silence.
const (
	pingBusy = 150 * time.Millisecond
	pingIdle = 5 * time.Second
	silence  = 400 * time.Millisecond
	// ending is how long before the end of a lease a node says so, when it does.
	ending = 20 * time.Millisecond
)

// node is a simulated node or seed: it attends, wants blobs, carries out its leases
// by waiting, and tells what a real one tells. It moves no bytes.
type node struct {
	world  *world
	seed   bool
	group  *group // nil: it wants nothing
	id     string
	stream *attendance

	mu      sync.Mutex
	over    bool
	tasks   map[blob.Digest]*task
	order   []blob.Digest // of tasks, oldest first
	running map[uint64]*lease
	next    int64 // blob of the group
	events  []*damselflyv1.NodeEvent

	heard, asked time.Time
	number       uint64
	behindDone   bool // the ping that is asked follows a Done
	leased       bool // a lease has come since
}

// task is a blob on its node.
type task struct {
	number int64
	have   *blob.Bitmap
	want   bool
}

type lease struct {
	*damselflyv1.Lease
	task  *task
	next  int
	timer *time.Timer
	start time.Time
}

// newNode is member number i of the load: the first are seeds, the others fill the
// groups one after another.
func newNode(w *world, i int, id string, stream *attendance) *node {
	n := &node{world: w, seed: i < w.cfg.Seeds, id: id, stream: stream, tasks: map[blob.Digest]*task{}, running: map[uint64]*lease{}, heard: time.Now()}
	if i >= w.cfg.Seeds && i < w.cfg.Seeds+w.cfg.Pulling {
		n.group = w.groups[(i-w.cfg.Seeds)%len(w.groups)]
	}
	return n
}

func (n *node) attend() error {
	a := &damselflyv1.Attend{
		Protocol: 1, Address: "192.0.2.1:65010", Release: "load",
		UploadSlots: uint32(n.world.cfg.Slots), DownloadSlots: uint32(n.world.cfg.Slots),
	}
	if n.seed {
		a.UploadSlots, a.DownloadSlots = seedUploads, seedDownloads
	}
	return n.stream.send(&damselflyv1.NodeMessage{Events: []*damselflyv1.NodeEvent{{Event: &damselflyv1.NodeEvent_Attend{Attend: a}}}})
}

// Slots of a seed: many, so that one serves several swarms at once.
const seedUploads, seedDownloads = 32, 16

// run follows the node's stream until it ends or ctx does.
func (n *node) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, n.stream.close)
	defer stop()
	err := n.stream.receive(n.handle)
	n.mu.Lock()
	n.over = true
	for _, l := range n.running {
		l.timer.Stop()
	}
	n.mu.Unlock()
	n.stream.close()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (n *node) handle(m *damselflyv1.SchedulerMessage) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	c, now := &n.world.counts, time.Now()
	n.heard = now
	c.messages.Add(1)
	for _, d := range m.GetDecisions() {
		switch d := d.GetDecision().(type) {
		case *damselflyv1.Decision_Welcome:
			c.attended.Add(1)
			continue
		case *damselflyv1.Decision_Denials:
			n.world.denial.hear(d.Denials.GetStatements(), now)
			continue
		case *damselflyv1.Decision_Pong:
			n.answered(d.Pong.GetNumber(), now)
			continue
		case *damselflyv1.Decision_Lease:
			c.leases.Add(1)
			n.take(d.Lease, now)
		case *damselflyv1.Decision_Cancel:
			c.cancelled.Add(1)
			for _, id := range d.Cancel.GetLeases() {
				if l, ok := n.running[id]; ok {
					l.timer.Stop()
					delete(n.running, id)
				}
			}
		case *damselflyv1.Decision_Refuse:
			n.refused(d.Refuse)
		case *damselflyv1.Decision_Revoke:
			c.revoked.Add(1)
		case *damselflyv1.Decision_Tell:
			n.tellAll(blob.Digest(d.Tell.GetDigest()))
		}
		c.decisions.Add(1)
	}
	return n.flush(now)
}

// answered takes a Pong.
func (n *node) answered(number uint64, now time.Time) {
	n.world.counts.pongs.Add(1)
	if number != n.number || n.asked.IsZero() {
		return
	}
	if n.behindDone {
		n.world.events.add(now.Sub(n.asked))
	} else {
		n.world.pings.add(now.Sub(n.asked))
	}
	n.asked = time.Time{}
}

// take begins a lease.
func (n *node) take(wire *damselflyv1.Lease, now time.Time) {
	if !n.asked.IsZero() && n.behindDone && !n.leased {
		n.leased = true
		n.world.leases.add(now.Sub(n.asked))
	}
	d := blob.Digest(wire.GetDigest())
	t, ok := n.tasks[d]
	if !ok { // a seed reads for others
		t = &task{have: blob.NewBitmap(n.world.layout.Pieces())}
		n.keep(d, t)
	}
	l := &lease{Lease: wire, task: t, next: int(wire.GetRun().GetFirst()), start: now}
	n.running[wire.GetId()] = l
	if wire.GetOrigin() != nil {
		n.world.counts.origin.Add(1)
		l.timer = time.AfterFunc(n.world.originTime(), func() { n.readOrigin(l) })
		return
	}
	took := n.world.pieceTime() * time.Duration(wire.GetRun().GetCount())
	if n.world.cfg.Ending && took > ending {
		l.timer = time.AfterFunc(took-ending, func() { n.ends(l) })
		return
	}
	l.timer = time.AfterFunc(took, func() { n.finish(l) })
}

// ends says that what is left of a lease is on its way.
func (n *node) ends(l *lease) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running[l.GetId()] != l || n.over {
		return
	}
	n.say(&damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Ending{Ending: &damselflyv1.Ending{Lease: l.GetId()}}})
	l.timer = time.AfterFunc(ending, func() { n.finish(l) })
	_ = n.flush(time.Now()) // a broken stream shows where it is read
}

// finish ends a lease from a holder: its pieces are here.
func (n *node) finish(l *lease) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running[l.GetId()] != l || n.over {
		return
	}
	run := blob.Run{First: int(l.GetRun().GetFirst()), Count: int(l.GetRun().GetCount())}
	l.task.have.SetRun(run)
	n.sayHave(blob.Digest(l.GetDigest()), l.task, run, nil)
	n.end(l)
}

// readOrigin ends the reading of one piece of the origin and begins the next.
func (n *node) readOrigin(l *lease) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running[l.GetId()] != l || n.over {
		return
	}
	d, p := blob.Digest(l.GetDigest()), l.next
	l.task.have.Set(p)
	l.next++
	var links []byte
	if l.next < n.world.layout.Pieces() {
		links = link(d, l.next)
	}
	n.sayHave(d, l.task, blob.Run{First: p, Count: 1}, links)
	if l.next < int(l.GetRun().GetFirst()+l.GetRun().GetCount()) {
		l.timer = time.AfterFunc(n.world.originTime(), func() { n.readOrigin(l) })
		_ = n.flush(time.Now())
		return
	}
	n.end(l)
}

// end says Done, and what follows from it.
func (n *node) end(l *lease) {
	now := time.Now()
	delete(n.running, l.GetId())
	n.world.counts.done.Add(1)
	run := blob.Run{First: int(l.GetRun().GetFirst()), Count: int(l.GetRun().GetCount())}
	n.say(&damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Done{Done: &damselflyv1.Done{
		Lease: l.GetId(), Bytes: uint64(n.world.layout.Bytes(run)), Microseconds: uint64(now.Sub(l.start).Microseconds()),
	}}})
	if l.task.want && l.task.have.Full() {
		l.task.want = false
		n.world.counts.blobs.Add(1)
		n.wantNext()
	}
	if n.asked.IsZero() && rand.IntN(n.world.cfg.Sample) == 0 {
		n.ping(now, true)
	}
	_ = n.flush(now)
}

// wantNext wants the next blob of the group; who lags behind passes some over.
func (n *node) wantNext() {
	if n.group == nil {
		return
	}
	number := max(n.next, n.group.front.Load()-int64(n.world.cfg.Blobs))
	n.next = number + 1
	for front := n.group.front.Load(); front < number && !n.group.front.CompareAndSwap(front, number); {
		front = n.group.front.Load()
	}
	d := n.group.blob(number)
	t := &task{number: number, have: blob.NewBitmap(n.world.layout.Pieces()), want: true}
	n.keep(d, t)
	n.sayWant(d, t)
}

func (n *node) sayWant(d blob.Digest, t *task) {
	n.world.counts.wants.Add(1)
	n.say(&damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Want{Want: &damselflyv1.Want{
		Digest: string(d), Size: uint64(n.world.layout.Size()), Origin: n.group.origin(t.number),
	}}})
}

// keep notes a task, and drops the oldest blob where there are many.
func (n *node) keep(d blob.Digest, t *task) {
	n.tasks[d] = t
	n.order = append(n.order, d)
	for i := 0; len(n.order) > keepBlobs+n.world.cfg.Blobs && i < len(n.order); {
		old := n.order[i]
		if n.tasks[old].want || n.busy(n.tasks[old]) {
			i++
			continue
		}
		delete(n.tasks, old)
		n.order = append(n.order[:i], n.order[i+1:]...)
		n.say(&damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Drop{Drop: &damselflyv1.Drop{Digest: string(old)}}})
	}
}

// keepBlobs is how many blobs a node holds beside those that it wants.
const keepBlobs = 6

func (n *node) busy(t *task) bool {
	for _, l := range n.running {
		if l.task == t {
			return true
		}
	}
	return false
}

// refused follows a Refuse: asked to come again, it does; else it takes the next
// blob.
func (n *node) refused(r *damselflyv1.Refuse) {
	d := blob.Digest(r.GetDigest())
	t, ok := n.tasks[d]
	if !ok || !t.want {
		return
	}
	if after := time.Duration(r.GetRetryAfterMs()) * time.Millisecond; after > 0 {
		n.world.counts.shed.Add(1)
		time.AfterFunc(after, func() { n.wantAgain(d, t) })
		return
	}
	n.world.counts.refused.Add(1)
	t.want = false
	time.AfterFunc(time.Second, func() { n.wantMore() })
}

func (n *node) wantAgain(d blob.Digest, t *task) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.over || n.tasks[d] != t || !t.want {
		return
	}
	n.sayWant(d, t)
	_ = n.flush(time.Now())
}

// wantMore begins the node's next pull.
func (n *node) wantMore() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.over {
		return
	}
	n.wantNext()
	_ = n.flush(time.Now())
}

// tellAll answers Tell: everything that is known of a blob.
func (n *node) tellAll(d blob.Digest) {
	t, ok := n.tasks[d]
	if !ok || t.have.Count() == 0 {
		return
	}
	front, links := t.have.NextClear(0), []byte(nil)
	for i := 0; i <= front && i < n.world.layout.Pieces(); i++ {
		links = append(links, link(d, i)...)
	}
	n.say(&damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Have{Have: &damselflyv1.Have{
		Digest: string(d), Size: uint64(n.world.layout.Size()), Runs: wireRuns(t.have.Runs()), Links: links, Sealed: t.have.Full(),
	}}})
}

func (n *node) sayHave(d blob.Digest, t *task, run blob.Run, links []byte) {
	h := &damselflyv1.Have{
		Digest: string(d), Size: uint64(n.world.layout.Size()), Runs: wireRuns([]blob.Run{run}), Sealed: t.have.Full(),
	}
	if len(links) > 0 {
		h.FirstLink, h.Links = uint32(run.End()), links
	}
	n.say(&damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Have{Have: h}})
}

func wireRuns(runs []blob.Run) []*damselflyv1.Run {
	var out []*damselflyv1.Run
	for _, r := range runs {
		out = append(out, &damselflyv1.Run{First: uint32(r.First), Count: uint32(r.Count)})
	}
	return out
}

// say queues an event. The caller holds mu and flushes.
func (n *node) say(e *damselflyv1.NodeEvent) { n.events = append(n.events, e) }

// flush sends what was said in one message.
func (n *node) flush(_ time.Time) error {
	if len(n.events) == 0 || n.over {
		return nil
	}
	n.world.counts.sent.Add(1)
	err := n.stream.send(&damselflyv1.NodeMessage{Events: n.events})
	clear(n.events)
	n.events = n.events[:0]
	return err
}

func (n *node) ping(now time.Time, behindDone bool) {
	n.asked, n.behindDone, n.leased = now, behindDone, false
	n.number++
	n.say(&damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Ping{Ping: &damselflyv1.Ping{Number: n.number}}})
}

// look pings where a real node would, and tells whether a real one would now take
// its scheduler for lost.
func (n *node) look(now time.Time) (lost bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.over {
		return false
	}
	every := pingIdle
	if len(n.running) > 0 || n.group != nil {
		every = pingBusy
	}
	if n.asked.IsZero() {
		if now.Sub(n.heard) >= every {
			n.ping(now, false)
			_ = n.flush(now)
		}
		return false
	}
	return now.Sub(n.asked) >= silence && now.Sub(n.heard) >= silence
}
