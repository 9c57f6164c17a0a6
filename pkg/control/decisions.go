package control

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Decision is what a scheduler decided for this node, checked against the
// blob's layout: a Lease, Cancel, Queued, Revoke, Tell or Refuse; or what this
// package noticed of the schedulers themselves: Joined, Lost or Spoke. Which of them
// decided is no matter: lease IDs are this node's own.
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
	// RoundTrip is how long a word to the scheduler and its answer take now.
	RoundTrip time.Duration
}

// Cancel takes a lease back.
type Cancel struct{ Lease uint64 }

// Queued answers a Want: the scheduler knows of it and wakes it.
type Queued struct{ Digest blob.Digest }

// Revoke says that a blob's chain led to a wrong digest.
type Revoke struct{ Digest blob.Digest }

// Tell asks for a Have with every link of a blob.
type Tell struct{ Digest blob.Digest }

// Refuse answers a Want that gets no lease. RetryAfter, if not 0: the scheduler
// has too much to do, and the want may come again after that long.
type Refuse struct {
	Digest     blob.Digest
	Reason     string
	RetryAfter time.Duration
}

// Joined says that a scheduler answers for blobs that it knows nothing of yet: it
// attends at first or again, or they were another's before. So the handler tells
// what the node holds and wants of those that Concerns names. Concerns is safe for
// concurrent use and may be kept.
type Joined struct{ Concerns func(blob.Digest) bool }

// Spoke says that the scheduler of the blobs that Concerns names speaks again after a
// silence (Lost), on the same stream. It knows all that it was told there, in the silence
// too: only tasks that went on by themselves want again, to hear that it looks after them.
type Spoke struct{ Concerns func(blob.Digest) bool }

// Lost says that the stream to the scheduler of the blobs that Concerns names
// broke, or that it fell silent: leases that run go on, and tasks that wait look
// whether Set.Joined still tells them to.
type Lost struct{ Concerns func(blob.Digest) bool }

// schedulers says who the schedulers are; nobody: this one alone; and the seeds. It
// does not leave this package.
type schedulers struct{ members, seeds []Holder }

// denials says which nodes are denied. It does not leave this package either.
type denials struct{ statements []identity.Statement }

// maxSchedulers bounds the set that a node follows: a stream to each. maxSeeds bounds
// those that it is told of.
const (
	maxSchedulers = 64
	maxSeeds      = 16
)

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
		return named(d.Refuse.GetDigest(), func(g blob.Digest) Decision {
			return Refuse{g, d.Refuse.GetReason(), time.Duration(min(d.Refuse.GetRetryAfterMs(), maxRetryMs)) * time.Millisecond}
		})
	case *damselflyv1.Decision_Schedulers:
		return decodeSchedulers(d.Schedulers)
	case *damselflyv1.Decision_Denials:
		if n := len(d.Denials.GetStatements()); n > identity.MaxStatements {
			return nil, fmt.Errorf("%d statements of denied nodes, at most %d are kept", n, identity.MaxStatements)
		}
		return []Decision{denials{identity.StatementsOf(d.Denials.GetStatements())}}, nil
	}
	return nil, nil
}

// maxRetryMs bounds what a scheduler may have a want wait: an hour.
const maxRetryMs = 3600_000

func decodeSchedulers(m *damselflyv1.Schedulers) ([]Decision, error) {
	members, err := decodeHolders("schedulers", m.GetMembers(), maxSchedulers)
	if err != nil {
		return nil, err
	}
	seeds, err := decodeHolders("seeds", m.GetSeeds(), maxSeeds)
	if err != nil {
		return nil, err
	}
	return []Decision{schedulers{members, seeds}}, nil
}

// decodeHolders checks a list of at most so many as most says; each is taken once.
func decodeHolders(what string, wire []*damselflyv1.Holder, most int) ([]Holder, error) {
	if len(wire) > most {
		return nil, fmt.Errorf("%d %s, at most %d are followed", len(wire), what, most)
	}
	var out []Holder
	for _, one := range wire {
		host, port, err := net.SplitHostPort(one.GetAddress())
		if err != nil || host == "" || port == "" || one.GetNode() == "" {
			return nil, fmt.Errorf("%s: %q at %q: a peer ID and host:port must be named", what, one.GetNode(), one.GetAddress())
		}
		if !slices.ContainsFunc(out, func(h Holder) bool { return h.ID == one.GetNode() }) {
			out = append(out, *holder(one))
		}
	}
	return out, nil
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
