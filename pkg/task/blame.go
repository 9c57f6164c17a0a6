package task

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
)

// settle draws the consequences of how a read ended. The caller holds mu.
func (a *alone) settle(ctx context.Context, o *other, claim *blob.Bitmap, err error) error {
	now := time.Now()
	switch {
	case err == nil:
		a.m.contacts.served(a.t.digest, o.Holder, now)
	case errors.Is(err, peer.ErrBusy):
		o.rest = now.Add(10*time.Millisecond + rand.N(30*time.Millisecond))
	case errors.Is(err, peer.ErrMissing):
		for i := claim.NextSet(0); i < claim.Len(); i = claim.NextSet(i + 1) {
			o.have.Clear(i)
		}
		o.rest = now.Add(missingRest + rand.N(missingRest))
	case errors.Is(err, blob.ErrUnknownLink), context.Cause(ctx) != nil && !errors.Is(context.Cause(ctx), errOverdue):
	case errors.Is(err, blob.ErrMismatch), errors.Is(err, peer.ErrMalformed):
		a.blame(o, err)
	case errors.Is(err, peer.ErrUnreachable), errors.Is(err, errOverdue):
		o.failures++
		o.rest = now.Add(min(time.Second<<min(o.failures, 5), 30*time.Second))
		a.log.Debug("a node does not send what it has", zap.String("node", o.ID), zap.Error(err))
	default:
		return err // the store's
	}
	return nil
}

// blame reads nothing more from a node whose bytes are not the blob's: or not what the
// known links say, and then it is asked who is right. The caller holds mu.
func (a *alone) blame(o *other, err error) {
	a.log.Warn("a node sent wrong bytes; nothing more is read from it for this blob", zap.String("node", o.ID), zap.Error(err))
	o.banned, a.doubt = true, true
	for _, x := range a.others {
		x.next = time.Time{}
	}
}

// refute has what the origin sends win over links that came from others: it is read on
// from where they differ, by its own links alone. Whether those before were right shows
// at the digest.
func (a *alone) refute(differs *pieceError) error {
	a.log.Warn("the origin's bytes contradict links that others told; those are dropped", zap.Error(differs))
	a.m.mu.Lock()
	a.t.own, a.t.lent = true, true
	a.m.mu.Unlock()
	a.mu.Lock()
	a.closed = true
	for _, o := range a.others {
		o.banned = o.banned || o.word == agrees
	}
	a.mu.Unlock()
	return a.t.blob.Refute(differs.piece)
}

// vote starts the blob over where its links came from other nodes and more of them
// tell others. Whoever is right in the end, the digest has the last word. The caller
// holds mu.
func (a *alone) vote() {
	words := map[word]int{}
	for _, o := range a.others {
		words[o.word]++
	}
	if a.own || words[contradicts] <= words[agrees] {
		return
	}
	a.log.Warn("more nodes contradict the links of a blob than agree; it is started over",
		zap.Int("contradict", words[contradicts]), zap.Int("agree", words[agrees]))
	for _, o := range a.others {
		o.banned, o.word, o.next = o.word == agrees, silent, time.Time{}
	}
	if err := a.t.blob.Reset(); err != nil {
		a.log.Error("a blob could not be reset", zap.Error(err))
	}
}

// distrust remembers, for as long as the task lasts, who told links that led to a wrong
// digest, or sent wrong bytes. The caller holds the manager's mutex.
func (a *alone) distrust() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.others {
		if o.banned || o.word == agrees {
			a.t.liars[o.ID] = true
		}
	}
}
