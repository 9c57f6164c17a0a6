package identity

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// checkEvery bounds how long Run sleeps without looking at the clocks: a
	// machine that was suspended, or whose clock was set, notices within it.
	checkEvery = time.Minute
	// renewJitter is the share of the half life by which the nodes of a cluster
	// spread their renewals.
	renewJitter = 0.1

	// minBetween keeps a machine whose clock is far off, so that each new
	// certificate looks old, from renewing without end.
	minBetween = 10 * time.Minute

	firstRetry = 5 * time.Second
	lastRetry  = 10 * time.Minute
	renewLimit = 30 * time.Second
)

// Run renews the certificate at about half its life, over a connection that the
// present one authenticates, until ctx ends; then it returns nil. What fails is
// logged and tried again after a growing, jittered pause of at most ten minutes.
// An identity that joined with a token and lost its certificate to a long outage
// joins again with it. It also keeps what Hear took in. Run must not run twice at once.
func (id *Identity) Run(ctx context.Context) error {
	var keeper sync.WaitGroup
	defer keeper.Wait()
	keeper.Go(func() { id.keepHeard(ctx) })
	for {
		if !id.sleepUntilDue(ctx) {
			return nil
		}
		id.renewUntilDone(ctx)
		if !sleep(ctx, minBetween) {
			return nil
		}
	}
}

// sleepUntilDue is false when ctx ended first.
func (id *Identity) sleepUntilDue(ctx context.Context) bool {
	c := id.current.Load()
	pause := c.renewAfter(rand.Float64())
	for !c.due(pause, time.Now()) {
		if !sleep(ctx, min(checkEvery, pause)) {
			return false
		}
	}
	return ctx.Err() == nil
}

// renewAfter is how long after its issue the certificate is renewed, for a
// random number from 0 to 1.
func (c *credential) renewAfter(random float64) time.Duration {
	half := float64(c.leaf.NotAfter.Sub(c.issuedAt())) / 2
	return time.Duration(half * (1 + renewJitter*(2*random-1)))
}

// issuedAt takes the backdating out again.
func (c *credential) issuedAt() time.Time {
	return c.leaf.NotBefore.Add(backdate)
}

// due says whether the certificate is to be renewed, by whichever clock says so
// first: the monotonic one stands while a machine is suspended, and the wall
// clock can be set back.
func (c *credential) due(after time.Duration, now time.Time) bool {
	byWall := now.Round(0).Sub(c.issuedAt()) >= after
	byMonotonic := now.Sub(c.installed) >= after
	return byWall || byMonotonic
}

// Renew gets a new certificate now; Run does so by itself in time. The present
// one stays when it fails.
func (id *Identity) Renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewLimit)
	defer cancel()
	c, err := id.issuer.renew(ctx, id.key, id.current.Load())
	if err == nil {
		err = c.keep(id.dir)
	}
	if err != nil {
		id.metrics.renewed("failed")
		return fmt.Errorf("renew certificate: %w", err)
	}
	id.current.Store(c)
	id.metrics.renewed("ok")
	id.log.Info("renewed the certificate", zap.Time("expires", c.leaf.NotAfter))
	return nil
}

func (id *Identity) renewUntilDone(ctx context.Context) {
	pause := firstRetry
	for {
		err := id.Renew(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		next := time.Duration((0.5 + rand.Float64()/2) * float64(pause))
		id.logFailure(err, next)
		if !sleep(ctx, next) {
			return
		}
		pause = min(2*pause, lastRetry)
	}
}

func (id *Identity) logFailure(err error, next time.Duration) {
	left := time.Until(id.NotAfter())
	fields := []zap.Field{zap.Error(err), zap.Duration("left", left), zap.Duration("next_try", next)}
	switch {
	case left <= 0:
		id.log.Error("the certificate has expired and cannot be renewed: other parts of the cluster refuse this one", fields...)
	case left < certLifetime/4:
		id.log.Error("cannot renew the certificate, which expires soon", fields...)
	default:
		id.log.Warn("cannot renew the certificate", fields...)
	}
}

// sleep is false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
