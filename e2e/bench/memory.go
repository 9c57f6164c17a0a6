package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/pkg/config"
)

const (
	// idleTime is how long a node does nothing before it counts as idle.
	idleTime = 5 * time.Second
	// digEvery is how often room is given back of layers that are being stored, and
	// digFrom what a layer may take of the disk until then.
	digEvery = time.Second
	digFrom  = 1 << 30
)

// manyLayers is how many layers are pulled at once.
const manyLayers = 8

// memory measures that of a node: idle, while it pulls many layers from an origin,
// or from a seed, and one that is large.
func (b *bench) memory(ctx context.Context, r *report) error {
	if !b.wants(rowMemory) {
		return nil
	}
	many, large := b.layers[1:1+manyLayers], b.layers[1+manyLayers:]
	size := config.Bytes(many[0].size).String()
	steps := []struct {
		name   string
		seeds  int
		layers []layer
		bar    float64 // MiB
	}{
		{"idle", 0, nil, 64},
		{"8 layers of " + size + " from the origin", 0, many, 256},
		{"8 layers of " + size + " from a seed", 1, many, 256},
	}
	for _, l := range large {
		steps = append(steps, struct {
			name   string
			seeds  int
			layers []layer
			bar    float64
		}{"one layer of " + config.Bytes(l.size).String() + " from the origin", 0, large, 256})
	}
	for _, s := range steps {
		peak, err := b.peak(ctx, s.seeds, s.layers)
		if err != nil {
			return fmt.Errorf("memory, %s: %w", s.name, err)
		}
		r.RSS[s.name] = float64(peak) / (1 << 20)
		r.most("RSS in MiB, "+s.name, r.RSS[s.name], s.bar)
		b.say("memory, %s: %.0f MiB", s.name, r.RSS[s.name])
	}
	return nil
}

// peak starts a node of its own and returns the most memory that it has while it pulls
// layers, or what it has when it was idle for a while.
func (b *bench) peak(ctx context.Context, seeds int, layers []layer) (bytes int64, err error) {
	c, err := b.nodes(ctx, seeds)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.end(c)) }()
	node := c.Nodes[0]
	if len(layers) == 0 {
		select {
		case <-time.After(idleTime):
			return processMemory(node.ProcessID(), "VmRSS")
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return dig(ctx, filepath.Join(b.dir, "cluster"), layers) })
	g.Go(func() (err error) {
		defer cancel()
		bytes, err = pullAll(ctx, node, layers)
		return err
	})
	err = g.Wait()
	return bytes, err
}

// pullAll pulls layers through a node at once and returns the most memory that it
// had meanwhile, in bytes.
func pullAll(ctx context.Context, node *cluster.Member, layers []layer) (peak int64, err error) {
	// 5 sets the peak to what is used now, see proc_pid_clear_refs(5).
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", node.ProcessID()), []byte("5"), 0); err != nil {
		return 0, err
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range layers {
		g.Go(func() error { return get(ctx, client, through(node, "blobs/"+string(l.digest)), l.size) })
	}
	if err := g.Wait(); err != nil {
		return 0, fmt.Errorf("%w\n%s", err, node.Log(10))
	}
	return processMemory(node.ProcessID(), "VmHWM")
}

// processMemory is a line of /proc/PID/status, in bytes.
func processMemory(pid int, name string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kib int64
		if _, err := fmt.Sscanf(line, name+": %d kB", &kib); err == nil {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no %s", pid, name)
}

// dig gives the disk back, until ctx ends, what large layers take below dir: all of it
// is zeros, which a file need not store. A node that reads it sees no difference.
func dig(ctx context.Context, dir string, layers []layer) error {
	tick := time.NewTicker(digEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, l := range layers {
			if err := digOne(dir, l); err != nil {
				return err
			}
		}
	}
}

func digOne(dir string, l layer) error {
	_, hex, _ := strings.Cut(string(l.digest), ":")
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has another name since
		}
		if err != nil || !e.Type().IsRegular() || !strings.HasPrefix(e.Name(), hex) || strings.Contains(e.Name(), "meta") {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		taken, ok := info.Sys().(*syscall.Stat_t)
		if !ok || taken.Blocks*512 < digFrom {
			return nil
		}
		if n := min(info.Size(), l.size-tail) &^ (1<<20 - 1); n > 0 {
			err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, n)
		}
		return err
	})
}
