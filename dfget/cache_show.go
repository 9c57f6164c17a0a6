package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/damselfly-p2p/damselfly/dfget/progress"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/node"
)

// shortHex is how many digits of a digest people are shown.
const shortHex = 12

func newCacheList(p *process, o *cacheOptions) *cobra.Command {
	var quiet, whole bool
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List blobs, the last used first",
		Long: `ls lists what the node keeps, the last used first.

HELD is how much of the blob is here. STATE is whole or part, and pinned, in use, or
shared: a runtime on the same disk keeps the same bytes, so that they cost nothing.
With --json it prints a list of objects with digest, size, heldBytes, whole, pinned,
inUse, shared and lastUse.`,
		Example: `  dfget cache ls
  dfget cache ls --json | jq -r '.[] | select(.size > 1e9) | .digest'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd.Context(), p, func(c caches) error {
				st, err := c.State(cmd.Context())
				if err != nil {
					return err
				}
				slices.SortStableFunc(st.Blobs, func(a, b node.CacheBlob) int {
					return cmp.Or(b.LastUse.Compare(a.LastUse), cmp.Compare(a.Digest, b.Digest))
				})
				switch {
				case o.json:
					return encodeJSON(p.Out, st.Blobs)
				case quiet:
					for _, b := range st.Blobs {
						fmt.Fprintln(p.Out, b.Digest)
					}
					return nil
				}
				return listBlobs(p.Out, st.Blobs, whole, time.Now())
			})
		},
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print digests only, in full")
	c.Flags().BoolVar(&whole, "no-trunc", false, "print digests in full")
	return c
}

func listBlobs(w io.Writer, blobs []node.CacheBlob, full bool, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "DIGEST\tSIZE\tHELD\tSTATE\tLAST USED")
	for _, b := range blobs {
		name := short(b.Digest)
		if full {
			name = b.Digest.String()
		}
		state := []string{"part"}
		if b.Whole {
			state[0] = "whole"
		}
		if b.Pinned {
			state = append(state, "pinned")
		}
		if b.InUse {
			state = append(state, "in use")
		}
		if b.Shared {
			state = append(state, "shared")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", name, progress.Bytes(b.Size), percent(b.Held, b.Size), strings.Join(state, ", "), ago(now.Sub(b.LastUse)))
	}
	return t.Flush()
}

func short(d blob.Digest) string { return d.Algorithm() + ":" + d.Hex()[:shortHex] }

// percent is part of all, and says 100 only when that is all.
func percent(part, all int64) string {
	if all <= 0 || part >= all {
		return "100 %"
	}
	return fmt.Sprintf("%d %%", min(99, int64(100*float64(part)/float64(all))))
}

// ago is a time that has passed, in the largest unit that it has two of.
func ago(d time.Duration) string {
	for _, u := range []struct {
		of   time.Duration
		name string
	}{{24 * time.Hour, "days"}, {time.Hour, "hours"}, {time.Minute, "minutes"}, {time.Second, "seconds"}} {
		if n := d / u.of; n >= 2 {
			return fmt.Sprintf("%d %s ago", n, u.name)
		}
	}
	return "now"
}

// cacheStats is what "dfget cache stats --json" prints.
type cacheStats struct {
	Dir      string             `json:"dir"`
	Daemon   bool               `json:"daemon"`
	Blobs    int                `json:"blobs"`
	Whole    int                `json:"whole"`
	Pinned   int                `json:"pinned"`
	InUse    int                `json:"inUse"`
	Bytes    int64              `json:"bytes"`
	Shared   int64              `json:"sharedBytes"`
	Held     int64              `json:"heldBytes"`
	Free     int64              `json:"evictableBytes"`
	MaxBytes int64              `json:"maxBytes"`
	Disk     node.CacheDisk     `json:"disk"`
	Scrub    node.CacheScrub    `json:"scrub"`
	Counters map[string]float64 `json:"counters,omitempty"`
}

func newCacheStats(p *process, o *cacheOptions) *cobra.Command {
	return &cobra.Command{
		Use:     "stats",
		Aliases: []string{"df"},
		Short:   "Sum up what is kept, and what the disk has",
		Long: `stats sums up what the node keeps and what its disk has left.

Of a daemon that runs it also shows what its clients found in the cache, where bytes
came from, and what was evicted, since the daemon started.`,
		Example: `  dfget cache stats
  dfget cache stats --json | jq .disk.freeBytes`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.with(cmd.Context(), p, func(c caches) error {
				st, err := c.State(cmd.Context())
				if err != nil {
					return err
				}
				sums := sumUp(st)
				if o.json {
					return encodeJSON(p.Out, sums)
				}
				return sums.print(p.Out, time.Now())
			})
		},
	}
}

func sumUp(st node.CacheState) cacheStats {
	s := cacheStats{
		Dir: st.Dir, Daemon: st.Daemon, Blobs: len(st.Blobs), Bytes: st.Bytes, Shared: st.Shared, Held: st.Held, MaxBytes: st.MaxBytes,
		Disk: st.Disk, Scrub: st.Scrub, Counters: st.Counters,
	}
	for _, b := range st.Blobs {
		if b.Whole {
			s.Whole++
		}
		if b.Pinned {
			s.Pinned++
		}
		if b.InUse {
			s.InUse++
		}
		if !b.Pinned && !b.InUse && !b.Shared {
			s.Free += b.Size
		}
	}
	return s
}

func (s cacheStats) print(w io.Writer, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	who := "no daemon runs"
	if s.Daemon {
		who = "a daemon runs"
	}
	limit := ""
	if s.MaxBytes > 0 {
		limit = fmt.Sprintf(", %s of the limit of %s", percent(s.Bytes, s.MaxBytes), progress.Bytes(s.MaxBytes))
	}
	row("Store", "%s, %s", s.Dir, who)
	row("Blobs", "%d: %d whole, %d in part; %d pinned, %d in use", s.Blobs, s.Whole, s.Blobs-s.Whole, s.Pinned, s.InUse)
	row("Room", "%s set aside%s; %s can be evicted", progress.Bytes(s.Bytes), limit, progress.Bytes(s.Free))
	row("Held", "%s, of which a runtime keeps %s as well", progress.Bytes(s.Held), progress.Bytes(s.Shared))
	inodes := ""
	if s.Disk.Inodes > 0 {
		inodes = fmt.Sprintf("; %s of its inodes", percent(s.Disk.FreeInodes, s.Disk.Inodes))
	}
	row("Disk", "%s free of %s, %s%s", progress.Bytes(s.Disk.Free), progress.Bytes(s.Disk.Bytes), percent(s.Disk.Free, s.Disk.Bytes), inodes)
	if s.Daemon {
		s.printCounters(row, now)
	}
	return t.Flush()
}

func (s cacheStats) printCounters(row func(name, format string, args ...any), now time.Time) {
	n := func(name string) int64 { return int64(s.Counters[name]) }
	hits, misses := n("damselfly_pulls_total/hit"), n("damselfly_pulls_total/miss")
	row("Pulls", "%d found here, %d not: %s", hits, misses, hitRate(hits, misses))
	row("Came from", "origin %s, seeds %s, other nodes %s", progress.Bytes(n("damselfly_pull_bytes_total/origin")),
		progress.Bytes(n("damselfly_pull_bytes_total/seed")), progress.Bytes(n("damselfly_pull_bytes_total/peer")))
	row("Went to", "other nodes %s", progress.Bytes(n("damselfly_peer_sent_bytes_total")))
	row("Evicted", "%d for the limit, %d for the disk, %d for their age; %d found no room",
		n("damselfly_cache_evictions_total/limit"), n("damselfly_cache_evictions_total/full")+n("damselfly_cache_evictions_total/low"),
		n("damselfly_cache_evictions_total/age"), n("damselfly_cache_refused_total"))
	pass := "no pass yet"
	switch {
	case s.Scrub.Ended != nil:
		pass = "all was proven " + ago(now.Sub(*s.Scrub.Ended))
	case s.Scrub.Began != nil:
		pass = "this pass began " + ago(now.Sub(*s.Scrub.Began))
	}
	row("Scrub", "%s; %s read, %d rotten pieces found", pass, progress.Bytes(n("damselfly_cache_scrubbed_bytes_total")), n("damselfly_cache_rotten_pieces_total"))
}

func hitRate(hits, misses int64) string {
	if hits+misses == 0 {
		return "none yet"
	}
	return percent(hits, hits+misses) + " hits"
}

// blobsOf is State for those who need nothing but the blobs.
func blobsOf(ctx context.Context, c caches) ([]node.CacheBlob, error) {
	st, err := c.State(ctx)
	return st.Blobs, err
}
