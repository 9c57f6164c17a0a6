package server

import (
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// encoder makes messages of what the owner has for a node. A message is good until
// the next: leases and pongs, which are nearly all there is, are made in the same
// memory again.
type encoder struct {
	m     damselflyv1.SchedulerMessage
	slots []*slot
}

// slot is the memory of one decision.
type slot struct {
	d      damselflyv1.Decision
	lease  damselflyv1.Decision_Lease
	l      damselflyv1.Lease
	run    damselflyv1.Run
	holder damselflyv1.Holder
	pong   damselflyv1.Decision_Pong
	p      damselflyv1.Pong
}

// slotsKept bounds the memory that an encoder keeps.
const slotsKept = 64

func (e *encoder) message(items []item) *damselflyv1.SchedulerMessage {
	if len(e.slots) > slotsKept {
		e.slots = nil
	}
	clear(e.m.Decisions)
	e.m.Decisions = e.m.Decisions[:0]
	for i := range items {
		for len(e.slots) <= i {
			e.slots = append(e.slots, &slot{})
		}
		e.m.Decisions = append(e.m.Decisions, e.slots[i].fill(&items[i]))
	}
	return &e.m
}

func (s *slot) fill(i *item) *damselflyv1.Decision {
	switch {
	case i.wire != nil:
		return i.wire
	case i.core.Kind == 0:
		s.p.Number = i.pong
		s.pong.Pong = &s.p
		s.d.Decision = &s.pong
		return &s.d
	case i.core.Kind == core.Lease && i.core.Origin == nil:
		s.fillLease(&i.core)
		return &s.d
	}
	return encode(&i.core)
}

// fillLease is encodeLease for a lease from a holder.
func (s *slot) fillLease(d *core.Decision) {
	s.run.First, s.run.Count = uint32(d.Run.First), uint32(d.Run.Count)
	s.holder.Node, s.holder.Address = d.Holder.Node, d.Holder.Address
	l := &s.l
	l.Id, l.Digest, l.Size = d.ID, d.Digest.String(), uint64(d.Size)
	l.Run, l.Holder = &s.run, &s.holder
	l.DeadlineMs, l.FirstLink, l.Links = uint64(d.Deadline/core.Millisecond), uint32(d.FirstLink), d.Links
	s.lease.Lease = l
	s.d.Decision = &s.lease
}

// encode is the wire form of a decision.
func encode(d *core.Decision) *damselflyv1.Decision {
	g := d.Digest.String()
	switch d.Kind {
	case core.Lease:
		return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Lease{Lease: encodeLease(d)}}
	case core.Cancel:
		return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Cancel{Cancel: &damselflyv1.Cancel{Leases: []uint64{d.ID}}}}
	case core.Queued:
		return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Queued{Queued: &damselflyv1.Queued{Digest: g}}}
	case core.Revoke:
		return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Revoke{Revoke: &damselflyv1.Revoke{Digest: g}}}
	case core.Tell:
		return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Tell{Tell: &damselflyv1.Tell{Digest: g}}}
	default:
		return &damselflyv1.Decision{Decision: &damselflyv1.Decision_Refuse{Refuse: &damselflyv1.Refuse{
			Digest: g, Reason: d.Reason, RetryAfterMs: uint64(d.RetryAfter / core.Millisecond),
		}}}
	}
}

func encodeLease(d *core.Decision) *damselflyv1.Lease {
	l := &damselflyv1.Lease{
		Id: d.ID, Digest: d.Digest.String(), Size: uint64(d.Size),
		Run:        &damselflyv1.Run{First: uint32(d.Run.First), Count: uint32(d.Run.Count)},
		DeadlineMs: uint64(d.Deadline / core.Millisecond), FirstLink: uint32(d.FirstLink), Links: d.Links,
	}
	if o := d.Origin; o != nil {
		l.Origin = &damselflyv1.Origin{
			Kind: damselflyv1.Origin_Kind(o.Kind), Registry: o.Registry, Repository: o.Repository, Url: o.URL, Private: o.Private,
		}
		l.OnBehalf = encodeHolder(d.OnBehalf)
		return l
	}
	l.Holder = encodeHolder(d.Holder)
	return l
}

func encodeHolder(p core.Peer) *damselflyv1.Holder {
	if p.Node == "" {
		return nil
	}
	return &damselflyv1.Holder{Node: p.Node, Address: p.Address}
}
