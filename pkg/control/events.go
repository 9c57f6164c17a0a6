package control

import (
	"slices"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Event is what a node tells its scheduler.
type Event interface {
	wire() *damselflyv1.NodeEvent
}

// Want says that this node waits for runs of a blob; for all of it when Runs is
// empty.
type Want struct {
	Digest blob.Digest
	Size   int64
	Runs   []blob.Run
	Origin *damselflyv1.Origin
	// Urgent pieces are read by a client right now.
	Urgent   []blob.Run
	Priority damselflyv1.Want_Priority
}

// Unwant takes a Want back.
type Unwant struct{ Digest blob.Digest }

// Have says which pieces can be served now, and the links from FirstLink on.
// Sealed: the whole blob is here and proven.
type Have struct {
	Digest    blob.Digest
	Size      int64
	Runs      []blob.Run
	FirstLink int
	Links     []byte
	Sealed    bool
}

// Drop says that no piece of a blob is held any more.
type Drop struct{ Digest blob.Digest }

// Ending says that the rest of a lease is on its way: its slots may be leased
// again.
type Ending struct{ Lease uint64 }

// Slots says how many slots this scheduler may lease from now on.
type Slots struct{ Upload, Download int }

// Done ends a lease whose run is in the store; Bytes of it came in Took.
type Done struct {
	Lease uint64
	Bytes int64
	Took  time.Duration
}

// Failed ends a lease before all of its run came. Status and RetryAfter are the
// origin's answer, with REASON_ORIGIN.
type Failed struct {
	Lease      uint64
	Reason     damselflyv1.Failed_Reason
	Status     int
	RetryAfter time.Duration
}

func (e Want) wire() *damselflyv1.NodeEvent {
	return &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Want{Want: &damselflyv1.Want{
		Digest: e.Digest.String(), Size: uint64(e.Size), Runs: wireRuns(e.Runs), Origin: e.Origin,
		Urgent: wireRuns(e.Urgent), Priority: e.Priority,
	}}}
}

func (e Unwant) wire() *damselflyv1.NodeEvent {
	return &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Unwant{Unwant: &damselflyv1.Unwant{Digest: e.Digest.String()}}}
}

func (e Have) wire() *damselflyv1.NodeEvent {
	return &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Have{Have: &damselflyv1.Have{
		Digest: e.Digest.String(), Size: uint64(e.Size), Runs: wireRuns(e.Runs),
		FirstLink: uint32(e.FirstLink), Links: slices.Clip(e.Links), Sealed: e.Sealed,
	}}}
}

// merge adds e to a Have that still waits to be sent, and tells whether it
// could: links must continue those that are there, and a scheduler refuses more
// runs than the blob has pieces, as the same pieces told twice can be.
func (e Have) merge(last *damselflyv1.Have) bool {
	l, err := blob.NewLayout(e.Size)
	if err != nil || last.GetDigest() != e.Digest.String() || last.GetSize() != uint64(e.Size) ||
		len(last.GetRuns())+len(e.Runs) > l.Pieces() {
		return false
	}
	if len(e.Links) > 0 {
		if n := len(last.GetLinks()); n > 0 && int(last.GetFirstLink())+n/e.Digest.LinkSize() != e.FirstLink {
			return false
		} else if n == 0 {
			last.FirstLink = uint32(e.FirstLink)
		}
		last.Links = append(last.Links, e.Links...)
	}
	for _, r := range wireRuns(e.Runs) {
		if n := len(last.Runs); n > 0 && last.Runs[n-1].First+last.Runs[n-1].Count == r.First {
			last.Runs[n-1].Count += r.Count
			continue
		}
		last.Runs = append(last.Runs, r)
	}
	last.Sealed = last.Sealed || e.Sealed
	return true
}

func (e Drop) wire() *damselflyv1.NodeEvent {
	return &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Drop{Drop: &damselflyv1.Drop{Digest: e.Digest.String()}}}
}

func (e Ending) wire() *damselflyv1.NodeEvent {
	return &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Ending{Ending: &damselflyv1.Ending{Lease: e.Lease}}}
}

func (e Slots) wire() *damselflyv1.NodeEvent {
	return &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Slots{Slots: &damselflyv1.Slots{
		Upload: uint32(max(e.Upload, 0)), Download: uint32(max(e.Download, 0)),
	}}}
}

func (e Done) wire() *damselflyv1.NodeEvent {
	return &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Done{Done: &damselflyv1.Done{
		Lease: e.Lease, Bytes: uint64(e.Bytes), Microseconds: uint64(e.Took.Microseconds()),
	}}}
}

func (e Failed) wire() *damselflyv1.NodeEvent {
	return &damselflyv1.NodeEvent{Event: &damselflyv1.NodeEvent_Failed{Failed: &damselflyv1.Failed{
		Lease: e.Lease, Reason: e.Reason, Status: uint32(e.Status), RetryAfterMs: uint64(e.RetryAfter.Milliseconds()),
	}}}
}

func wireRuns(runs []blob.Run) []*damselflyv1.Run {
	out := make([]*damselflyv1.Run, 0, len(runs))
	for _, r := range runs {
		out = append(out, &damselflyv1.Run{First: uint32(r.First), Count: uint32(r.Count)})
	}
	return out
}
