package main

import (
	"context"
	"fmt"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// guest is a node beside the cluster's own, which a scenario starts in a way of its
// own. It stands behind a link like others', none of the figures are about it, and it
// ends with the world.
type guest struct {
	member  *cluster.Member
	process *process.Process
}

// startGuest starts a node as dfget daemon, or as alter changes that, and waits until
// it attends.
func (w *world) startGuest(ctx context.Context, name string, alter func(*cluster.Member, *process.Spec)) (guest, error) {
	m, err := w.newMember(name, cluster.Node)
	if err != nil {
		return guest{}, err
	}
	spec := process.Spec{
		Name: name, Path: m.Program(), Args: []string{"daemon", "--config", m.File}, Dir: m.Dir, Netns: w.port(name).Path(),
	}
	alter(m, &spec)
	p, err := process.Start(spec)
	if err != nil {
		return guest{}, err
	}
	g := guest{m, p}
	w.lives.Lock()
	w.guests = append(w.guests, g)
	w.lives.Unlock()
	ready := process.AnswersBy(m.Client(), "http://"+m.Ops+"/readyz?strict")
	return g, p.Ready(ctx, ready)
}

// startRogue starts a node that misbehaves (e2e/rogue). args are its flags beside
// --config. Nobody pulls through it unless the scenario does. Its metrics tell how
// often it lied: rogue_lies_total.
func (w *world) startRogue(ctx context.Context, name string, args ...string) (guest, error) {
	return w.startGuest(ctx, name, func(m *cluster.Member, s *process.Spec) {
		s.Path, s.Args = w.programs.rogue, append([]string{"--config", m.File}, args...)
	})
}

// guestMembers are the members of all guests.
func (w *world) guestMembers() []*cluster.Member {
	w.lives.Lock()
	defer w.lives.Unlock()
	var out []*cluster.Member
	for _, g := range w.guests {
		out = append(out, g.member)
	}
	return out
}

// about is how a rogue is told of a layer (its --blob).
func about(img image, layer int) string {
	l := img.Native.Layers[layer]
	return fmt.Sprintf("%s,%d,%s,%s", l.Digest, l.Size(), registryName, img.repository)
}
