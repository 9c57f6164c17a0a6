package task

import (
	"slices"
	"sync"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/peer"
)

// contacts are the other nodes that this one knows of: who served it, who asked it,
// and whom those named. They are whom it asks while no scheduler answers. Safe for
// concurrent use.
type contacts struct {
	mu    sync.Mutex
	blobs map[blob.Digest][]contact // that were after a blob, the latest last
	last  []contact                 // that served this node at all, the latest last
}

type contact struct {
	peer.Holder
	at time.Time
}

// Bounds of what is remembered, and for how long.
const (
	maxContacts     = 64
	maxContactBlobs = 1024
	contactTime     = 5 * time.Minute
)

// meet remembers a node that is after d.
func (c *contacts) meet(d blob.Digest, h peer.Holder, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(d, h, now)
}

// served remembers a node that had pieces of d.
func (c *contacts) served(d blob.Digest, h peer.Holder, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(d, h, now)
	c.last = noted(c.last, h, now)
}

// note adds to the contacts of d. The caller holds mu.
func (c *contacts) note(d blob.Digest, h peer.Holder, now time.Time) {
	known, ok := c.blobs[d]
	if !ok && len(c.blobs) >= maxContactBlobs {
		c.forget(now)
	}
	c.blobs[d] = noted(known, h, now)
}

// noted puts h last.
func noted(known []contact, h peer.Holder, now time.Time) []contact {
	if i := slices.IndexFunc(known, func(k contact) bool { return k.ID == h.ID }); i >= 0 {
		known = slices.Delete(known, i, i+1)
	} else if len(known) == maxContacts {
		known = slices.Delete(known, 0, 1)
	}
	return append(known, contact{h, now})
}

// forget drops the blobs whose contacts are old, and one in any case. The caller
// holds mu.
func (c *contacts) forget(now time.Time) {
	var oldest blob.Digest
	var at time.Time
	for d, known := range c.blobs {
		last := known[len(known)-1].at
		if now.Sub(last) > contactTime {
			delete(c.blobs, d)
		} else if oldest == "" || last.Before(at) {
			oldest, at = d, last
		}
	}
	if len(c.blobs) >= maxContactBlobs {
		delete(c.blobs, oldest)
	}
}

// after lists who was after d lately, the latest first.
func (c *contacts) after(d blob.Digest, now time.Time) []peer.Holder {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fresh(c.blobs[d], now)
}

// any lists who served this node lately, whatever it was, the latest first.
func (c *contacts) any(now time.Time) []peer.Holder {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fresh(c.last, now)
}

func fresh(known []contact, now time.Time) []peer.Holder {
	var out []peer.Holder
	for _, k := range slices.Backward(known) {
		if now.Sub(k.at) <= contactTime {
			out = append(out, k.Holder)
		}
	}
	return out
}
