package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/damselfly-p2p/damselfly/dfget/progress"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/node"
)

// notHeldError: the node has no blob of that name.
type notHeldError struct{ name string }

func (e *notHeldError) Error() string { return fmt.Sprintf("%s: the node has no such blob", e.name) }

func newCacheRemove(p *process, o *cacheOptions) *cobra.Command {
	var all, unpinned, force bool
	c := &cobra.Command{
		Use:     "rm DIGEST...",
		Aliases: []string{"remove"},
		Short:   "Remove blobs",
		Long: `rm removes blobs from the node: those that are named, --all, or all that are
--unpinned. Whoever wants one afterwards fetches it again.

A blob that somebody reads or fetches stays, and the exit code is 1; --force removes
it all the same, and cuts off who reads it. A pin keeps a blob from eviction and from
--unpinned, not from its name nor from --all.`,
		Example: `  dfget cache rm sha256:0a1b2c
  dfget cache rm --unpinned
  dfget cache rm --all --force`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if n := len(args); all && unpinned || n > 0 && (all || unpinned) {
				return usagef("name blobs, or give --all or --unpinned, and only one of these")
			} else if n == 0 && !all && !unpinned {
				return &usageError{err: errors.New("no blob is named"), hint: "name some (dfget cache ls), or give --all or --unpinned"}
			}
			return o.with(cmd.Context(), p, func(c caches) error {
				blobs, err := blobsOf(cmd.Context(), c)
				if err != nil {
					return err
				}
				chosen := make([]blob.Digest, 0, len(blobs))
				for _, b := range blobs {
					if all || unpinned && !b.Pinned {
						chosen = append(chosen, b.Digest)
					}
				}
				if len(args) > 0 {
					if chosen, err = resolve(blobs, args); err != nil {
						return err
					}
				}
				results, err := c.Remove(cmd.Context(), chosen, force)
				if err != nil {
					return err
				}
				return o.report(p, results, removed)
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "remove every blob, pinned ones too")
	c.Flags().BoolVar(&unpinned, "unpinned", false, "remove every blob that is not pinned")
	c.Flags().BoolVar(&force, "force", false, "remove blobs that are in use, too")
	return c
}

// removed is the last line of rm.
func removed(done []node.CacheResult) string {
	var bytes int64
	for _, r := range done {
		bytes += r.Bytes
	}
	return fmt.Sprintf("removed %s, %s", count(len(done), "blob"), progress.Bytes(bytes))
}

func newCachePin(p *process, o *cacheOptions, pin bool) *cobra.Command {
	use, what := "pin", "Keep blobs from being evicted"
	long := "pin keeps blobs until they are unpinned or removed by hand, also after a restart of\nthe daemon. What is pinned counts against the store's limit."
	if !pin {
		use, what = "unpin", "Let blobs be evicted again"
		long = "unpin takes back what pin did: the blobs go when room is needed."
	}
	return &cobra.Command{
		Use: use + " DIGEST...", Short: what, Long: long,
		Example: "  dfget cache " + use + " sha256:0a1b2c",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{err: errors.New("no blob is named"), hint: "name some; dfget cache ls shows them"}
			}
			return o.with(cmd.Context(), p, func(c caches) error {
				blobs, err := blobsOf(cmd.Context(), c)
				if err != nil {
					return err
				}
				chosen, err := resolve(blobs, args)
				if err != nil {
					return err
				}
				results, err := c.SetPinned(cmd.Context(), chosen, pin)
				if err != nil {
					return err
				}
				return o.report(p, results, func(done []node.CacheResult) string { return use + "ned " + count(len(done), "blob") })
			})
		},
	}
}

