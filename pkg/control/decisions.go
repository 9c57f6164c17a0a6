package control

import (
	"errors"
	"fmt"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Decision is what a scheduler decided for this node, checked against the
// blob's layout: a Lease, Cancel, Queued, Revoke, Tell or Refuse; or what this
// package noticed of the scheduler itself: Joined or Lost.
type Decision any

// Holder is another node: its peer ID and the host:port of its Peer service.
type Holder struct{ ID, Address string }

// Lease tells this node to read a run of pieces from one source. Exactly one of
// Holder and Origin is set.
type Lease struct {
	ID     uint64
	Digest blob.Digest
	Layout blob.Layout
	Run    blob.Run
	Holder *Holder
	Origin *damselflyv1.Origin
	// OnBehalf is the node whose client's credential opens the origin; nil when
	// none is needed or it is this node's own.
	OnBehalf  *Holder
	Deadline  time.Duration
	FirstLink int
	Links     []byte
}

// Cancel takes a lease back.
type Cancel struct{ Lease uint64 }

// Queued answers a Want: the scheduler knows of it and wakes it.
type Queued struct{ Digest blob.Digest }

// Revoke says that a blob's chain led to a wrong digest.
type Revoke struct{ Digest blob.Digest }

// Tell asks for a Have with every link of a blob.
type Tell struct{ Digest blob.Digest }

// Refuse answers a Want that gets no lease.
type Refuse struct {
	Digest blob.Digest
	Reason string
}

// Joined says that a scheduler attends to this node, at first or again: it knows
// nothing of the node yet, so the handler tells what the node holds and wants.
type Joined struct{}

// Lost says that the stream to the scheduler broke or that it fell silent:
// leases that run go on, and tasks that wait help themselves.
type Lost struct{}

// decode turns a wire decision into Decisions; into none for what this node does
// not know.
func decode(d *damselflyv1.Decision) ([]Decision, error) {
	switch d := d.GetDecision().(type) {
	case *damselflyv1.Decision_Lease:
		l, err := decodeLease(d.Lease)
		if err != nil {
			return nil, fmt.Errorf("lease %d: %w", d.Lease.GetId(), err)
		}
		return []Decision{l}, nil
	case *damselflyv1.Decision_Cancel:
		out := make([]Decision, 0, len(d.Cancel.GetLeases()))
		for _, id := range d.Cancel.GetLeases() {
			out = append(out, Cancel{Lease: id})
		}
		return out, nil
	case *damselflyv1.Decision_Queued:
		return named(d.Queued.GetDigest(), func(g blob.Digest) Decision { return Queued{g} })
	case *damselflyv1.Decision_Revoke:
		return named(d.Revoke.GetDigest(), func(g blob.Digest) Decision { return Revoke{g} })
	case *damselflyv1.Decision_Tell:
		return named(d.Tell.GetDigest(), func(g blob.Digest) Decision { return Tell{g} })
	case *damselflyv1.Decision_Refuse:
		return named(d.Refuse.GetDigest(), func(g blob.Digest) Decision { return Refuse{g, d.Refuse.GetReason()} })
	}
	return nil, nil
}

func named(digest string, decision func(blob.Digest) Decision) ([]Decision, error) {
	g, err := blob.ParseDigest(digest)
	if err != nil {
		return nil, err
	}
	return []Decision{decision(g)}, nil
}

func decodeLease(l *damselflyv1.Lease) (Lease, error) {
	g, err := blob.ParseDigest(l.GetDigest())
	if err != nil {
		return Lease{}, err
	}
	if l.GetSize() > blob.MaxSize {
		return Lease{}, fmt.Errorf("size %d is above the largest, %d", l.GetSize(), int64(blob.MaxSize))
	}
	layout, err := blob.NewLayout(int64(l.GetSize()))
	if err != nil {
		return Lease{}, err
	}
	out := Lease{
		ID: l.GetId(), Digest: g, Layout: layout,
		Run:      blob.Run{First: int(l.GetRun().GetFirst()), Count: int(l.GetRun().GetCount())},
		Origin:   l.GetOrigin(),
		Deadline: time.Duration(min(l.GetDeadlineMs(), 1<<40)) * time.Millisecond,
	}
	if err := layout.Check(out.Run); err != nil {
		return Lease{}, err
	}
	if (l.GetHolder() == nil) == (l.GetOrigin() == nil) {
		return Lease{}, errors.New("either a holder or an origin must be named")
	}
	out.Holder, out.OnBehalf = holder(l.GetHolder()), holder(l.GetOnBehalf())
	if n := len(l.GetLinks()); n > layout.Pieces()*g.LinkSize() || int64(l.GetFirstLink()) > int64(layout.Pieces()) {
		return Lease{}, fmt.Errorf("%d bytes of links from %d for %d pieces", n, l.GetFirstLink(), layout.Pieces())
	}
	out.FirstLink, out.Links = int(l.GetFirstLink()), l.GetLinks()
	return out, nil
}

func holder(h *damselflyv1.Holder) *Holder {
	if h == nil {
		return nil
	}
	return &Holder{ID: h.GetNode(), Address: h.GetAddress()}
}
