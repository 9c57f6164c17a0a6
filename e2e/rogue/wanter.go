package main

import (
	"context"
	crand "crypto/rand"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// What a rogue without a node wants, as --want names it.
const (
	wantSilent = "silent"
	wantForge  = "forge"
	wantAccuse = "accuse"
	wantHoard  = "hoard"
	wantFlood  = "flood"
)

// wanter attends the schedulers, wants what the rogue is told of before anybody else
// does, and carries out no lease.
type wanter struct {
	set     *control.Set
	blobs   map[blob.Digest]*fiction
	want    string
	counts  counts
	log     *zap.Logger
	accused int // accusations made; of Handle's goroutine
}

// tellWants wants every blob that the scheduler concerned looks after.
func (w *wanter) tellWants(those func(blob.Digest) bool) {
	for d, f := range w.blobs {
		if !those(d) {
			continue
		}
		w.set.Tell(control.Want{Digest: d, Size: f.layout.Size(), Origin: &damselflyv1.Origin{
			Kind: damselflyv1.Origin_KIND_BLOB, Registry: f.registry, Repository: f.repository,
		}})
		w.counts.claims.Inc()
	}
}

// Handle implements control.Handler.
func (w *wanter) Handle(d control.Decision) {
	switch d := d.(type) {
	case control.Joined:
		w.tellWants(d.Concerns)
	case control.Lease:
		w.leased(d)
	case control.Refuse, control.Revoke:
		if w.want != wantSilent {
			w.tellWants(func(blob.Digest) bool { return true })
		}
	}
}

// leased misbehaves with a lease.
func (w *wanter) leased(l control.Lease) {
	w.log.Info("leased", zap.Bool("origin", l.Holder == nil), zap.Int("first", l.Run.First), zap.Int("pieces", l.Run.Count))
	w.counts.lies.Inc()
	switch f := w.blobs[l.Digest]; {
	case w.want == wantForge && l.Holder == nil && f != nil:
		links := make([]byte, l.Digest.LinkSize()*(f.layout.Pieces()-1))
		_, _ = crand.Read(links) // never fails
		w.set.Tell(control.Have{Digest: l.Digest, Size: f.layout.Size(), Runs: []blob.Run{f.layout.All()}, FirstLink: 1, Links: links})
	case w.want == wantAccuse:
		w.accuse(l)
	}
}

// accuse blames whoever the lease is from, each time of something else.
func (w *wanter) accuse(l control.Lease) {
	w.accused++
	reason := damselflyv1.Failed_REASON_BAD_DIGEST
	if l.Holder != nil {
		reason = []damselflyv1.Failed_Reason{
			damselflyv1.Failed_REASON_BAD_PIECE, damselflyv1.Failed_REASON_UNREACHABLE, damselflyv1.Failed_REASON_MISSING,
		}[w.accused%3]
	}
	w.set.Tell(control.Failed{Lease: l.ID, Reason: reason})
}

// flood says as much as the stream takes of blobs that nobody else knows, until ctx
// ends.
func (w *wanter) flood(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for range 200 {
			var some [32]byte
			_, _ = crand.Read(some[:]) // never fails
			d := blob.FromBytes(some[:])
			w.set.Tell(control.Have{Digest: d, Size: 1 << 30, Runs: []blob.Run{{First: 0, Count: 1 << 10}}})
			w.set.Tell(control.Want{Digest: d, Size: 1 << 30})
			w.set.Tell(control.Failed{Lease: uint64(some[0]), Reason: damselflyv1.Failed_REASON_BAD_PIECE})
			w.set.Tell(control.Unwant{Digest: d})
			w.set.Tell(control.Drop{Digest: d})
		}
		w.counts.lies.Inc()
	}
}

// run attends until ctx ends.
func (w *wanter) run(ctx context.Context) error {
	if w.want == wantFlood {
		go w.flood(ctx)
	}
	return w.set.Run(ctx, w)
}
