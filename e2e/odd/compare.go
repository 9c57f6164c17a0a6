package odd

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// Margin is how much longer than directly a pull may take through a node.
const Margin = 500 * time.Millisecond

// slowMargin is that of behaviours with long waits, which are judged once.
const slowMargin = 3 * time.Second

// Verdict is how one client fared at one behaviour.
type Verdict struct {
	Behaviour, Client string
	// Worse says what is worse through the node, once for each; empty: nothing is.
	// Late tells that it is nothing but time.
	Worse []string
	Late  bool
	// Kept tells that the second pull cost the origin no byte of blobs. It means
	// something where Pulled tells that the second pull brought all.
	Pulled, Kept bool
	// Node is what the registry was asked by both pulls through the node.
	Node Counts

	extra time.Duration // the most that an answer or a pull took longer
}

// job is one client at one behaviour.
type job struct {
	registry  *Registry
	behaviour *Behaviour
	client    client
	// cold are where it pulls first, warm where it pulls then.
	cold, warm Faces
}

// atOnce is how many pulls run at a time, for most of them only wait. Those that time
// is told of run with fewer others.
const (
	atOnce      = 64
	atOnceTimed = 8
)

// Judge has every client pull from every behaviour of the server: directly, through a
// node, and once more through the same or another one.
func Judge(ctx context.Context, s *Server, cold, warm Faces) ([]Verdict, error) {
	var jobs []job
	for _, r := range s.Registries {
		for _, b := range r.order {
			for _, c := range clients() {
				if !b.without(c) {
					jobs = append(jobs, job{r, b, c, cold, warm})
				}
			}
		}
	}
	out := make([]Verdict, len(jobs))
	if err := each(atOnce, len(jobs), func(i int) (err error) {
		margin := Margin
		if jobs[i].behaviour.Patience > 0 {
			margin = slowMargin
		}
		out[i], err = jobs[i].judge(ctx, "1", margin)
		return err
	}); err != nil {
		return nil, err
	}
	return out, each(atOnceTimed, len(jobs), func(i int) error {
		return jobs[i].again(ctx, s, &out[i])
	})
}

func each(limit, n int, do func(i int) error) error {
	var group errgroup.Group
	group.SetLimit(limit)
	for i := range n {
		group.Go(func() error { return do(i) })
	}
	return group.Wait()
}

// without tells that the client does not pull from the behaviour.
func (b *Behaviour) without(c client) bool {
	return b.Clients != nil && !slices.Contains(b.Clients, c.name) ||
		c.name == "stranger" && (b.Auth.Scheme == "" || b.Auth.Public)
}

// again judges anew what was late, for the machine may have been busy: what a healthy
// registry costs at the same time is granted.
func (j job) again(ctx context.Context, s *Server, v *Verdict) error {
	if j.behaviour.Patience > 0 {
		return nil // what takes minutes is not taken for a busy machine's
	}
	for run := 2; run <= 3 && v.Late; run++ {
		name := fmt.Sprint(run)
		healthy := j
		healthy.registry, healthy.behaviour = s.control, s.control.only
		control, err := healthy.judge(ctx, j.behaviour.Name+name, Margin)
		if err != nil {
			return err
		}
		if *v, err = j.judge(ctx, name, Margin+max(control.extra, 0)); err != nil {
			return err
		}
	}
	return nil
}

// judge has the client pull. margin is how much longer it may take through the node.
func (j job) judge(ctx context.Context, run string, margin time.Duration) (Verdict, error) {
	r, b, c := j.registry, j.behaviour, j.client
	v := Verdict{Behaviour: b.Name, Client: c.name, Late: true}
	name := b.Name + "/" + c.name + run
	defer r.forget(name)
	face := c.face(j.cold)
	var direct, cold []outcome
	var group errgroup.Group
	group.Go(func() (err error) { direct, err = pull(ctx, j.cold.Direct, r, b, name+"-direct", c); return err })
	group.Go(func() (err error) {
		if c.name == "stranger" { // somebody else pulls first
			if _, err = pull(ctx, face, r, b, name+"-node", clients()[0]); err != nil {
				return err
			}
		}
		cold, err = pull(ctx, face, r, b, name+"-node", c)
		return err
	})
	if err := group.Wait(); err != nil {
		return v, err
	}
	before := r.Counts(name + "-node")
	warm, err := pull(ctx, c.face(j.warm), r, b, name+"-node", c)
	if err != nil {
		return v, err
	}
	v.Node = r.Counts(name + "-node")
	v.Pulled, v.Kept = allRight(warm), v.Node.BlobBytes == before.BlobBytes
	for _, pass := range []struct {
		name     string
		outcomes []outcome
	}{{"cold", cold}, {"warm", warm}} {
		for _, f := range faults(direct, pass.outcomes, c) {
			v.extra = max(v.extra, f.extra)
			if f.extra == 0 || f.extra > margin {
				v.Worse = append(v.Worse, pass.name+" by "+face.Name+": "+f.text)
				v.Late = v.Late && f.extra > 0
			}
		}
	}
	v.Late = v.Late && len(v.Worse) > 0
	return v, nil
}

