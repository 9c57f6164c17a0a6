package core

import (
	"fmt"
	"slices"
	"strings"
)

// Config sets the rules of a State. Zero fields take the default that each
// names; see DefaultConfig.
type Config struct {
	// Policy names one of Policies: how pieces and holders are chosen. All but the
	// default are there to compare with. Default rarest.
	Policy string
	// UploadSlots and DownloadSlots are what a node gets that attends without
	// saying: how many leases may read from it, and how many it may run, at a
	// time over all blobs. Two keep a link busy while the next lease is on its
	// way; more cut the same link in smaller parts, and pieces arrive later.
	// Default 2 each.
	UploadSlots, DownloadSlots int
	// MaxSlots bounds what a node may claim. Default 256.
	MaxSlots int
	// ReaderUploadSlots bounds the upload slots of a node while it reads an
	// origin, because a full uplink delays the acknowledgements that its own
	// reading needs; with too few, receivers that have other leases as well leave its
	// uplink idle, and new pieces come late. 0 means three quarters of what it attended
	// with, at least 2; and for a node that is no seed and reads for a crowd up to four,
	// twice what it attended with at most.
	ReaderUploadSlots int

	// LeasePieces and LeaseBytes bound the run of one lease from a holder; a
	// run has one piece at least. Longer runs mean fewer messages, and a
	// holder that hands pieces on later. Default 4 pieces and 1 MiB.
	LeasePieces int
	LeaseBytes  int64
	// LeaseRate is how many leases a second the State gives before it makes their
	// runs longer, up to 64 times, so that a scheduler is never asked to decide more
	// than it can. Default 50,000.
	LeaseRate int
	// SwarmLeases: while many nodes want a blob, its runs are shortened until
	// the blob makes this many leases, because a flash crowd ends sooner the
	// finer it is cut. Default 1024.
	SwarmLeases int
	// Window is how many pieces ahead of its reader a node fetches once a blob
	// is no longer rare, so that its client gets the prefix sooner; until then
	// the whole blob counts. Default 64.
	Window int
	// RareCopies: a blob is rare until so many nodes hold all of it. Default 3.
	RareCopies int
	// HolderSample is how many possible holders of a piece are compared. More
	// find nearer and idler ones, at more time a decision. Default 4.
	HolderSample int

	// LeaseTime and MinRate make the deadline of a lease from a holder:
	// LeaseTime, plus its bytes at MinRate (bytes per second) or, once rates
	// are measured, four times its bytes at the slower end's rate. Sooner
	// rescues pieces from a hanging holder sooner; too soon throws away what a
	// slow one has sent. Defaults 2 s and 256 KiB/s.
	LeaseTime Time
	MinRate   int64
	// HedgeTime: a lease that takes four times as long as its receiver usually
	// needs, and this long at least, is hedged: its pieces are leased from another
	// holder too, and what comes first wins. Half of LeaseTime while the receiver's
	// rate is unknown. Default 200 ms.
	HedgeTime Time
	// NearTime is how long a node with nothing to do waits for a piece that is in
	// its own rack, zone or region, or about to come there, until it fetches it from
	// farther away. Longer spares the lines between; shorter spares the node.
	// Default 100 ms.
	NearTime Time
	// DetachedTime is how long a lease still runs when its holder has left the
	// scheduler; often only the stream broke. Default 2 s.
	DetachedTime Time
	// OriginTime and OriginRate: an origin lease without a new piece for
	// OriginTime, plus a piece's bytes at OriginRate (bytes per second), goes
	// to the next reader. Defaults 30 s and 64 KiB/s.
	OriginTime Time
	OriginRate int64
	// SilenceTime is how long a node that reads an origin may say nothing, and a holder
	// send nothing, while others wait: then another reads what they keep. The time of
	// one piece at 1 MiB/s, or four times its time at a measured rate, is added. Default 1 s.
	SilenceTime Time

	// HostLeases bounds concurrent origin leases per registry host, over all
	// blobs. Default 8.
	HostLeases int
	// OriginAttempts is how many origin leases of a blob may fail in a row,
	// none bringing a piece, until those who need the origin are refused.
	// Default 6.
	OriginAttempts int
	// OriginRefusals is how many readers an origin must have turned away (4xx)
	// until the remaining nodes that would ask it with no client credential
	// are refused unasked. Default 3.
	OriginRefusals int
	// OriginBackoff is the pause after the first failed origin lease of a
	// blob; it doubles up to OriginBackoffMax. Defaults 250 ms and 10 s.
	OriginBackoff, OriginBackoffMax Time
	// MaxPause bounds the pause that an origin can ask of the cluster. Who
	// would have to wait longer is refused. Default 60 s.
	MaxPause Time

	// BusyTime is how long a receiver avoids a holder that was at its limit;
	// it doubles up to a second. Default 20 ms.
	BusyTime Time
	// AvoidTime is how long a receiver avoids a holder that it could not
	// reach; it doubles up to a minute. Default 1 s.
	AvoidTime Time
	// Reports is how many nodes in a row must have failed to reach a holder
	// until it counts as gone, for GoneTime, doubling up to five minutes.
	// Defaults 3 and 10 s.
	Reports  int
	GoneTime Time
	// Strikes is how many nodes must have got bad pieces from a holder until
	// nobody reads from it, for Quarantine. One accuser counts once, so that
	// a liar cannot quarantine the others alone; the accuser itself avoids
	// the holder at once. Defaults 3 and 10 min.
	Strikes    int
	Quarantine Time
	// Failures is how many leases of one node and blob may fail in a row until
	// its want is refused. Default 16.
	Failures int

	// TellTime is how long an asked node may take to tell its links. Default
	// 300 ms.
	TellTime Time
	// ReturnTime is how long after the first node came a blob that came half way, from
	// a scheduler that is gone, is not read from its origin: as long as nodes may take to
	// come back, the one that reads it among them. Longer delays what really nobody
	// holds. Default 2.5 s.
	ReturnTime Time
	// IdleTime is how long links and counts of a blob are kept that nobody
	// wants any more. Default 60 s.
	IdleTime Time
	// SweepTime is the period in which lease deadlines are looked at. Default
	// 50 ms.
	SweepTime Time

	// MaxPieces bounds the pieces of all wanted blobs together, and a quarter
	// of it those wanted by one node; about 80 bytes each. A want over it is
	// refused. Default 8 Mi.
	MaxPieces int
	// MaxHoldings bounds the memory for what one node says it holds, in bytes,
	// at about 256 a blob and a bit a piece; what is over it is not counted.
	// Default 64 MiB.
	MaxHoldings int64
}

