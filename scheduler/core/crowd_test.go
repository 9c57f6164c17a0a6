package core

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Whatever a crowd says that is large enough for masks and, with a low LeaseRate, for
// long runs: after every event the books are right, and nobody waits whom somebody
// could serve. DAMSELFLY_SIM=1 tries many more.
func TestRandomCrowds(t *testing.T) {
	crowds := 15
	if os.Getenv("DAMSELFLY_SIM") != "" {
		crowds = 900
	}
	for seed := range uint64(crowds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			cfg := Config{IdleTime: Second, Window: 4}
			switch seed % 3 {
			case 0:
				cfg.LeaseRate = 200
			case 1:
				cfg.LeaseRate = 1000
			}
			c := &randomCrowd{r: rand.New(rand.NewPCG(seed, 0)), s: New(cfg, seed), size: 70, racks: []string{""}}
			c.size += c.r.IntN(80)
			if seed%2 == 0 {
				c.racks = []string{"", "r1", "r2"}
			}
			var now Time
			for step := range 1200 {
				now += Time(c.r.Int64N(int64(5 * Millisecond)))
				if c.r.IntN(60) == 0 {
					now += Time(c.r.Int64N(int64(2 * Second)))
				}
				e := c.event(step)
				for _, d := range c.s.Apply(now, e, nil) {
					if d.Kind == Lease {
						c.leases = append(c.leases, d)
					}
				}
				if step > c.size {
					checkState(t, c.s)
				}
			}
		})
	}
}

// randomCrowd makes up what nodes say.
type randomCrowd struct {
	r      *rand.Rand
	s      *State
	size   int // nodes, which attend first
	racks  []string
	leases []Decision // given, and not ended yet
}

func (c *randomCrowd) node(i int) string { return fmt.Sprint("n", i) }

func (c *randomCrowd) runs(pieces int) []blob.Run {
	first := c.r.IntN(pieces)
	return []blob.Run{{First: first, Count: 1 + c.r.IntN(pieces-first)}}
}

// links are those that prove a run.
func (c *randomCrowd) links(h *Have, pieces int) {
	h.FirstLink = h.Runs[0].First
	for i := h.FirstLink; i < min(h.Runs[0].End()+1, pieces); i++ {
		link := make([]byte, h.Digest.LinkSize())
		if link[0], link[1] = byte(i), 1; i == 0 {
			link = h.Digest.FirstLink()
		}
		h.Links = append(h.Links, link...)
	}
}

func (c *randomCrowd) event(step int) Event {
	r := c.r
	kind, id := r.IntN(100), c.node(r.IntN(c.size))
	if step < c.size {
		kind, id = 0, c.node(step)
	}
	digest, pieces := blob.FromBytes([]byte("a")), 3
	if r.IntN(2) > 0 {
		digest, pieces = blob.FromBytes([]byte("b")), 70
	}
	size := int64(pieces) * testPiece
	switch {
	case kind < 4:
		return &Attend{
			Node: id, Address: id, UploadSlots: 1 + r.IntN(6), DownloadSlots: 1 + r.IntN(4),
			Seed: r.IntN(30) == 0, Rack: c.racks[r.IntN(len(c.racks))],
		}
	case kind < 6:
		return &Leave{Node: id}
	case kind < 30:
		w := &Want{Node: id, Digest: digest, Size: size, Priority: Priority(r.IntN(int(priorities)))}
		if r.IntN(3) > 0 {
			w.Runs = c.runs(pieces)
		}
		if r.IntN(3) == 0 {
			w.Urgent = c.runs(pieces)
		}
		if r.IntN(2) == 0 {
			w.Origin = &Origin{Kind: BlobOrigin, Registry: "r", Repository: "x"}
		}
		return w
	case kind < 32:
		return &Unwant{Node: id, Digest: digest}
	case kind < 45:
		h := &Have{Node: id, Digest: digest, Size: size, Runs: c.runs(pieces), Sealed: r.IntN(12) == 0}
		if r.IntN(2) == 0 {
			c.links(h, pieces)
		}
		return h
	case kind < 48:
		return &Drop{Node: id, Digest: digest}
	case kind < 52:
		return &Slots{Node: id, Upload: r.IntN(7), Download: r.IntN(5)}
	case len(c.leases) == 0:
		return &Tick{}
	}
	return c.ofLease(r.IntN(len(c.leases)))
}

// ofLease is what a node says of a lease that it runs, or ran.
func (c *randomCrowd) ofLease(i int) Event {
	r, d := c.r, c.leases[i]
	say := r.IntN(20)
	switch {
	case say < 5:
		return &Ending{Node: d.To, Lease: d.ID}
	case say < 11:
		h := &Have{Node: d.To, Digest: d.Digest, Size: d.Size, Runs: []blob.Run{d.Run}}
		if d.Origin != nil {
			c.links(h, int(d.Size/testPiece))
		}
		return h
	}
	last := len(c.leases) - 1
	c.leases[i] = c.leases[last]
	c.leases = c.leases[:last]
	if say < 13 {
		return &Failed{Node: d.To, Lease: d.ID, Reason: Reason(r.IntN(int(reasons))), Status: []int{0, 404, 429}[r.IntN(3)]}
	}
	return &Done{Node: d.To, Lease: d.ID, Bytes: testPiece, Time: Time(1+r.IntN(100)) * Millisecond}
}
