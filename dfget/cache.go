package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/node"
	"github.com/damselfly-p2p/damselfly/pkg/store"
)

const cacheLong = `cache shows and changes the blobs that the node of this machine keeps: manifests,
configs and layers, each named by its digest.

It asks the daemon that runs, and works on the directory itself when none does.
The directory is that of the daemon's configuration, or that of --data-dir, which
names a seed's as well. Only the user that the daemon runs as, and root, may use it.

A DIGEST is sha256:… or as many of its first digits as no other blob has.`

// caches is a node's cache: node.Cache, or node.CacheClient when a daemon runs.
type caches interface {
	State(ctx context.Context) (node.CacheState, error)
	Remove(ctx context.Context, digests []blob.Digest, force bool) ([]node.CacheResult, error)
	SetPinned(ctx context.Context, digests []blob.Digest, pinned bool) ([]node.CacheResult, error)
	Verify(ctx context.Context, digests []blob.Digest, told func(node.CacheResult) error) error
}

// cacheOptions are the flags of every cache command.
type cacheOptions struct {
	dataDir string
	json    bool
}

// noStoreError: there is nothing to work on, or no right to.
type noStoreError struct {
	err  error
	hint string
}

func (e *noStoreError) Error() string { return e.err.Error() }
func (e *noStoreError) Unwrap() error { return e.err }

func newCacheCommand(p *process) *cobra.Command {
	c := &cobra.Command{
		Use:   "cache",
		Short: "Show, check, pin and remove what the node of this machine keeps",
		Long:  cacheLong,
		Example: `  dfget cache ls
  dfget cache rm --unpinned
  dfget cache verify && echo all is well`,
		Args: knownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	o := &cacheOptions{}
	c.PersistentFlags().StringVar(&o.dataDir, "data-dir", "", "the node's directory (environment DAMSELFLY_DATA_DIR; default that of "+nodeFile+", or "+node.DefaultConfig().DataDir+")")
	c.PersistentFlags().BoolVar(&o.json, "json", false, "print JSON")
	c.AddCommand(newCacheList(p, o), newCacheStats(p, o), newCacheRemove(p, o), newCachePin(p, o, true), newCachePin(p, o, false), newCacheVerify(p, o))
	return c
}

// with opens the cache for the time of do.
func (o *cacheOptions) with(ctx context.Context, p *process, do func(caches) error) (err error) {
	dir, err := o.dir(p)
	if err != nil {
		return err
	}
	client, err := node.DialCache(ctx, dir)
	switch {
	case err == nil:
		return errors.Join(do(client), client.Close())
	case errors.Is(err, fs.ErrPermission):
		return &noStoreError{err, "run this as root, or as the user that the daemon runs as"}
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED):
		return err
	}
	s, err := openStore(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return do(node.NewCache(s, node.StoreDir(dir), nil))
}

// dir is the node's directory.
func (o *cacheOptions) dir(p *process) (string, error) {
	if o.dataDir != "" {
		return o.dataDir, nil
	}
	cfg := node.DefaultConfig()
	env := []string{}
	for _, name := range []string{"DAMSELFLY_DATA_DIR", "DAMSELFLY_CONFIG"} {
		if v := p.Env(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	if _, err := config.Load(&cfg, config.Options{DefaultFile: nodeFile, Env: env}); err != nil {
		return "", &usageError{err: err, hint: "name the node's directory by --data-dir"}
	}
	return cfg.DataDir, nil
}

// openStore opens the store of a node that does not run. It makes none, and leaves
// one alone that belongs to another user: files of this one would be in its way.
func openStore(dataDir string) (*store.Store, error) {
	dir := node.StoreDir(dataDir)
	info, err := os.Stat(filepath.Join(dir, "lock"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &noStoreError{fmt.Errorf("no node keeps anything in %s: %w", dataDir, err), "name the node's directory by --data-dir; a node that never ran has none"}
	case errors.Is(err, fs.ErrPermission):
		return nil, &noStoreError{err, "run this as root, or as the user that the daemon runs as"}
	case err != nil:
		return nil, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return nil, &noStoreError{
			fmt.Errorf("no daemon runs, and %s belongs to user %d: files that this one makes would be in its way", dir, st.Uid),
			fmt.Sprintf("start the daemon, or run this as that user: sudo -u '#%d' dfget cache …", st.Uid),
		}
	}
	s, err := store.Open(store.Config{Dir: dir}, nil)
	if errors.Is(err, store.ErrLocked) {
		return nil, &noStoreError{err, "the daemon that runs with it does not answer: it is starting, stopping, or of an older release; try again, or stop it"}
	}
	return s, err
}
