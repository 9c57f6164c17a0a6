package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// Cache is what operators do with a node's store: on the store itself, or through a
// CacheClient on that of a node that runs. It is safe for concurrent use.
type Cache struct {
	store   *store.Store
	dir     string
	metrics prometheus.Gatherer // nil: a store that no node uses
}

// StoreDir is where a node with that dataDir keeps its store.
func StoreDir(dataDir string) string { return filepath.Join(dataDir, "store") }

// NewCache returns a Cache of s, which is in dir. metrics are the node's; nil where
// none uses the store.
func NewCache(s *store.Store, dir string, metrics prometheus.Gatherer) *Cache {
	return &Cache{store: s, dir: dir, metrics: metrics}
}

// CacheState is all that a store tells about itself.
type CacheState struct {
	Dir      string             `json:"dir"`
	Daemon   bool               `json:"daemon"`      // a node runs with it
	Bytes    int64              `json:"bytes"`       // of all blobs that are not shared, each counted whole
	Shared   int64              `json:"sharedBytes"` // of blobs that a runtime keeps too
	Held     int64              `json:"heldBytes"`
	MaxBytes int64              `json:"maxBytes"` // 0: no limit
	Disk     CacheDisk          `json:"disk"`
	Scrub    CacheScrub         `json:"scrub"`
	Counters map[string]float64 `json:"counters,omitempty"` // of the node since its start, see counted
	Blobs    []CacheBlob        `json:"blobs"`
}

// CacheDisk is the file system that the store is on.
type CacheDisk struct {
	Bytes      int64 `json:"bytes"`
	Free       int64 `json:"freeBytes"`
	Inodes     int64 `json:"inodes"` // 0: made as they are needed
	FreeInodes int64 `json:"freeInodes"`
}

// CacheScrub is how far the background proof is.
type CacheScrub struct {
	Began *time.Time `json:"began,omitempty"`
	Ended *time.Time `json:"ended,omitempty"`
}

// CacheBlob is one blob of a store.
type CacheBlob struct {
	Digest  blob.Digest `json:"digest"`
	Size    int64       `json:"size"`
	Held    int64       `json:"heldBytes"` // of pieces that are held, or were found on disk
	Whole   bool        `json:"whole"`
	Pinned  bool        `json:"pinned"`
	InUse   bool        `json:"inUse"`
	Shared  bool        `json:"shared"` // a runtime keeps the same bytes; they cost nothing here
	LastUse time.Time   `json:"lastUse"`
}

// CacheResult is what became of one blob.
type CacheResult struct {
	Digest blob.Digest `json:"digest"`
	Bytes  int64       `json:"bytes,omitempty"`  // read, or given free
	Pieces int         `json:"pieces,omitempty"` // read
	Rotten int         `json:"rotten,omitempty"` // of them; they were given up
	Error  string      `json:"error,omitempty"`
	// Kind tells errors apart: see the constants.
	Kind string `json:"kind,omitempty"`
}

// Kinds of a CacheResult's error.
const (
	CacheInUse   = "in-use"
	CacheNotHeld = "not-held"
	CacheFailed  = "failed"
)

// counted are the families of a node's metrics that State shows, all counters.
func counted() map[string]bool {
	return map[string]bool{
		"damselfly_pulls_total": true, "damselfly_pull_bytes_total": true, "damselfly_peer_sent_bytes_total": true,
		"damselfly_cache_evictions_total": true, "damselfly_cache_refused_total": true,
		"damselfly_cache_rotten_pieces_total": true, "damselfly_cache_scrubbed_bytes_total": true,
	}
}

