package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config says what load to make.
type Config struct {
	Streams, Seeds, Swarm int
	Rate, Pulling         int
	Pieces, Blobs, Slots  int
	Warm, For             time.Duration
	Ending                bool
	Sample                int
	Scheduler, Dir        string
	Trace                 string
	Profile, LoadProfile  string
	LogLevel              string
	Procs                 int
}

func (c Config) nodes() int { return c.Streams - c.Seeds }

// validate fills in what was left open and says what cannot be.
func (c *Config) validate() error {
	if c.Seeds == 0 {
		c.Seeds = max(c.Streams/50, 1)
	}
	if c.Streams < 2 || c.Seeds < 1 || c.nodes() < 1 {
		return fmt.Errorf("--streams %d with --seeds %d: want one seed and one node at least", c.Streams, c.Seeds)
	}
	switch {
	case c.Pulling == 0 && c.nodes() < 1000:
		c.Pulling = c.nodes()
	case c.Pulling == 0:
		c.Pulling = c.nodes() / 5
	}
	if c.Pulling > c.nodes() {
		return fmt.Errorf("--pulling %d: there are %d nodes", c.Pulling, c.nodes())
	}
	for name, v := range map[string]int{"pulling": c.Pulling, "rate": c.Rate, "swarm": c.Swarm, "pieces": c.Pieces, "blobs": c.Blobs, "slots": c.Slots, "sample": c.Sample} {
		if v < 1 {
			return fmt.Errorf("--%s %d: must be above zero", name, v)
		}
	}
	if c.For <= 0 || c.Warm < 0 {
		return fmt.Errorf("--for %s and --warm %s: must not be below zero", c.For, c.Warm)
	}
	return nil
}

// run makes the load and measures. It ends what it started, whatever happens.
func run(ctx context.Context, cfg Config, say io.Writer) (r *Report, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := needFiles(cfg.Streams); err != nil {
		return nil, err
	}
	dir := cfg.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "damselfly-load-"); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	program := cfg.Scheduler
	if program == "" {
		program = filepath.Join(dir, "bin", "scheduler")
		fmt.Fprintln(say, "building the scheduler")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/damselfly-p2p/damselfly/scheduler").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building the scheduler: %w\n%s", err, out)
		}
	}
	if program, err = filepath.Abs(program); err != nil {
		return nil, err
	}
	s, err := startScheduler(ctx, program, dir, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if stopped := s.stop(); stopped != nil {
			err = errors.Join(err, fmt.Errorf("%w\n%s", stopped, s.log()))
		}
	}()
	return measure(ctx, s, dir, cfg, say)
}

// needFiles raises the limit of open files to what the streams need.
func needFiles(streams int) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	want := uint64(streams + 256)
	if l.Cur >= want {
		return nil
	}
	l.Cur, l.Max = want, max(l.Max, want)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("%d streams need %d open files: %w; raise the limit with 'ulimit -n %d'", streams, want, err, want)
	}
	return nil
}

// measure joins, attends, makes load, and looks at what comes of it.
func measure(ctx context.Context, s *scheduler, dir string, cfg Config, say io.Writer) (*Report, error) {
	w, err := newWorld(cfg)
	if err != nil {
		return nil, err
	}
	r := &Report{Streams: cfg.Streams, Seeds: cfg.Seeds, Pulling: cfg.Pulling, Swarms: len(w.groups), Pieces: cfg.Pieces, WantedRate: cfg.Rate}
	started := time.Now()
	ids, err := joinAll(ctx, s, dir, cfg)
	if err != nil {
		return nil, fmt.Errorf("joining: %w\n%s", err, s.log())
	}
	r.JoinSeconds = seconds(time.Since(started))
	fmt.Fprintf(say, "%d identities joined in %.1f s\n", len(ids), r.JoinSeconds)
	started = time.Now()
	nodes, err := attendAll(ctx, w, s, ids)
	if err != nil {
		return nil, fmt.Errorf("attending: %w\n%s", err, s.log())
	}
	r.AttendSeconds = seconds(time.Since(started))
	fmt.Fprintf(say, "%d streams attend after %.1f s\n", len(nodes), r.AttendSeconds)

	work, stop := context.WithCancel(ctx)
	defer stop()
	g, work := errgroup.WithContext(work)
	for _, n := range nodes {
		g.Go(func() error {
			if err := n.run(work); err != nil {
				w.counts.lost.Add(1)
				return fmt.Errorf("a stream broke: %w\n%s", err, s.log())
			}
			return nil
		})
	}
	g.Go(func() error { w.watch(work, nodes); return nil })
	g.Go(func() error { w.control(work); return nil })
	g.Go(func() error {
		defer stop()
		w.begin(work, nodes)
		fmt.Fprintf(say, "warming up for %s, then measuring for %s\n", cfg.Warm, cfg.For)
		if !pause(work, cfg.Warm) {
			return nil
		}
		if err := w.window(work, s, r); err != nil || work.Err() != nil {
			return err
		}
		return w.deny(work, s, r)
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return r, ctx.Err()
}

// pause waits; false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// begin has the nodes want their first blobs: spread over a time, as nodes of a
// cluster are never quite at once.
func (w *world) begin(ctx context.Context, nodes []*node) {
	over := min(time.Second+w.cfg.Warm/4, 5*time.Second)
	const steps = 50
	for step := range steps {
		for i := step; i < len(nodes); i += steps {
			for range w.cfg.Blobs {
				if nodes[i].group != nil {
					nodes[i].wantMore()
				}
			}
		}
		if !pause(ctx, over/steps) {
			return
		}
	}
}

// watch pings for the nodes that wait, and notices those whom the scheduler lets
// wait too long.
func (w *world) watch(ctx context.Context, nodes []*node) {
	// In many small steps: real nodes do not ping in step with each other.
	const slices = 150 // of pingBusy
	lost := map[*node]bool{}
	tick := time.NewTicker(pingBusy / slices)
	defer tick.Stop()
	for i := 0; ; i++ {
		var now time.Time
		select {
		case <-ctx.Done():
			return
		case now = <-tick.C:
		}
		for j := i % slices; j < len(nodes); j += slices {
			n := nodes[j]
			if is := n.look(now); is != lost[n] {
				lost[n] = is
				if is {
					w.counts.silences.Add(1)
				}
			}
		}
	}
}

// control steers the rate.
func (w *world) control(ctx context.Context) {
	const every = 500 * time.Millisecond
	last, at := w.counts.leases.Load(), time.Now()
	for pause(ctx, every) {
		n, now := w.counts.leases.Load(), time.Now()
		w.steer(n-last, now.Sub(at))
		last, at = n, now
	}
}
