package cluster

import (
	"time"

	"github.com/hashicorp/memberlist"
)

// How soon a dead scheduler is known to be dead, and how sure that is.
//
// Every probeEvery a scheduler probes one other: a UDP ping, after pingLimit also one
// through each other scheduler and one by TCP. One that has answered none of them by
// the end of the interval is suspected, and has suspicion intervals to say that it
// lives. So with three schedulers a dead one is out of the set after
//
//	0 to 0.4 s   until it is its turn
//	0.2 s        for the probe
//	0.6 s        of suspicion, twice that while no other scheduler suspects it too
//
// which is about a second, and a living one would have to be deaf and dumb on three
// ways for 0.8 s. Pauses of Go's collector and lost packets are a hundredth of that;
// a process that got no CPU for a second is as good as dead to nodes that wait for
// decisions, and is taken in again when it speaks. To be wrong costs little: its blobs
// have another owner for a moment, who is told what nodes hold. A scheduler that finds
// itself slow (its own probes fail) probes up to slowest times slower, and so blames
// others later.
const (
	probeEvery = 200 * time.Millisecond
	pingLimit  = 100 * time.Millisecond
	suspicion  = 3
	unsure     = 2 // times suspicion where nobody else suspects
	slowest    = 4
	// gossipEvery bounds how long news wait: some 150 ms until all of 64 know.
	gossipEvery = 50 * time.Millisecond
	retransmits = 4
	// syncEvery is between two exchanges of everything with one other scheduler: what
	// mends whatever gossip lost.
	syncEvery = 10 * time.Second
	// streamLimit bounds a connection to another scheduler.
	streamLimit = 2 * time.Second
	// rememberDead is how long it is known of a scheduler that it lived, and since when.
	rememberDead = 30 * time.Second
)

func tuned() *memberlist.Config {
	cfg := memberlist.DefaultLANConfig()
	cfg.ProbeInterval, cfg.ProbeTimeout = probeEvery, pingLimit
	cfg.SuspicionMult, cfg.SuspicionMaxTimeoutMult = suspicion, unsure
	cfg.AwarenessMaxMultiplier = slowest
	cfg.GossipInterval, cfg.RetransmitMult = gossipEvery, retransmits
	cfg.PushPullInterval, cfg.TCPTimeout = syncEvery, streamLimit
	// A scheduler that comes back with another address, as a pod does, is the same
	// one: its name is that of its key.
	cfg.DeadNodeReclaimTime = time.Millisecond
	cfg.GossipToTheDeadTime = rememberDead
	cfg.EnableCompression = false
	return cfg
}
