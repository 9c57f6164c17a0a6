package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// slice is what a row moves in one round.
type slice struct {
	run blob.Run
	request
}

// task is a row that is measured in rounds.
type task struct {
	name string
	move func(ctx context.Context, s slice) error
	// before makes all ready, and after makes everything as it was. They are not
	// measured; nil does nothing.
	before, after func() error
	// pid is the process of the other end, and heap what it has allocated; nil where
	// that is not asked for.
	pid  int
	heap func() (heap, error)
}

// sample is one round of one row.
type sample struct {
	bytes                int64
	took                 time.Duration
	client, server       time.Duration // CPU
	clientHeap, farsHeap heap
}

// takeTurns measures tasks by turns. The first round warms everything up and does not
// count.
func (b *bench) takeTurns(ctx context.Context, r *report, parts []slice, tasks []task) error {
	if len(tasks) == 0 {
		return nil
	}
	for round, s := range append(parts[:1:1], parts...) {
		for i := range tasks {
			t := tasks[(i+round)%len(tasks)] // none is always behind the same one
			took, err := measure(ctx, t, s)
			if err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if round > 0 {
				r.add(t.name, took)
			}
		}
		if round%8 == 0 {
			b.say("round %d of %d", round, len(parts))
		}
	}
	return nil
}

// measure moves s twice and counts the second time. Where a host takes back memory that
// a virtual machine has not used for a while, each page that is touched anew costs more
// CPU than all the rest of writing it, and who comes first would pay for all. After the
// first time as many pages are at hand as the second needs.
func measure(ctx context.Context, t task, s slice) (m sample, err error) {
	for range 2 {
		if t.before != nil {
			if err := t.before(); err != nil {
				return m, err
			}
		}
		if m, err = count(ctx, t, s); err != nil {
			return m, err
		}
		if t.after != nil {
			if err := t.after(); err != nil {
				return m, err
			}
		}
	}
	return m, nil
}

// count moves s.
func count(ctx context.Context, t task, s slice) (m sample, err error) {
	if t.heap == nil {
		t.heap = func() (heap, error) { return heap{}, nil }
	}
	theirs, err := t.heap()
	if err != nil {
		return m, err
	}
	ours := ownHeap()
	before, err := cpus(t.pid)
	if err != nil {
		return m, err
	}
	start := time.Now()
	if err := t.move(ctx, s); err != nil {
		return m, err
	}
	m.took = time.Since(start)
	after, err := cpus(t.pid)
	if err != nil {
		return m, err
	}
	m.bytes, m.client, m.server = s.Bytes, after[0]-before[0], after[1]-before[1]
	m.clientHeap = ownHeap().since(ours)
	now, err := t.heap()
	m.farsHeap = now.since(theirs)
	return m, err
}

// cpus are the clocks of both ends.
func cpus(pid int) (both [2]time.Duration, err error) {
	if both[0], err = cpu(os.Getpid()); err != nil {
		return both, err
	}
	both[1], err = cpu(pid)
	return both, err
}