// State tells what is in the store, and what it is in.
func (c *Cache) State(context.Context) (CacheState, error) {
	disk, err := c.store.Disk()
	if err != nil {
		return CacheState{}, err
	}
	scrub := c.store.Scrub()
	st := CacheState{
		Dir: c.dir, Daemon: c.metrics != nil, MaxBytes: c.store.Limit(), Blobs: []CacheBlob{},
		Disk:  CacheDisk{disk.Bytes, disk.Free, disk.Files, disk.FreeFiles},
		Scrub: CacheScrub{known(scrub.Began), known(scrub.Ended)},
	}
	for _, i := range c.blobs() {
		b := CacheBlob{Digest: i.Digest, Size: i.Size, Whole: i.Sealed, Pinned: i.Pinned, InUse: i.InUse, Shared: i.Shared, LastUse: i.LastUse}
		if b.Held = i.Size; !i.Sealed {
			layout, err := blob.NewLayout(i.Size)
			if err != nil {
				return CacheState{}, err
			}
			b.Held = min(i.Size, int64(i.Held+i.Claimed)*layout.PieceLength())
		}
		if i.Shared {
			st.Shared += b.Size
		} else {
			st.Bytes += b.Size
		}
		st.Held += b.Held
		st.Blobs = append(st.Blobs, b)
	}
	if c.metrics != nil {
		st.Counters, err = gatherCounters(c.metrics)
	}
	return st, err
}

// blobs lists what is held, and what was found of blobs that nobody has used since
// the store was opened.
func (c *Cache) blobs() []store.Info {
	for _, i := range c.store.Blobs() {
		if !i.Sealed && i.Held+i.Claimed == 0 {
			if b, ok := c.store.Peek(i.Digest); ok {
				b.Release()
			}
		}
	}
	return c.store.Blobs()
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// gatherCounters reads the counters to be shown, by name and, behind a slash, label.
func gatherCounters(from prometheus.Gatherer) (map[string]float64, error) {
	families, err := from.Gather()
	if err != nil {
		return nil, fmt.Errorf("gather the node's figures: %w", err)
	}
	out, shown := map[string]float64{}, counted()
	for _, f := range families {
		if !shown[f.GetName()] {
			continue
		}
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "/" + l.GetValue()
			}
			out[name] = m.GetCounter().GetValue()
		}
	}
	return out, nil
}

// Remove deletes blobs, pinned ones too; those in use only by force, which ends who
// reads them. What became of each is in the results, in the order of digests.
func (c *Cache) Remove(ctx context.Context, digests []blob.Digest, force bool) ([]CacheResult, error) {
	sizes := map[blob.Digest]int64{}
	for _, i := range c.store.Blobs() {
		sizes[i.Digest] = i.Size
	}
	remove := c.store.Discard
	if force {
		remove = c.store.Remove
	}
	return each(ctx, digests, func(r *CacheResult) error {
		err := remove(r.Digest)
		if err == nil {
			r.Bytes = sizes[r.Digest]
		}
		return err
	})
}

// SetPinned pins blobs, so that they are never evicted, or takes that back.
func (c *Cache) SetPinned(ctx context.Context, digests []blob.Digest, pinned bool) ([]CacheResult, error) {
	pin := c.store.Unpin
	if pinned {
		pin = c.store.Pin
	}
	return each(ctx, digests, func(r *CacheResult) error { return pin(r.Digest) })
}

// Verify reads and proves all that is held of blobs. told hears of each one as it is
// done.
func (c *Cache) Verify(ctx context.Context, digests []blob.Digest, told func(CacheResult) error) error {
	for _, d := range digests {
		r := CacheResult{Digest: d}
		proof, err := c.store.Prove(ctx, d)
		r.Bytes, r.Pieces, r.Rotten = proof.Bytes, proof.Pieces, proof.Rotten
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.fail(err)
		if err := told(r); err != nil {
			return err
		}
	}
	return nil
}

func each(ctx context.Context, digests []blob.Digest, do func(*CacheResult) error) ([]CacheResult, error) {
	results := make([]CacheResult, len(digests))
	for i, d := range digests {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		results[i].Digest = d
		results[i].fail(do(&results[i]))
	}
	return results, nil
}

func (r *CacheResult) fail(err error) {
	if err == nil {
		return
	}
	r.Error = err.Error()
	switch {
	case errors.Is(err, store.ErrInUse):
		r.Kind = CacheInUse
	case errors.Is(err, store.ErrNotHeld):
		r.Kind = CacheNotHeld
	default:
		r.Kind = CacheFailed
	}
}
