package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// diskFaults are those of nodes' disks.
func diskFaults() []scenario {
	return []scenario{
		{name: "full-disk", what: "two nodes have room for a quarter of the image", prepare: withLiars, before: smallDisks, run: fullDisk},
		{name: "corrupt-store", what: "a quarter of the nodes have the image, in which bytes changed on their disks", before: rot, run: corruptStore},
	}
}

// smallDisks starts the last nodes on disks of their own, which end with them.
func smallDisks(ctx context.Context, w *world) error {
	size := max(w.uniqueBytes()/4, 4<<20)
	for i := range w.liars {
		name := fmt.Sprintf("%s%d", cluster.Node, w.Nodes+1+i)
		if _, err := w.startGuest(ctx, name, func(m *cluster.Member, s *process.Spec) {
			s.Mounts = []string{fmt.Sprintf("mkdir -p '%s' && mount -t tmpfs -o size=%d tmpfs '%s'", m.DataDir, size, m.DataDir)}
		}); err != nil {
			return err
		}
	}
	w.note("%d further nodes have a disk of %.0f MiB each; their failures count, their times do not", w.liars, float64(size)/(1<<20))
	return nil
}

// fullDisk has everybody pull, and watches the small disks.
func fullDisk(ctx context.Context, w *world) error {
	watching, stop := context.WithCancel(ctx)
	least := make([]float64, len(w.guests))
	var watch sync.WaitGroup
	for i, g := range w.guests {
		watch.Go(func() { least[i] = leastFree(watching, g) })
	}
	w.flash(ctx, slices.Concat(w.cluster.Nodes, w.guestMembers()))
	stop()
	watch.Wait()
	var slow time.Duration
	for i, g := range w.guests {
		// store.keepFree of it, 10 % by default and a little more, is not taken.
		w.must(least[i] < 0.15, "the disk of %s never was full: %.0f %% were free", g.member.Name, 100*least[i])
		slow = max(slow, w.nodeTime(g.member.Name))
	}
	w.figure("full_ratio", over(slow, w.bound()))
	return ctx.Err()
}

// leastFree is the smallest part of a guest's disk that was free until ctx ended.
func leastFree(ctx context.Context, g guest) float64 {
	least := 1.0
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var disk unix.Statfs_t
		// The guest's mounts are seen through its process alone.
		if err := unix.Statfs(fmt.Sprintf("/proc/%d/root%s", g.process.ID(), g.member.DataDir), &disk); err == nil && disk.Blocks > 0 {
			least = min(least, float64(disk.Bavail)/float64(disk.Blocks))
		}
		select {
		case <-ctx.Done():
			return least
		case <-tick.C:
		}
	}
}

// rot has some nodes pull and changes a byte in each MiB of what they keep.
func rot(ctx context.Context, w *world) error {
	rotten := w.cluster.Nodes[:max(1, len(w.cluster.Nodes)/4)]
	w.flash(ctx, rotten)
	for _, m := range rotten {
		for _, b := range w.images[0].Native.Layers {
			file, _ := dataFile(m, b)
			if err := flip(file); err != nil {
				return err
			}
		}
	}
	return nil
}

// flip changes a byte in each MiB of a file.
func flip(file string) error {
	const step = 1 << 20
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	for at := int64(step / 2); at < info.Size(); at += step {
		if _, err := f.ReadAt(b, at); err != nil {
			return err
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b, at); err != nil {
			return err
		}
	}
	return nil
}

// corruptStore has everybody pull: who has no image reads from those whose disks
// rotted, and these serve their own clients. Those that had bad luck try once more.
func corruptStore(ctx context.Context, w *world) error {
	w.flash(ctx, w.cluster.Nodes)
	again := slices.DeleteFunc(slices.Clone(w.cluster.Nodes), func(m *cluster.Member) bool { return w.nodeTime(m.Name) > 0 })
	w.flash(ctx, again)
	bad, err := w.gauges(ctx, w.cluster.Schedulers, "damselfly_peers", "state", "quarantined")
	w.figure("quarantined", bad)
	w.figure("rotten", float64(max(1, len(w.cluster.Nodes)/4)))
	return errors.Join(err, ctx.Err())
}
