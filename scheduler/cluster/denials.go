package cluster

import (
	"context"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
)

const (
	// lookEvery is how soon a change of the kept list is seen that another process of
	// this machine has made.
	lookEvery = time.Second
	// settled is how old a change must be for another one not to have the same time.
	settled = 2 * time.Second
	// atOnce bounds the statements that are kept at a time: each is synced to disk,
	// and commands wait meanwhile.
	atOnce = 64
)

// follow keeps what other schedulers say of denied nodes, and tells them what is said
// here, until ctx ends.
func (c *Cluster) follow(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	// What is kept from before goes to others when this scheduler joins them.
	c.read()
	for {
		select {
		case <-ctx.Done():
			return nil
		case statements := <-c.heard:
			c.keep(ctx, statements)
		case now := <-look.C:
			c.look(now)
		}
	}
}

// look reads the kept list where it has changed, and broadcasts what is new in it.
func (c *Cluster) look(now time.Time) {
	changed, err := c.cfg.Denials.StatementsChanged()
	if err == nil && changed.Equal(c.seen) {
		return
	}
	for _, s := range c.read() {
		c.broadcast(s)
	}
	if err == nil && now.Sub(changed) > settled {
		c.seen = changed
	}
}

// read makes the kept list known, and returns what was news in it.
func (c *Cluster) read() []identity.Statement {
	statements, err := c.cfg.Denials.Statements()
	if err != nil {
		c.log.Error("the list of denied nodes cannot be read, and is not told to other schedulers", zap.Error(err))
		return nil
	}
	news := c.news(statements)
	denials := make(map[string]identity.Statement, len(statements))
	for _, s := range statements {
		denials[s.ID] = s
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.denials = denials
	return news
}

// keep has statements of others kept, and passes on those that were news.
func (c *Cluster) keep(ctx context.Context, statements []identity.Statement) {
	for len(statements) > 0 && ctx.Err() == nil {
		n := min(len(statements), atOnce)
		news, err := c.cfg.Denials.Accept(statements[:n])
		statements = statements[n:]
		if err != nil {
			c.drop("statements")
			c.log.Error("what another scheduler says of denied nodes cannot be kept", zap.Error(err))
		}
		for _, s := range c.adopt(news) {
			c.log.Info("heard of a node from another scheduler", zap.String("node", s.ID), zap.Bool("denied", s.Denied), zap.Time("said", s.At))
			c.broadcast(s)
		}
	}
}

// news are those of the statements that are not known here yet.
func (c *Cluster) news(statements []identity.Statement) []identity.Statement {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []identity.Statement
	for _, s := range statements {
		if known, ok := c.denials[s.ID]; !ok || s.Replaces(known) {
			out = append(out, s)
		}
	}
	return out
}

// adopt makes what is kept known, and returns what was news.
func (c *Cluster) adopt(kept []identity.Statement) []identity.Statement {
	news := c.news(kept)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range news {
		c.denials[s.ID] = s
	}
	return news
}

func (c *Cluster) broadcast(s identity.Statement) { c.queue.QueueBroadcast(said{s}) }

// said is a statement on its way to everybody.
type said struct{ identity.Statement }

// Name implements memberlist.NamedBroadcast: of a node only the newest goes out.
func (s said) Name() string { return s.ID }

// Invalidates implements memberlist.Broadcast.
func (s said) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(said)
	return ok && o.ID == s.ID
}

// Message implements memberlist.Broadcast.
func (s said) Message() []byte { return encodeStatements([]identity.Statement{s.Statement}) }

// Finished implements memberlist.Broadcast.
func (s said) Finished() {}
