package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// faults are the scenarios in which something breaks. Whatever it is, no node may keep
// a byte that is wrong.
func faults() []scenario {
	all := slices.Concat(memberFaults(), liarFaults(), hostileFaults(), diskFaults(), originFaults(), clientFaults())
	for i, s := range all {
		all[i].run = func(ctx context.Context, w *world) error {
			err := s.run(ctx, w)
			if err == nil {
				w.checkStores()
			}
			return err
		}
	}
	return all
}

// halfWay is when most faults happen: half of all that nodes want has come.
const halfWay = 0.5

// sentHalf waits until the origin has sent half of all bytes. Nodes have pieces long
// before their clients do, who get them in order; to the seed and the origin it
// matters what they have sent.
func (w *world) sentHalf(ctx context.Context) error {
	return w.until(ctx, func() error {
		if sent := w.originBytes(); float64(sent) < halfWay*float64(w.uniqueBytes()) {
			return fmt.Errorf("the origin has sent %d of %d bytes", sent, w.uniqueBytes())
		}
		return nil
	})
}

// originBytes is what the origin has sent of blobs.
func (w *world) originBytes() int64 {
	var n int64
	for _, sent := range w.origin.Counts().BlobBytes {
		n += sent
	}
	return n
}

// reachHalf waits until the nodes' links have brought half of all that they want.
func (w *world) reachHalf(ctx context.Context) error {
	before, err := w.received()
	if err != nil {
		return err
	}
	want := halfWay * float64(len(w.cluster.Nodes)) * float64(w.uniqueBytes())
	return w.until(ctx, func() error {
		now, err := w.received()
		if err == nil && float64(now-before) < want {
			err = fmt.Errorf("the links have brought %d of %.0f bytes", now-before, want)
		}
		return err
	})
}

// received is what the links of all nodes have brought.
func (w *world) received() (int64, error) {
	var n int64
	for _, m := range w.cluster.Nodes {
		c, err := w.ports[m.Name].Counters()
		if err != nil {
			return 0, err
		}
		n += c.Received
	}
	return n, nil
}

// during has members' clients pull all images at once, does something when it is time
// for it, and returns when all that is over. Where the pulls end before, the scenario
// fails.
func (w *world) during(ctx context.Context, members []*cluster.Member, isTime, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pulling, over := context.WithCancel(ctx)
	var pulls sync.WaitGroup
	pulls.Go(func() {
		defer over()
		w.flash(ctx, members)
	})
	defer pulls.Wait()
	if err := isTime(pulling); err != nil {
		w.must(ctx.Err() != nil, "nothing broke: the pulls were over before: %v", err)
		return ctx.Err()
	}
	left := w.unfinished()
	w.must(left > 0, "nothing broke in time: all clients had everything")
	w.figure("unfinished_then", float64(left))
	w.event("%s", w.scenario.name)
	if err := do(ctx); err != nil {
		cancel()
		return err
	}
	pulls.Wait()
	return ctx.Err()
}

// unfinished is how many pulls have not got all bytes yet.
func (w *world) unfinished() int {
	n := 0
	for _, p := range w.begun() {
		if p.bytes() < p.image.Native.LayerBytes() {
			n++
		}
	}
	return n
}

// slowest is the longest that a node took for all that it pulled.
func (w *world) slowest() time.Duration {
	var most time.Duration
	for _, m := range w.cluster.Nodes {
		most = max(most, w.nodeTime(m.Name))
	}
	return most
}

// forget takes pulls out of all figures and returns how many they were.
func (w *world) forget(which func(*pull) bool) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := len(w.pulls)
	w.pulls = slices.DeleteFunc(w.pulls, which)
	return before - len(w.pulls)
}

// gauges adds up a gauge or counter of members that run.
func (w *world) gauges(ctx context.Context, members []*cluster.Member, name string, labels ...string) (float64, error) {
	sum := 0.0
	for _, m := range members {
		if !m.Running() {
			continue
		}
		n, err := m.Gauge(ctx, name, labels...)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// checkStores compares what nodes and seeds keep on their disks with what was pushed.
func (w *world) checkStores() {
	w.mu.Lock()
	excused := w.excused
	w.mu.Unlock()
	w.each(slices.Concat(w.cluster.Nodes, w.cluster.Seeds), func(_ int, m *cluster.Member) {
		if excused[m.Name] || !m.Running() {
			return
		}
		for _, wrong := range w.wrongWith(m) {
			w.must(false, "%s", wrong)
		}
	})
}

// wrongWith says what is wrong with a member's store. Where its pulls ended well, it
// must have everything.
func (w *world) wrongWith(m *cluster.Member) []string {
	var out []string
	whole := w.nodeTime(m.Name) > 0
	for _, b := range w.blobs() {
		file, proven := dataFile(m, b)
		if !proven && !whole {
			continue // what is there is a part, and the store knows which
		}
		if content, err := os.ReadFile(file); err != nil {
			out = append(out, fmt.Sprintf("%s was pulled and is not kept by %s: %v", b.Digest, m.Name, err))
		} else if !bytes.Equal(content, b.Data) {
			out = append(out, fmt.Sprintf("%s keeps wrong bytes as %s", m.Name, b.Digest))
		}
	}
	return out
}

// blobs are all layers and configs that nodes want.
func (w *world) blobs() []sample.Blob {
	var out []sample.Blob
	for _, img := range w.images {
		out = append(append(out, img.Native.Config), img.Native.Layers...)
	}
	return out
}

// dataFile is where a member keeps a blob: the layout of pkg/store. A blob that is all
// there gets its own name, that of a proven one, some time later.
func dataFile(m *cluster.Member, b sample.Blob) (file string, proven bool) {
	algorithm, hex, _ := strings.Cut(b.Digest, ":")
	file = filepath.Join(m.DataDir, "store", "v1", algorithm, hex[:2], hex)
	if _, err := os.Stat(file); err != nil {
		return file + ".part", false
	}
	return file, true
}

// pushMore pushes another image of the same layers' sizes beside the origin's link.
func (w *world) pushMore(ctx context.Context, name string) (image, error) {
	img, err := sample.New(fmt.Sprintf("lab %d %s", w.Seed, name), w.layers, sample.OCI)
	if err != nil {
		return image{}, err
	}
	repository := "lab/" + name
	return image{img, repository}, w.origin.Push(ctx, img, repository, tag)
}
