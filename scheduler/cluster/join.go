package cluster

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

const (
	// seekSoon and seekEvery are between two tries to reach schedulers that are not in
	// the set: while this one is alone or has lost one within justLost, and else. So the
	// order of start does not matter, one that starts again is back at once, and the two
	// sides of a partition that is over find each other.
	seekSoon  = time.Second
	seekEvery = 5 * time.Second
	justLost  = time.Minute
	// forgetAfter is how long one that was lost is looked for at its last address.
	forgetAfter = 24 * time.Hour
	// complainFirst and complainMost are between two complaints that this scheduler is
	// alone; each pause is ten times as long as the one before.
	complainFirst = time.Minute
	complainMost  = time.Hour
	seekTogether  = 8
	lookupLimit   = 5 * time.Second
)

// joiner is memberlist.Memberlist.
type joiner interface {
	Join(addresses []string) (int, error)
}

// seek looks for schedulers that are not in the set, until ctx ends.
func (c *Cluster) seek(ctx context.Context, list *memberlist.Memberlist) error {
	var sought time.Time
	var alone complaint
	for {
		// Looked at each seekSoon: a wait begun before one was lost would last too long.
		if c.size() == 1 || c.hasJustLost() || time.Since(sought) >= seekEvery-seekSoon {
			sought = time.Now()
			err := c.seekOnce(ctx, list)
			if ctx.Err() != nil {
				return nil
			}
			c.complain(&alone, err)
		}
		if c.mustRetell() {
			_ = list.UpdateNode(seekSoon) // who has not heard it then is told at the next exchange
		}
		timer := time.NewTimer(time.Duration((0.5 + rand.Float64()/2) * float64(seekSoon)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// complaint is when that was said last, and the pause before it is said again.
type complaint struct {
	said time.Time
	wait time.Duration
}

// complain says now and then that this scheduler is alone though it was told to join
// others; err is why they were not reached, nil where the addresses lead to itself.
func (c *Cluster) complain(last *complaint, err error) {
	if c.size() > 1 {
		*last = complaint{}
		return
	}
	if len(c.cfg.Join) == 0 || time.Since(last.said) < last.wait {
		return
	}
	last.said, last.wait = time.Now(), min(max(10*last.wait, complainFirst), complainMost)
	fields := []zap.Field{zap.Strings("join", c.cfg.Join), zap.String("own", c.GossipAddress())}
	if err != nil {
		c.log.Warn("no other scheduler can be reached; trying on, and serving alone meanwhile", append(fields, zap.Error(err))...)
		return
	}
	c.log.Warn("the addresses in --join lead to this scheduler itself and to no other, so it serves alone; name the gossip address of another scheduler", fields...)
}

// seekOnce tries everybody who is not in the set. It errs when nobody was reached.
func (c *Cluster) seekOnce(ctx context.Context, list joiner) error {
	addresses, err := c.resolve(ctx)
	addresses = c.missing(addresses)
	errs := make([]error, len(addresses))
	var g errgroup.Group
	g.SetLimit(seekTogether)
	for i, address := range addresses {
		g.Go(func() error {
			if ctx.Err() == nil {
				_, errs[i] = list.Join([]string{address})
			}
			return nil
		})
	}
	_ = g.Wait() // its functions return nil
	if slices.Contains(errs, nil) {
		return nil
	}
	return errors.Join(err, errors.Join(errs...))
}

// mustRetell tells, once, that what this scheduler says of itself has changed.
func (c *Cluster) mustRetell() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	must := c.retell
	c.retell = false
	return must
}

func (c *Cluster) hasJustLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lost {
		if time.Since(l.at) < justLost {
			return true
		}
	}
	return false
}

// resolve is the ip:port of each address of Join; the error joins those of names
// that have none.
func (c *Cluster) resolve(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	var out []string
	var errs []error
	for _, address := range c.cfg.Join {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, ip := range found {
			out = append(out, net.JoinHostPort(ip.Unmap().String(), port))
		}
	}
	return out, errors.Join(errs...)
}

// missing are those of the addresses, and of those that members were lost at, that
// belong to no member.
func (c *Cluster) missing(addresses []string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, l := range c.lost {
		if time.Since(l.at) > forgetAfter {
			delete(c.lost, id)
			continue
		}
		addresses = append(addresses, l.gossip)
	}
	slices.Sort(addresses)
	addresses = slices.Compact(addresses)
	addresses = addresses[:min(len(addresses), 2*maxMembers)]
	return slices.DeleteFunc(addresses, func(address string) bool {
		if address == c.gossip {
			return true
		}
		for _, p := range c.members {
			if p.gossip == address {
				return true
			}
		}
		return false
	})
}