// pull runs a client once; visits of others go first.
func pull(ctx context.Context, face Face, r *Registry, b *Behaviour, repository string, c client) ([]outcome, error) {
	for _, visit := range b.Before {
		name := repository
		if visit.Repository != "" {
			name = b.Name + "/" + visit.Repository + "-" + face.Name + "-" + c.name
		}
		s, err := newSession(face, r, b, name)
		if err != nil {
			return nil, err
		}
		if visit.User != "" {
			s.authorization = basic(visit.User)
		}
		if visit.Layer {
			s.get(ctx, "visit", false, s.repo.layers[len(s.repo.layers)-1].digest, nil)
		} else {
			s.get(ctx, "visit", true, tag, acceptHeader(acceptAll))
		}
		s.close()
	}
	s, err := newSession(face, r, b, repository)
	if err != nil {
		return nil, err
	}
	defer s.close()
	c.run(s, ctx)
	return s.outcomes, nil
}

func basic(user string) string {
	req := http.Request{Header: http.Header{}}
	req.SetBasicAuth(user, "any")
	return req.Header.Get("Authorization")
}

func allRight(outcomes []outcome) bool {
	return !slices.ContainsFunc(outcomes, func(o outcome) bool { return !o.right })
}

func total(outcomes []outcome) (d time.Duration) {
	for _, o := range outcomes {
		d += o.took
	}
	return d
}

// fault is one thing that is worse. Where it is time alone, extra is how much.
type fault struct {
	text  string
	extra time.Duration
}

// faults is what was worse through a node than directly.
func faults(direct, node []outcome, c client) (out []fault) {
	if !c.list {
		return worsePull(direct, node)
	}
	for i, d := range direct {
		if i < len(node) {
			out = append(out, worseAnswer(d, node[i], c.name == "stranger")...)
		}
	}
	return out
}

func worsePull(direct, node []outcome) []fault {
	last, reached := node[len(node)-1], direct[len(direct)-1]
	if !allRight(direct) {
		if last.cut && !reached.cut && reached.status >= 400 && last.what == reached.what {
			return []fault{{text: fmt.Sprintf("%s; directly %s", last, reached)}}
		}
		return nil
	}
	if !allRight(node) {
		return []fault{{last.String(), hung(last, reached)}}
	}
	for i, d := range direct {
		if i < len(node) && d.typed && d.what == node[i].what && !node[i].typed {
			return []fault{{text: untyped(node[i])}}
		}
	}
	if d, n := total(direct), total(node); n > d {
		return []fault{{fmt.Sprintf("LATE %.2f s, directly %.2f s", n.Seconds(), d.Seconds()), n - d}}
	}
	return nil
}

func untyped(o outcome) string {
	return fmt.Sprintf("%s as %q, which directly has its media type", o, o.header.Get("Content-Type"))
}

// hung is how much longer a request took than another that did not hang; 0 where it
// did not hang either.
func hung(n, d outcome) time.Duration {
	if !n.late {
		return 0
	}
	return n.took - d.took
}

func worseAnswer(d, n outcome, stranger bool) []fault {
	both := fmt.Sprintf("%s; directly %s", n, d)
	switch {
	case stranger:
		if n.status == http.StatusOK && d.status != http.StatusOK {
			return []fault{{text: "LEAK " + both}}
		}
		return nil
	case n.cut && !d.cut && d.status >= 400, d.right && !n.right:
		return []fault{{both, hung(n, d)}}
	case !d.right:
		return nil
	case d.typed && !n.typed && n.status == http.StatusOK:
		return []fault{{text: untyped(n)}}
	case d.status == http.StatusPartialContent && n.status != d.status:
		return []fault{{text: both}}
	case n.took > d.took:
		return []fault{{"LATE " + both, n.took - d.took}}
	}
	return nil
}
