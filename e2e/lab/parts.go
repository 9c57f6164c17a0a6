package main

import (
	"context"
	"slices"
)

// This file alone lists what a run can be made of.

// scenarios are all there are.
func scenarios() []scenario { return append(shapes(), faults()...) }

// side is another way of pulling, to be measured beside Damselfly over the same links:
// all nodes pull all images of the world at once.
type side struct {
	name, what string
	// prepare makes the machine ready before anything starts; nil needs nothing. root
	// is the repository.
	prepare func(ctx context.Context, root string) error
	// measure is called when the scenario is over. The cluster still runs, and has
	// nothing to do.
	measure func(ctx context.Context, w *world) (Side, error)
}

// sides are all there are.
func sides() []side { return []side{direct(), cache()} }

func findSide(name string) (side, bool) {
	all := sides()
	i := slices.IndexFunc(all, func(s side) bool { return s.name == name })
	if i < 0 {
		return side{}, false
	}
	return all[i], true
}