// DefaultConfig returns the documented defaults.
func DefaultConfig() Config {
	return Config{
		Policy: Policies()[0], UploadSlots: 2, DownloadSlots: 2, MaxSlots: 256,
		LeasePieces: 4, LeaseBytes: 1 << 20, LeaseRate: 50000, SwarmLeases: 1024, Window: 64, RareCopies: 3, HolderSample: 12,
		LeaseTime: 2 * Second, HedgeTime: 200 * Millisecond, NearTime: 100 * Millisecond, MinRate: 256 << 10, DetachedTime: 2 * Second,
		OriginTime: 30 * Second, OriginRate: 64 << 10, SilenceTime: Second,
		HostLeases: 8, OriginAttempts: 6, OriginRefusals: 3,
		OriginBackoff: 250 * Millisecond, OriginBackoffMax: 10 * Second, MaxPause: 60 * Second,
		BusyTime: 20 * Millisecond, AvoidTime: Second, Reports: 3, GoneTime: 10 * Second,
		Strikes: 3, Quarantine: 600 * Second, Failures: 16,
		TellTime: 300 * Millisecond, ReturnTime: 2500 * Millisecond, IdleTime: 60 * Second, SweepTime: 50 * Millisecond,
		MaxPieces: 8 << 20, MaxHoldings: 64 << 20,
	}
}

