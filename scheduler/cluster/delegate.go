package cluster

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
)

// delegate is what memberlist calls: with news of members, some of them under its own
// lock, and for what to send. None of it waits for anything.
type delegate struct{ *Cluster }

// NodeMeta implements memberlist.Delegate.
func (d *delegate) NodeMeta(limit int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	meta := encodeMeta(d.cfg.Self.Address, d.started)
	return meta[:min(len(meta), limit)]
}

// NotifyAlive implements memberlist.AliveDelegate: it refuses what is no scheduler.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	if err := d.admissible(n); err != nil {
		d.drop("member")
		return err
	}
	return nil
}

func (d *delegate) admissible(n *memberlist.Node) error {
	if err := identity.CheckID(n.Name); err != nil {
		return fmt.Errorf("its name is no peer ID: %w", err)
	}
	_, started, err := decodeMeta(n.Meta)
	if err != nil {
		return fmt.Errorf("what it says of itself: %w", err)
	}
	if len(n.Addr) != net.IPv4len && len(n.Addr) != net.IPv6len || n.Port == 0 {
		return fmt.Errorf("its gossip address is no address: %v:%d", n.Addr, n.Port)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if n.Name == d.cfg.Self.ID {
		d.outdate(started)
		return nil
	}
	if started < d.startOf(n.Name) {
		return errors.New("it has started again since")
	}
	if _, ok := d.members[n.Name]; !ok && len(d.members) >= maxMembers {
		return fmt.Errorf("there are %d schedulers already", len(d.members))
	}
	return nil
}

// startOf is when a scheduler started that lives or has died a moment ago. The caller
// holds mu.
func (d *delegate) startOf(id string) int64 {
	if m, ok := d.members[id]; ok {
		return m.started
	}
	if l, ok := d.lost[id]; ok && time.Since(l.at) < rememberDead {
		return l.started
	}
	return 0
}

// NotifyMerge implements memberlist.MergeDelegate: it hears what the others remember of
// this scheduler's last life.
func (d *delegate) NotifyMerge(all []*memberlist.Node) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range all {
		if n.Name != d.cfg.Self.ID {
			continue
		}
		if _, started, err := decodeMeta(n.Meta); err == nil {
			d.outdate(started)
		}
	}
	return nil
}

// outdate sees to it that this scheduler counts as started after what others remember of
// it: a clock may have been set back since. The caller holds mu.
func (d *delegate) outdate(started int64) {
	if started > d.started {
		d.started, d.retell = started+1, true
	}
}

// NotifyJoin implements memberlist.EventDelegate.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.alive(n, "a scheduler has joined") }

// NotifyUpdate implements memberlist.EventDelegate.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.alive(n, "a scheduler has another address") }

func (d *delegate) alive(n *memberlist.Node, what string) {
	address, started, err := decodeMeta(n.Meta)
	if err != nil {
		return // not admissible either
	}
	d.mu.Lock()
	d.members[n.Name] = peer{Member: Member{ID: n.Name, Address: address}, gossip: n.Address(), started: started}
	delete(d.lost, n.Name)
	size := len(d.members)
	d.mu.Unlock()
	if n.Name != d.cfg.Self.ID && d.lines.Allow() {
		d.log.Info(what, zap.String("scheduler", n.Name), zap.String("address", address), zap.Int("schedulers", size))
	}
	d.signal()
}

// NotifyLeave implements memberlist.EventDelegate.
func (d *delegate) NotifyLeave(n *memberlist.Node) {
	if n.Name == d.cfg.Self.ID {
		return // it leaves because it stops
	}
	d.mu.Lock()
	d.lose(n)
	size := len(d.members)
	d.mu.Unlock()
	if d.lines.Allow() {
		d.log.Warn("a scheduler is gone; the others take its blobs", zap.String("scheduler", n.Name), zap.Int("schedulers", size))
	}
	d.signal()
}

// lose takes out a member and remembers where it was: it may be there again. The caller holds mu.
func (d *delegate) lose(n *memberlist.Node) {
	d.lost[n.Name] = loss{gossip: n.Address(), started: d.members[n.Name].started, at: time.Now()}
	delete(d.members, n.Name)
	if len(d.lost) <= maxMembers {
		return
	}
	oldest := n.Name
	for id, l := range d.lost {
		if l.at.Before(d.lost[oldest].at) {
			oldest = id
		}
	}
	delete(d.lost, oldest)
}

// NotifyConflict implements memberlist.ConflictDelegate.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	if !d.lines.Allow() {
		return
	}
	d.log.Warn("one scheduler has two addresses: either it has just moved, or its whole state directory was copied; then delete the directory identity in the copy and start it again",
		zap.String("scheduler", existing.Name), zap.String("one", existing.Address()), zap.String("other", other.Address()))
}

// LocalState implements memberlist.Delegate.
func (d *delegate) LocalState(bool) []byte { return encodeStatements(d.known()) }

// MergeRemoteState implements memberlist.Delegate.
func (d *delegate) MergeRemoteState(state []byte, _ bool) { d.hear(state) }

// NotifyMsg implements memberlist.Delegate.
func (d *delegate) NotifyMsg(message []byte) { d.hear(message) }

// GetBroadcasts implements memberlist.Delegate.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.queue.GetBroadcasts(overhead, limit)
}

// hear passes on what is news.
func (d *delegate) hear(message []byte) {
	if len(message) == 0 {
		return // of a member that keeps none
	}
	statements, err := decodeStatements(message)
	if err != nil {
		d.drop("statements")
		return
	}
	news := d.news(statements)
	if len(news) == 0 {
		return
	}
	select {
	case d.heard <- news:
	default: // the next exchange brings it again
		d.drop("statements")
	}
}
