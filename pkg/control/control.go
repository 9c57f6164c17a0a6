// Package control is a node's end of the scheduler streams: it attends every
// scheduler of the cluster, tells each the events that are its own, in order,
// hands on decisions, and notices when a scheduler no longer answers. It holds no
// blobs and decides nothing; task feeds it and is its handler, node runs it.
//
// Blobs are spread over the schedulers by rendezvous hashing (pkg/ring): Set knows
// who there is, and so whom a blob belongs to. To who uses it, it is one scheduler
// that answers for some blobs and perhaps, for a moment, not for others.
package control

import (
	"context"
	"time"

	"google.golang.org/grpc"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Protocol is the version of the wire that this node speaks.
const Protocol = 1

// Timing of a stream. A node that waits hears from its scheduler within silence, or
// counts it as silent and helps itself; within silenceMost, where pieces come meanwhile.
// Its stream ends after silenceBusy; after silenceIdle, where nobody waits. What waits to
// be sent is bounded by pongMost: a scheduler speaks, and reads nothing.
//
// A scheduler that speaks again was slow and not gone. It may be silent for twice as long
// from then on (slowMost times), until it was not for slowFor: where a whole cluster is
// short of CPU, to help oneself at once again and again costs more of what is short.
const (
	watchTick    = 100 * time.Millisecond
	pingBusy     = 150 * time.Millisecond
	pingIdle     = 5 * time.Second
	silence      = 400 * time.Millisecond
	silenceMost  = 2 * time.Second
	silenceBusy  = 5 * time.Second
	silenceIdle  = 15 * time.Second
	pongMost     = time.Minute
	slowFor      = time.Minute
	slowMost     = 2
	backoffFirst = 100 * time.Millisecond
	backoffMost  = 2 * time.Second
)

// The control round trip counts as unknownTrip until a pong has come; each pong
// then moves it by one part of smoothing.
const (
	unknownTrip = time.Millisecond
	smoothing   = 8
)

// Timing of the set.
const (
	// grace is how long a scheduler that is silent, or whose stream ended, keeps its
	// blobs while others live: by then these have mostly noticed too, and all nodes move alike.
	grace = 1500 * time.Millisecond
	// settling is how long a blob that has moved stays wanted where it was, while its
	// new owner hears who holds what: one that hears a want before it has heard of any
	// holder has the origin read once more.
	settling = 200 * time.Millisecond
	// welcomeFirst is how long a scheduler may take to welcome before another is
	// tried. It doubles with each round, up to welcomeMost: where thousands attend
	// at once, it takes long.
	welcomeFirst = time.Second
	welcomeMost  = 16 * time.Second
	// slotsEvery is the least time between two Slots to one scheduler.
	slotsEvery = 20 * time.Millisecond
)

// Handler takes decisions, one at a time and in order. It must not block: while
// it runs, nothing else is heard.
type Handler interface {
	Handle(Decision)
}

// Connector opens connections to schedulers.
type Connector interface {
	// Connect names a scheduler to attend: at an address, and with this peer ID and
	// no other; with any, as long as it is a scheduler of the cluster, where the ID
	// is "". It does not wait for an answer.
	Connect(Holder) (Conn, error)
}

// Conn is a connection to one scheduler.
type Conn interface {
	Attend(ctx context.Context, opts ...grpc.CallOption) (grpc.BidiStreamingClient[damselflyv1.NodeMessage, damselflyv1.SchedulerMessage], error)
	// ID is the peer ID of who answers on the stream with that context.
	ID(context.Context) string
	Close() error
}
