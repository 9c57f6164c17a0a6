// Package sim is a discrete-event world that drives scheduler/core: nodes that share
// the bandwidth of their links, an origin, faults, and one State or several. It
// shows what the policy is worth before real machines do, and answers how long a
// crowd of so many nodes will take.
//
// It is pure: equal scenarios give equal decisions, byte for byte. It moves no
// bytes and knows no hashes; what it models of a node is what pkg/task does. The
// scheduler's sim command runs it and prints what it returns.
package sim

import "github.com/damselfly-p2p/damselfly/scheduler/core"

// Scenario is one run: who wants what, over which links, and what goes wrong. Zero
// fields take the default that each names.
type Scenario struct {
	// Random is the seed of every random choice, those of the State included.
	// Default 1.
	Random uint64 `yaml:"random"`

	// Nodes is how many nodes want the blobs. Default 100.
	Nodes int `yaml:"nodes"`
	// Seeds is how many seeds there are beside them. Default 1; below zero none, so
	// that the first node reads the origin.
	Seeds int `yaml:"seeds"`
	// Warm has the seeds hold all blobs from the start, as after an earlier pull; else
	// one of them reads the origin while it serves.
	Warm bool `yaml:"warm"`
	// Schedulers is how many share the blobs. Default 1.
	Schedulers int `yaml:"schedulers"`

	// Blobs are the layers that every node wants; see Blob. Default one of 256
	// pieces of 256 KiB.
	Blobs []Blob `yaml:"blobs"`
	// Parallel is how many blobs a node wants at a time, as containerd's
	// max_concurrent_downloads; 0 all at once.
	Parallel int `yaml:"parallel"`

	// Rate is what a node sends and receives at once, each, in bytes per second.
	// Default 12.5 MB/s (100 Mbit/s).
	Rate float64 `yaml:"rate"`
	// SeedRate is the same of a seed. Default Rate.
	SeedRate float64 `yaml:"seedRate"`
	// OriginRate is what the origin sends to all its readers together. Default 10
	// times SeedRate. OriginLatency is the time to its first byte.
	OriginRate    float64   `yaml:"originRate"`
	OriginLatency core.Time `yaml:"originLatency"`
	// Jitter: the work of a transfer varies by so much of it, uniformly, with mean
	// 1. Default 0.2; below zero none.
	Jitter float64 `yaml:"jitter"`
	// Latency is what a message between a node and a scheduler, or from one node to
	// another, takes one way; it varies by half of it. Default 100 us; below zero
	// none.
	Latency core.Time `yaml:"latency"`
	// UploadSlots and DownloadSlots of a node; of a seed, the same times
	// SeedRate/Rate, rounded up. Default 2 each.
	UploadSlots   int `yaml:"uploadSlots"`
	DownloadSlots int `yaml:"downloadSlots"`
	// NoEnding has nodes not say that a lease is ending, to show what that brings.
	NoEnding bool `yaml:"noEnding"`

	// Arrivals is how the nodes come: flash (all at once), staggered (evenly at
	// random over Span) or poisson (Span is the mean time between two). Default
	// flash.
	Arrivals string    `yaml:"arrivals"`
	Span     core.Time `yaml:"span"`

	// Slow is the fraction of nodes whose links have SlowFactor of the rate. Default
	// none, and 0.1.
	Slow       float64 `yaml:"slow"`
	SlowFactor float64 `yaml:"slowFactor"`
	// Racks spreads nodes and seeds evenly over so many racks, whose lines to each
	// other carry, each way, the sum of the rack's links over Oversubscribed. Default
	// none, and 1.
	Racks          int     `yaml:"racks"`
	Oversubscribed float64 `yaml:"oversubscribed"`
	// NoPlaces keeps from the scheduler where nodes stand.
	NoPlaces bool `yaml:"noPlaces"`

	// Faults is what goes wrong.
	Faults Faults `yaml:"faults"`

	// Core sets the rules of the State.
	Core core.Config `yaml:"core"`
	// Limit ends a run that does not end by itself; who is not whole then is stuck.
	// Default 20 times the bound and two minutes.
	Limit core.Time `yaml:"limit"`
}

// Blob is one or several layers that every node wants.
type Blob struct {
	// Size in bytes; 0 is Pieces times 256 KiB, or the least that makes so many
	// pieces.
	Size   int64 `yaml:"size"`
	Pieces int   `yaml:"pieces"`
	// Count is how many such blobs. Default 1.
	Count int `yaml:"count"`
}

// Faults is what goes wrong in a Scenario. Fractions are of the nodes, who is hit
// is random. A point of progress is a fraction of the bytes that all nodes want.
type Faults struct {
	// Die is the fraction of nodes that die, each at a random point of the run.
	Die float64 `yaml:"die"`
	// Lie is the fraction that sends bad bytes; what its own client gets does not
	// count.
	Lie float64 `yaml:"lie"`
	// Hang is the fraction that takes requests and never answers; its own client
	// does not count either.
	Hang float64 `yaml:"hang"`
	// Trickle is the fraction that sends a byte a second.
	Trickle float64 `yaml:"trickle"`
	// Evict is the fraction that drops a blob once, soon after it is whole.
	Evict float64 `yaml:"evict"`
	// SeedDies is the point of progress at which the reading seed dies, 0 never.
	SeedDies float64 `yaml:"seedDies"`
	// SchedulerDies is the point at which one scheduler dies, 0 never. Where it is
	// the only one, another takes its place after Detect, knowing nothing.
	SchedulerDies float64 `yaml:"schedulerDies"`
	// SchedulerJoins is the point at which one more scheduler joins, 0 never.
	SchedulerJoins float64 `yaml:"schedulerJoins"`
	// Detect is how long it takes until a death is known: of a node to its
	// schedulers, of a scheduler to its nodes. Default 2 s.
	Detect core.Time `yaml:"detect"`
	// OriginBusy has the origin answer the first so many reads with 429 and
	// Retry-After RetryAfter.
	OriginBusy int       `yaml:"originBusy"`
	RetryAfter core.Time `yaml:"retryAfter"`
	// OriginFails is the probability that a read of the origin breaks off.
	OriginFails float64 `yaml:"originFails"`
}
