package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
)

// liarFaults are those of nodes that misbehave towards others: an eighth of all, and
// two at least where there are four.
func liarFaults() []scenario {
	return []scenario{
		{
			name: "wrong-bytes", what: "an eighth of the nodes, or two, send wrong bytes", prepare: withLiars,
			before: liars(func(int, *world) []string { return []string{"--lie", "wrong-bytes"} }), run: wrongBytes,
		},
		{
			name: "missing", what: "so many say that they have what they have not", prepare: withLiars,
			before: liars(func(i int, w *world) []string {
				args := []string{"--lie", "missing", "--claim", []string{"pieces", "sealed"}[i%2]}
				for n := range w.layers {
					args = append(args, "--blob", about(w.images[0], n))
				}
				return args
			}), run: pullAmongLiars,
		},
		{
			name: "trickle", what: "so many send a byte a second", prepare: withLiars,
			before: liars(func(int, *world) []string { return []string{"--lie", "trickle"} }), run: pullAmongLiars,
		},
	}
}

// hostileFaults have one node of all want the largest layer first, and do harm with what
// it is leased: with the seeds of the options, and without any.
func hostileFaults() []scenario {
	var out []scenario
	for _, want := range []string{"silent", "forge", "accuse", "hoard", "flood"} {
		for _, seeded := range []bool{true, false} {
			s := scenario{
				name: "hostile-" + want, what: "one node wants everything first (e2e/rogue --want " + want + ")",
				prepare: func(o *options) {
					o.liars, o.Nodes = 1, o.Nodes-1
					if !seeded {
						o.Seeds = 0
					}
				},
				before: liars(func(_ int, w *world) []string {
					args := []string{"--lie", "hang", "--want", want}
					for n := range w.layers {
						args = append(args, "--blob", about(w.images[0], n))
					}
					return args
				}),
				run: func(ctx context.Context, w *world) error {
					w.flash(ctx, w.cluster.Nodes)
					return ctx.Err()
				},
			}
			if !seeded {
				s.name, s.what = s.name+"-no-seed", s.what+", and there is no seed"
			}
			out = append(out, s)
		}
	}
	return out
}

// withLiars takes the liars out of the nodes.
func withLiars(o *options) {
	o.liars = o.Nodes / 8
	if o.Nodes >= 4 {
		o.liars = max(o.liars, 2)
	}
	o.liars = max(o.liars, 1)
	o.Nodes -= o.liars
}

// liars starts the liars, with the flags of each.
func liars(args func(i int, w *world) []string) func(context.Context, *world) error {
	return func(ctx context.Context, w *world) error {
		for i := range w.liars {
			name := fmt.Sprintf("%s%d", cluster.Node, w.Nodes+1+i)
			if _, err := w.startRogue(ctx, name, args(i, w)...); err != nil {
				return err
			}
			w.excuse(name)
		}
		w.note("%d further nodes lie", w.liars)
		return nil
	}
}

// pullAmongLiars has all nodes pull while liars that are nodes in full pull as well,
// and checks that each of them lied.
func pullAmongLiars(ctx context.Context, w *world) error {
	pulling, over := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if !slices.Contains([]string{"missing"}, w.scenario.name) { // these have no mirror
			w.flash(pulling, w.guestMembers())
		}
	}()
	w.flash(ctx, w.cluster.Nodes)
	over()
	<-done
	for _, m := range w.guestMembers() {
		lies, err := m.Gauge(ctx, "rogue_lies_total")
		if err != nil {
			return err
		}
		w.must(lies > 0, "nobody asked %s, which would have lied", m.Name)
		w.figure("lies_of_"+m.Name, lies)
	}
	return ctx.Err()
}

// wrongBytes wants all liars shut out. A scheduler may count them a moment after the
// last pull.
func wrongBytes(ctx context.Context, w *world) error {
	if err := pullAmongLiars(ctx, w); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := w.until(ctx, func() error {
		n, err := w.gauges(ctx, w.cluster.Schedulers, "damselfly_peers", "state", "quarantined")
		if err == nil && int(n) != w.liars {
			err = fmt.Errorf("%v nodes are quarantined, want the %d liars", n, w.liars)
		}
		return err
	})
	if err != nil {
		w.must(false, "%v", err)
	}
	return nil
}
