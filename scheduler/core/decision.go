package core

import "github.com/damselfly-p2p/damselfly/pkg/blob"

// DecisionKind is what a Decision decides.
type DecisionKind uint8

// Kinds of Decision, named as in scheduler.proto.
const (
	_ DecisionKind = iota
	// Lease: read Run of Digest from Holder or from Origin.
	Lease
	// Cancel: the lease with ID is taken back.
	Cancel
	// Queued: the want for Digest waits and will be woken.
	Queued
	// Revoke: the links of Digest led to a wrong digest; drop what is not
	// proven.
	Revoke
	// Tell: say Have with the links of Digest.
	Tell
	// Refuse: the want for Digest gets no lease, and is forgotten; Reason says
	// why.
	Refuse
	decisionKinds
)

func (k DecisionKind) String() string {
	switch k {
	case Lease:
		return "lease"
	case Cancel:
		return "cancel"
	case Queued:
		return "queued"
	case Revoke:
		return "revoke"
	case Tell:
		return "tell"
	case Refuse:
		return "refuse"
	}
	return "unknown"
}

// Peer is a node and where its Peer service listens.
type Peer struct{ Node, Address string }

// Decision is what a State decides, addressed to one node. It is one struct for
// all kinds, so that a batch is one slice and a decision no allocation. The
// receiver may keep it; Links and Origin are shared and must not be changed.
type Decision struct {
	Kind   DecisionKind
	To     string // peer ID of the node
	Digest blob.Digest

	// Lease; ID also with Cancel.
	ID        uint64
	Size      int64
	Run       blob.Run
	Holder    Peer    // zero when the origin is read
	Origin    *Origin // nil when a holder is read
	OnBehalf  Peer    // zero unless the origin is read for another node's client with a credential
	Deadline  Time    // span; for an origin lease, that may pass without a new piece
	FirstLink int
	Links     []byte

	// Refuse. RetryAfter above zero: the scheduler has too much to do, and the
	// want may be said again after this span.
	Reason     string
	RetryAfter Time
}
