package cluster

import (
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
	meta := []byte(d.cfg.Self.Address + "\n")
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
	if _, err := decodeMeta(n.Meta); err != nil {
		return fmt.Errorf("its address for nodes: %w", err)
	}
	if len(n.Addr) != net.IPv4len && len(n.Addr) != net.IPv6len || n.Port == 0 {
		return fmt.Errorf("its gossip address is no address: %v:%d", n.Addr, n.Port)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.members[n.Name]; !ok && len(d.members) >= maxMembers {
		return fmt.Errorf("there are %d schedulers already", len(d.members))
	}
	return nil
}

// NotifyJoin implements memberlist.EventDelegate.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.alive(n, "a scheduler has joined") }

// NotifyUpdate implements memberlist.EventDelegate.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.alive(n, "a scheduler has another address") }

func (d *delegate) alive(n *memberlist.Node, what string) {
	address, err := decodeMeta(n.Meta)
	if err != nil {
		return // not admissible either
	}
	d.mu.Lock()
	d.members[n.Name] = peer{Member: Member{ID: n.Name, Address: address}, gossip: n.Address()}
	delete(d.lost, n.Name)
	size := len(d.members)
	d.mu.Unlock()
	if n.Name != d.cfg.Self.ID {
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
	delete(d.members, n.Name)
	d.lose(n)
	size := len(d.members)
	d.mu.Unlock()
	d.log.Warn("a scheduler is gone; the others take its blobs", zap.String("scheduler", n.Name), zap.Int("schedulers", size))
	d.signal()
}

// lose remembers where a member was: it may be there again. The caller holds mu.
func (d *delegate) lose(n *memberlist.Node) {
	d.lost[n.Name] = loss{gossip: n.Address(), at: time.Now()}
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
