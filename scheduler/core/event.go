package core

import (
	"iter"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Time is a point in time or a span of it, in nanoseconds. Points count from
// any moment that the driver of a State keeps; only their order and distance
// matter.
type Time int64

// Spans of Time.
const (
	Microsecond Time = 1000
	Millisecond      = 1000 * Microsecond
	Second           = 1000 * Millisecond
)

// Event is what a State is told: *Attend, *Leave, *Want, *Unwant, *Have,
// *Drop, *Ending, *Done, *Failed, *Slots or *Tick. The caller keeps the event and whatever it
// points to; Apply retains none of it but Want.Origin, which must not change
// afterwards.
//
// Events are told by nodes, who may lie. Whatever does not fit is ignored or
// refused, and nothing panics: a run outside of its blob, a lease that is not
// the node's, a node that has not attended.
type Event interface{ event() }

// Attend: a node has opened its stream. One that attends already starts anew,
// as if it had left. (scheduler.proto, Attend)
type Attend struct {
	Node    string // peer ID
	Address string // host:port of its Peer service
	// Slots; 0 means the default.
	UploadSlots, DownloadSlots int
	Region, Zone, Rack         string
	Seed                       bool // by its certificate
	// Machine is where the node attends from, as its scheduler sees it; nodes of one
	// count as one accuser. Empty: not known, and the node stands for itself.
	Machine string
}

// Leave: a node's stream has ended, or it was silent too long.
type Leave struct{ Node string }

// Want: a client of the node waits for pieces of a blob. A second Want for the
// same blob replaces the first. (scheduler.proto, Want)
type Want struct {
	Node   string
	Digest blob.Digest
	Size   int64
	Runs   []blob.Run // none means all
	Origin *Origin    // nil: only other nodes can serve it
	// Urgent pieces are read by a client right now: they come before all others
	// of this want, in order. What of them is not wanted does not count.
	Urgent   []blob.Run
	Priority Priority
}

// Priority is who waits for a want: a higher one (a lower number) gets slots
// first. The numbers are those of scheduler.proto, Want.Priority.
type Priority uint8

// Priorities of a Want.
const (
	Client     Priority = iota // a client waits
	Preheat                    // wanted before anybody asks
	Background                 // copies for safety, repairs
	priorities
)

// Unwant takes a Want back; the node has given up its leases of the blob.
type Unwant struct {
	Node   string
	Digest blob.Digest
}

// Have: the node can serve further pieces, and knows further links.
// (scheduler.proto, Have)
type Have struct {
	Node      string
	Digest    blob.Digest
	Size      int64
	Runs      []blob.Run
	FirstLink int
	Links     []byte
	Sealed    bool
}

// Drop: the node holds no piece of the blob any more. A node that has lost
// some pieces says Drop, then Have with those that it still holds; so does one
// that was told Revoke.
type Drop struct {
	Node   string
	Digest blob.Digest
}

// Ending: what is left of a lease from a holder is on its way, so that the slots
// that it takes at both ends may be leased again; Done or Failed follow. Said one
// control round trip before the end, it hides that round trip.
type Ending struct {
	Node  string
	Lease uint64
}

// Slots: how many of the node's slots this State may lease from now on, because
// other schedulers use the others. They never exceed those of Attend. Running
// leases go on.
type Slots struct {
	Node             string
	Upload, Download int
}

// Done ends a lease: every piece of its run is in the node's store.
type Done struct {
	Node  string
	Lease uint64
	Bytes int64
	Time  Time // that the reading took
}

// Failed ends a lease before all of its run came. (scheduler.proto, Failed)
type Failed struct {
	Node       string
	Lease      uint64
	Reason     Reason
	Status     int  // HTTP status of the origin, with Refused
	RetryAfter Time // that the origin asked to wait
}

// Tick tells nothing but the time. See State.Due.
type Tick struct{}

// pieces yields the pieces of runs of a blob of n pieces. Runs may overlap, as
// those of messages that were joined do; but however many a node says, they
// cost no more than a few times the blob's length.
func pieces(runs []blob.Run, n int) iter.Seq[int] {
	return func(yield func(int) bool) {
		left := 4*n + 1024
		for _, r := range runs {
			for p := max(r.First, 0); p < min(r.End(), n); p++ {
				if left--; left < 0 || !yield(p) {
					return
				}
			}
		}
	}
}

func (*Attend) event() {}
func (*Leave) event()  {}
func (*Want) event()   {}
func (*Unwant) event() {}
func (*Have) event()   {}
func (*Drop) event()   {}
func (*Ending) event() {}
func (*Slots) event()  {}
func (*Done) event()   {}
func (*Failed) event() {}
func (*Tick) event()   {}

// Reason is why a lease failed; the numbers are those of scheduler.proto,
// Failed.Reason.
type Reason uint8

// Reasons of Failed.
const (
	Unspecified Reason = iota
	Unreachable        // the source did not answer, or broke off
	Busy               // the holder is at its limit
	Missing            // the holder has not what the lease said it has
	BadPiece           // a piece did not match its links
	BadDigest          // the whole did not hash to its digest
	OriginError        // the origin refused: see Status
	StoreError         // the node could not write
	Cancelled          // by the scheduler or the node
	reasons
)

// OriginKind is what kind of thing an Origin names; the numbers are those of
// scheduler.proto, Origin.Kind.
type OriginKind uint8

// Kinds of origin.
const (
	NoKind OriginKind = iota
	BlobOrigin
	ManifestOrigin
	URLOrigin
	originKinds
)

// Origin says where a blob can be read when no node holds it.
// (scheduler.proto, Origin)
type Origin struct {
	Kind       OriginKind
	Registry   string
	Repository string
	URL        string
	Private    bool // the node's client sent a credential
}

// host is what the budget of origin leases goes by.
func (o *Origin) host() string {
	if o.Registry != "" {
		return o.Registry
	}
	return hostOfURL(o.URL)
}

// hostOfURL cuts host and port out of an absolute URL. It is not a validator:
// a URL that it misreads still lands in some budget.
func hostOfURL(u string) string {
	start := 0
	for i := 0; i+2 < len(u); i++ {
		if u[i] == ':' && u[i+1] == '/' && u[i+2] == '/' {
			start = i + 3
			break
		}
	}
	end := start
	for end < len(u) && u[end] != '/' && u[end] != '?' && u[end] != '#' {
		if u[end] == '@' {
			start = end + 1
		}
		end++
	}
	return u[start:end]
}