func newCacheVerify(p *process, o *cacheOptions) *cobra.Command {
	return &cobra.Command{
		Use:   "verify [DIGEST...]",
		Short: "Read blobs and prove every piece of them",
		Long: `verify reads what the node keeps, or the blobs that are named, and proves every
piece against the blob's digest. Rotten pieces are given up at once, so that nobody
is served them; the node fetches them again when they are wanted.

The exit code is 1 when anything was rotten or could not be read.`,
		Example: `  dfget cache verify
  dfget cache verify sha256:0a1b2c
  dfget cache verify --json | jq '.[] | select(.rotten > 0)'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.with(cmd.Context(), p, func(c caches) error {
				blobs, err := blobsOf(cmd.Context(), c)
				if err != nil {
					return err
				}
				chosen := make([]blob.Digest, 0, len(blobs))
				for _, b := range blobs {
					chosen = append(chosen, b.Digest)
				}
				if len(args) > 0 {
					if chosen, err = resolve(blobs, args); err != nil {
						return err
					}
				}
				results := make([]node.CacheResult, 0, len(chosen))
				err = c.Verify(cmd.Context(), chosen, func(r node.CacheResult) error {
					if r.Kind == node.CacheNotHeld && len(args) == 0 {
						return nil // evicted while others were read
					}
					results = append(results, r)
					return nil
				})
				if err != nil {
					return err
				}
				return o.report(p, results, verified)
			})
		},
	}
}

// verified is the last line of verify.
func verified(done []node.CacheResult) string {
	var bytes int64
	rotten := 0
	for _, r := range done {
		bytes += r.Bytes
		if r.Rotten > 0 {
			rotten++
		}
	}
	return fmt.Sprintf("proved %s, %s: %d with rot", count(len(done), "blob"), progress.Bytes(bytes), rotten)
}

// report prints what became of the blobs, and the last line of those that went
// well. What went wrong, or was rotten, is an error that has been told.
func (o *cacheOptions) report(p *process, results []node.CacheResult, last func(done []node.CacheResult) string) error {
	var bad error
	done := make([]node.CacheResult, 0, len(results))
	for _, r := range results {
		if r.Error == "" {
			done = append(done, r)
		}
		if r.Error != "" || r.Rotten > 0 {
			bad = &toldError{exitOther}
		}
	}
	if o.json {
		return errors.Join(encodeJSON(p.Out, results), bad)
	}
	for _, r := range results {
		switch {
		case r.Kind == node.CacheInUse:
			fmt.Fprintf(p.Err, "dfget: %s: somebody reads or fetches it\n  try again later, or cut them off by --force\n", short(r.Digest))
		case r.Error != "":
			fmt.Fprintf(p.Err, "dfget: %s: %s\n", short(r.Digest), r.Error)
		case r.Rotten > 0:
			fmt.Fprintf(p.Out, "%s: %d of %s rotten; given up, to be fetched again when wanted\n", r.Digest, r.Rotten, count(r.Pieces, "piece"))
		}
	}
	_, err := fmt.Fprintln(p.Out, last(done))
	return errors.Join(err, bad)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// resolve finds the blobs that people name, each once.
func resolve(blobs []node.CacheBlob, names []string) ([]blob.Digest, error) {
	var found []blob.Digest
	for _, name := range names {
		algorithm, hex, given := strings.Cut(strings.ToLower(name), ":")
		if !given {
			algorithm, hex = "", algorithm
		}
		if hex == "" || strings.Trim(hex, "0123456789abcdef") != "" {
			return nil, &usageError{err: fmt.Errorf("%q names no blob", name), hint: "want sha256:… or its first digits, as dfget cache ls shows them"}
		}
		var matches []blob.Digest
		for _, b := range blobs {
			if (algorithm == "" || b.Digest.Algorithm() == algorithm) && strings.HasPrefix(b.Digest.Hex(), hex) {
				matches = append(matches, b.Digest)
			}
		}
		switch {
		case len(matches) == 0:
			return nil, &notHeldError{name}
		case len(matches) > 1:
			return nil, &usageError{err: fmt.Errorf("%q begins the names of %d blobs", name, len(matches)), hint: "give more digits of it, such as " + matches[0].String()}
		case !slices.Contains(found, matches[0]):
			found = append(found, matches[0])
		}
	}
	return found, nil
}
