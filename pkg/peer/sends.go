package peer

import (
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// sends counts, of the blobs that were read here last, how often each piece was sent.
// So a holder that others ask for whatever they lack sends every piece once before
// any twice, as a scheduler would have it. Safe for concurrent use.
type sends struct {
	mu    sync.Mutex
	blobs []counted // the one read last is the last
}

// counted is one blob. Counts end at the most that a byte holds: by then they say
// nothing any more.
type counted struct {
	digest blob.Digest
	times  []uint8
}

// maxCounted bounds the blobs that are counted.
const maxCounted = 16

// of is the counts of a blob. The caller holds mu.
func (s *sends) of(d blob.Digest, pieces int) []uint8 {
	i := slices.IndexFunc(s.blobs, func(c counted) bool { return c.digest == d && len(c.times) == pieces })
	c := counted{}
	if i < 0 {
		c = counted{d, make([]uint8, pieces)}
		if len(s.blobs) == maxCounted {
			i = 0
		}
	} else {
		c = s.blobs[i]
	}
	if i >= 0 {
		s.blobs = slices.Delete(s.blobs, i, i+1)
	}
	s.blobs = append(s.blobs, c)
	return c.times
}

func count(times []uint8, i int) {
	if times[i] < 255 {
		times[i]++
	}
}

// add counts a run.
func (s *sends) add(d blob.Digest, pieces int, run blob.Run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	times := s.of(d, pieces)
	for i := run.First; i < run.End(); i++ {
		count(times, i)
	}
}

// least picks and counts at most n of the pieces in from: those that were sent
// least, at random among equals.
func (s *sends) least(d blob.Digest, from *blob.Bitmap, n int) []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	times := s.of(d, from.Len())
	var out []int
	for i := from.NextSet(0); i < from.Len(); i = from.NextSet(i + 1) {
		out = append(out, i)
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	slices.SortStableFunc(out, func(a, b int) int { return int(times[a]) - int(times[b]) })
	out = out[:min(n, len(out))]
	for _, i := range out {
		count(times, i)
	}
	return out
}
