package server

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
	"github.com/damselfly-p2p/damselfly/scheduler/core"
)

// goneKept is how long nodes that have left are listed, mostGone how many.
const (
	goneKept = 24 * time.Hour
	mostGone = 10000
)

// roster is who attends and who did, for operators. It is safe for concurrent use; the
// owner of the state writes it, and waits for nobody there.
type roster struct {
	mu    sync.Mutex
	nodes map[string]entry
	gone  int
}

// entry is one node; stream is nil once it has left.
type entry struct {
	attend *core.Attend
	hello  hello
	stream *stream
	left   time.Time
}

// hello is what a node says of itself that no decision needs.
type hello struct{ host, release string }

func (r *roster) came(a *core.Attend, st *stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.nodes[a.Node]; ok && old.stream == nil {
		r.gone--
	}
	r.nodes[a.Node] = entry{attend: a, hello: st.hello, stream: st}
}

func (r *roster) went(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.nodes[node]
	if !ok || e.stream == nil {
		return
	}
	if r.gone >= mostGone {
		r.prune()
	}
	if r.gone >= mostGone {
		delete(r.nodes, node)
		return
	}
	e.stream, e.left = nil, time.Now()
	r.nodes[node] = e
	r.gone++
}

// prune forgets who left long ago. The caller holds mu.
func (r *roster) prune() {
	for node, e := range r.nodes {
		if e.stream == nil && time.Since(e.left) > goneKept {
			delete(r.nodes, node)
			r.gone--
		}
	}
}

// Nodes implements damselfly.v1.Scheduler. Who may call it is pkg/identity's business.
func (s *Server) Nodes(context.Context, *damselflyv1.NodesRequest) (*damselflyv1.NodesResponse, error) {
	now := s.since()
	out := &damselflyv1.NodesResponse{}
	s.roster.mu.Lock()
	defer s.roster.mu.Unlock()
	s.roster.prune()
	for _, e := range s.roster.nodes {
		a := e.attend
		n := &damselflyv1.NodeInfo{
			Node: a.Node, Seed: a.Seed, Address: a.Address, Host: e.hello.host, Release: e.hello.release,
			Region: a.Region, Zone: a.Zone, Rack: a.Rack, Attends: e.stream != nil,
		}
		seen := time.Since(e.left)
		if e.stream != nil {
			seen = max(e.stream.silent(now), 0)
		}
		n.SeenMillisecondsAgo = uint64(seen.Milliseconds())
		out.Nodes = append(out.Nodes, n)
	}
	slices.SortFunc(out.Nodes, func(a, b *damselflyv1.NodeInfo) int { return cmp.Compare(a.Node, b.Node) })
	return out, nil
}
