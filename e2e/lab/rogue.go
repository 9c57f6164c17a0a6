package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// startRogue starts a node that misbehaves (e2e/rogue) behind a link like others', and
// waits until it attends. args are its flags beside --config. It is none of the
// cluster's nodes: nobody pulls through it unless the scenario does, and it ends with
// the world. Its metrics tell how often it lied: rogue_lies_total.
func (w *world) startRogue(ctx context.Context, name string, args ...string) (*cluster.Member, error) {
	m, err := w.newMember(name, cluster.Node)
	if err != nil {
		return nil, err
	}
	p, err := process.Start(process.Spec{
		Name: name, Path: w.programs.rogue, Args: append([]string{"--config", m.File}, args...), Dir: m.Dir, Netns: w.port(name).Path(),
	})
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.rogues = append(w.rogues, p)
	w.mu.Unlock()
	return m, p.Ready(ctx, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.Ops+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := m.Client().Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s is not ready: %s", name, resp.Status)
		}
		return nil
	})
}

// about is how a rogue is told of a layer (its --blob).
func about(img image, layer int) string {
	l := img.Native.Layers[layer]
	return fmt.Sprintf("%s,%d,%s,%s", l.Digest, l.Size(), registryName, img.repository)
}
