package main

import (
	"context"
	"slices"
	"sync"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
)

// clientFaults are those of clients, and of the machine that a node is on.
func clientFaults() []scenario {
	return []scenario{
		{name: "aborts", what: "the clients of half of the nodes go away half way, and pull again when the others are done", run: aborts},
		{
			name: "clock", what: "the clocks of two nodes jump half way, one an hour ahead, one an hour back", prepare: withLiars,
			before: ownClocks, run: clocks,
		},
	}
}

// aborts has the others pull on as if nothing had happened; who went away gets the
// rest later.
func aborts(ctx context.Context, w *world) error {
	leaving := w.some(max(1, len(w.cluster.Nodes)/2))
	var staying []*cluster.Member
	for _, m := range w.cluster.Nodes {
		if !named(leaving, m.Name) {
			staying = append(staying, m)
		}
	}
	going, leave := context.WithCancel(ctx)
	defer leave()
	var left sync.WaitGroup
	left.Go(func() { w.flash(going, leaving) })
	err := w.during(ctx, staying, w.reachHalf, func(context.Context) error {
		leave()
		left.Wait()
		return nil
	})
	if err != nil {
		return err
	}
	left.Wait()
	gone := w.forget(func(p *pull) bool { return p.err != nil && going.Err() != nil && named(leaving, p.node) })
	w.must(gone > 0, "no client went away in the midst of its pull")
	w.figure("aborted", float64(gone))
	w.figure("staying_ratio", over(w.slowestBut(leaving), w.bound()))
	w.flash(ctx, leaving)
	return ctx.Err()
}

func named(members []*cluster.Member, name string) bool {
	return slices.ContainsFunc(members, func(m *cluster.Member) bool { return m.Name == name })
}
