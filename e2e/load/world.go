package main

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// world is what all simulated nodes share: which blobs there are, how long a piece
// takes, and what was counted.
type world struct {
	cfg    Config
	layout blob.Layout
	groups []*group
	piece  atomic.Int64 // time that a piece takes from another node, in nanoseconds

	counts counts
	denial denial
	// events: from Done to the Pong that was asked for behind it, so to when the
	// node has everything that the Done made possible. leases: from Done to the
	// lease, where there was one before that Pong. pings: of nodes that waited.
	events, leases, pings latencies
}

// counts are of the whole run.
type counts struct {
	decisions, leases, origin, messages, pongs   atomic.Int64
	sent, done, wants, blobs, refused, shed      atomic.Int64
	cancelled, revoked, silences, lost, attended atomic.Int64
}

// group is a swarm: nodes that want the same blobs, one after another.
type group struct {
	number int
	front  atomic.Int64 // the newest blob that anybody wants
}

func newWorld(cfg Config) (*world, error) {
	layout, err := blob.NewLayout(int64(cfg.Pieces) * blob.MinPieceLength)
	if err != nil {
		return nil, err
	}
	w := &world{cfg: cfg, layout: layout}
	for i := range max(cfg.Pulling/cfg.Swarm, 1) {
		w.groups = append(w.groups, &group{number: i})
	}
	w.piece.Store(int64(w.start()))
	return w, nil
}

// start is the time of a piece with which all slots, always busy, would give the
// wanted rate.
func (w *world) start() time.Duration {
	return time.Duration(float64(w.cfg.Pulling*w.cfg.Slots) / float64(w.cfg.Rate) * float64(time.Second))
}

// steer brings the time of a piece nearer to what gives the wanted rate, after
// leases were counted for a time.
func (w *world) steer(leases int64, over time.Duration) {
	is := float64(leases) / over.Seconds()
	by := min(max(is/float64(w.cfg.Rate), 0.9), 1.1)
	first := w.start()
	next := time.Duration(float64(w.piece.Load()) * by)
	w.piece.Store(int64(min(max(next, first/8), 4*first)))
}

// pieceTime is how long one transfer takes for a piece: each is up to a fifth
// quicker or slower.
func (w *world) pieceTime() time.Duration {
	return time.Duration(float64(w.piece.Load()) * (0.8 + 0.4*rand.Float64()))
}

// originTime is how long a seed needs for a piece of the origin, which is quicker
// than nodes are: else every swarm would wait for it.
func (w *world) originTime() time.Duration { return w.pieceTime() / 4 }

// blob is the name of the group's blob with a number.
func (g *group) blob(number int64) blob.Digest {
	return blob.FromBytes(fmt.Appendf(nil, "group %d blob %d", g.number, number))
}

// origin is where a blob is read: each group has its own registry, so that the
// budget of one host does not slow the load.
func (g *group) origin(number int64) *damselflyv1.Origin {
	return &damselflyv1.Origin{
		Kind: damselflyv1.Origin_KIND_BLOB, Registry: fmt.Sprintf("r%d.example.com", g.number), Repository: fmt.Sprintf("app/%d", number),
	}
}

// link is link i of a blob's chain. Nobody checks these: no bytes move.
func link(d blob.Digest, i int) []byte {
	if i == 0 {
		return d.FirstLink()
	}
	l := make([]byte, 32)
	l[0], l[1], l[2], l[3] = byte(i>>24), byte(i>>16), byte(i>>8), byte(i)
	copy(l[8:], d.Hex()[:24])
	return l
}
