package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/process"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// denial is a node that is denied under load: who attends must hear of it.
type denial struct {
	node  atomic.Pointer[string]
	heard atomic.Int64 // how many have
	last  atomic.Int64 // when the last one did, in nanoseconds since 1970
}

// hear notes what a node is told.
func (d *denial) hear(statements []*damselflyv1.Statement, now time.Time) {
	node := d.node.Load()
	for _, s := range statements {
		if node != nil && s.GetNode() == *node && s.GetDenied() {
			d.heard.Add(1)
			d.last.Store(now.UnixNano())
		}
	}
}

// denialTime is how long a denial may take to be heard by all.
const denialTime = 30 * time.Second

// deny denies a node that nobody knows, and measures from the command's start until the
// last of all streams has heard it.
func (w *world) deny(ctx context.Context, s *scheduler, r *Report) error {
	key, err := identity.LoadOrCreateKey(filepath.Join(s.dir, "outcast"))
	if err != nil {
		return err
	}
	id := key.ID()
	w.denial.node.Store(&id)
	begun := time.Now()
	if _, err := process.Run(ctx, process.Spec{
		Name: "deny", Path: s.program, Dir: s.dir, Args: []string{"node", "deny", id, "--state-dir", filepath.Join(s.dir, "scheduler")},
	}); err != nil {
		return err
	}
	for w.denial.heard.Load() < int64(w.cfg.Streams) {
		if time.Since(begun) > denialTime {
			return fmt.Errorf("%d of %d streams have heard of a denial after %s", w.denial.heard.Load(), w.cfg.Streams, denialTime)
		}
		if !pause(ctx, 10*time.Millisecond) {
			return nil
		}
	}
	r.DenialSeconds = seconds(time.Unix(0, w.denial.last.Load()).Sub(begun))
	return nil
}
