package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/pkg/identity"
)

// joiners is how many identities join at once: a scheduler takes eight.
const joiners = 6

// attenders is how many streams are opened at once.
const attenders = 64

// joinAll gives every node and seed an identity of its own, each in a directory
// below dir: joined with a token, or what an earlier run has left there.
func joinAll(ctx context.Context, s *scheduler, dir string, cfg Config) (ids []*identity.Identity, err error) {
	seedToken, err := s.token(ctx, "seed", cfg.Seeds)
	if err != nil {
		return nil, err
	}
	nodeToken, err := s.token(ctx, "node", cfg.nodes())
	if err != nil {
		return nil, err
	}
	ids = make([]*identity.Identity, cfg.Streams)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range joiners {
		g.Go(func() error {
			for i := int(next.Add(1)) - 1; i < len(ids) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				token, role := nodeToken, identity.RoleNode
				if i < cfg.Seeds {
					token, role = seedToken, identity.RoleSeed
				}
				where := filepath.Join(dir, "members", fmt.Sprintf("%s%05d", role, i))
				id, err := join(ctx, where, s.address, token, role)
				if err != nil {
					return fmt.Errorf("%s %d: %w", role, i, err)
				}
				ids[i] = id
			}
			return ctx.Err()
		})
	}
	return ids, g.Wait()
}

// join tries again while the scheduler has its hands full with other joins.
func join(ctx context.Context, dir, address, token string, role identity.Role) (*identity.Identity, error) {
	for {
		id, err := identity.Join(ctx, dir, address, token, identity.Options{Role: role})
		if !errors.Is(err, identity.ErrDenied) && !errors.Is(err, identity.ErrUnreachable) {
			return id, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// attendAll opens every identity's stream.
func attendAll(ctx context.Context, w *world, s *scheduler, ids []*identity.Identity) ([]*node, error) {
	nodes := make([]*node, len(ids))
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range attenders {
		g.Go(func() error {
			for i := int(next.Add(1)) - 1; i < len(ids) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				stream, err := dial(ctx, s.address, ids[i].ClientTLS(identity.Expect{Roles: []identity.Role{identity.RoleScheduler}}))
				if err != nil {
					return fmt.Errorf("stream %d: %w", i, err)
				}
				nodes[i] = newNode(w, i, ids[i].ID(), stream)
				if err := nodes[i].attend(); err != nil {
					return fmt.Errorf("stream %d: %w", i, err)
				}
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		for _, n := range nodes {
			if n != nil {
				n.stream.close()
			}
		}
		return nil, err
	}
	return nodes, nil
}