// numbers lists every number of the config with its default, so that filling in
// and checking walk the same list.
func (c *Config) numbers() []number {
	d := DefaultConfig()
	return []number{
		count("UploadSlots", &c.UploadSlots, d.UploadSlots), count("DownloadSlots", &c.DownloadSlots, d.DownloadSlots),
		count("MaxSlots", &c.MaxSlots, d.MaxSlots), count("LeasePieces", &c.LeasePieces, d.LeasePieces),
		count("LeaseRate", &c.LeaseRate, d.LeaseRate), count("SwarmLeases", &c.SwarmLeases, d.SwarmLeases), count("Window", &c.Window, d.Window),
		count("RareCopies", &c.RareCopies, d.RareCopies), count("HolderSample", &c.HolderSample, d.HolderSample),
		count("HostLeases", &c.HostLeases, d.HostLeases), count("OriginAttempts", &c.OriginAttempts, d.OriginAttempts),
		count("OriginRefusals", &c.OriginRefusals, d.OriginRefusals), count("Reports", &c.Reports, d.Reports),
		count("Strikes", &c.Strikes, d.Strikes), count("Failures", &c.Failures, d.Failures),
		count("MaxPieces", &c.MaxPieces, d.MaxPieces),
		wide("LeaseBytes", &c.LeaseBytes, d.LeaseBytes), wide("MinRate", &c.MinRate, d.MinRate),
		wide("OriginRate", &c.OriginRate, d.OriginRate), wide("MaxHoldings", &c.MaxHoldings, d.MaxHoldings),
		span("LeaseTime", &c.LeaseTime, d.LeaseTime), span("HedgeTime", &c.HedgeTime, d.HedgeTime), span("NearTime", &c.NearTime, d.NearTime), span("DetachedTime", &c.DetachedTime, d.DetachedTime),
		span("OriginTime", &c.OriginTime, d.OriginTime), span("SilenceTime", &c.SilenceTime, d.SilenceTime),
		span("OriginBackoff", &c.OriginBackoff, d.OriginBackoff),
		span("OriginBackoffMax", &c.OriginBackoffMax, d.OriginBackoffMax), span("MaxPause", &c.MaxPause, d.MaxPause),
		span("BusyTime", &c.BusyTime, d.BusyTime), span("AvoidTime", &c.AvoidTime, d.AvoidTime),
		span("GoneTime", &c.GoneTime, d.GoneTime), span("Quarantine", &c.Quarantine, d.Quarantine),
		span("TellTime", &c.TellTime, d.TellTime), span("ReturnTime", &c.ReturnTime, d.ReturnTime), span("IdleTime", &c.IdleTime, d.IdleTime),
		span("SweepTime", &c.SweepTime, d.SweepTime),
	}
}

type number struct {
	name string
	get  func() int64
	fill func()
}

func count(name string, v *int, def int) number {
	return number{name, func() int64 { return int64(*v) }, func() { *v = def }}
}

func wide(name string, v *int64, def int64) number {
	return number{name, func() int64 { return *v }, func() { *v = def }}
}

func span(name string, v *Time, def Time) number {
	return number{name, func() int64 { return int64(*v) }, func() { *v = def }}
}

// Validate errs on a value below zero and on an unknown policy; the error names the
// field.
func (c Config) Validate() error {
	if c.Policy != "" && !slices.Contains(Policies(), c.Policy) {
		return fmt.Errorf("there is no policy %q: must be one of %s", c.Policy, strings.Join(Policies(), ", "))
	}
	if c.ReaderUploadSlots < 0 {
		return fmt.Errorf("ReaderUploadSlots is %d: must not be below zero", c.ReaderUploadSlots)
	}
	for _, f := range c.numbers() {
		if f.get() < 0 {
			return fmt.Errorf("%s is %d: must not be below zero", f.name, f.get())
		}
	}
	return nil
}

// withDefaults fills in what is zero, or below it.
func (c Config) withDefaults() Config {
	for _, f := range c.numbers() {
		if f.get() <= 0 {
			f.fill()
		}
	}
	if c.Policy == "" {
		c.Policy = Policies()[0]
	}
	return c
}
