package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// The scrub proves again what is held, piece by piece and blob by blob in the
// order of their digests, at a rate that nobody notices. What it finds rotten
// leaves as if a reader had found it. A pass ends, and the next one begins
// Config.ScrubEvery after it began.

const (
	// saveCursorEvery bounds how much a restart proves twice.
	saveCursorEvery = time.Minute
	// A blob that nobody used for coldAfter is read from the disk, and leaves
	// nothing in the page cache. Of others the bytes that readers get are proven.
	coldAfter = 10 * time.Minute

	cursorFile = "scrub"
	maxCursor  = 4 << 10
)

// cursor is where a scrub is; it is kept in the volume, as JSON. Losing it costs
// reading again.
type cursor struct {
	Began  time.Time   `json:"began"`  // of the pass; zero before the first
	Digest blob.Digest `json:"digest"` // the next blob; empty when the pass is over
	Piece  int         `json:"piece"`  // the next piece of it
}

// Scrub is how far the scrub is.
type Scrub struct {
	Began time.Time // of this pass, or of the last one; zero before the first
	Ended time.Time // of the last pass that ended since the store was opened; zero when none has
}

// Scrub tells how far the scrub is. Safe for concurrent use.
func (s *Store) Scrub() Scrub {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.scrubbed
}

// scrub runs until ctx ends, or returns at once when it is turned off.
func (s *Store) scrub(ctx context.Context) {
	if s.cfg.ScrubRate == 0 {
		return
	}
	at := s.readCursor()
	defer func() { s.saveCursor(at) }()
	for ctx.Err() == nil {
		if at.Digest == "" && !at.Began.IsZero() {
			if !pause(ctx, time.Until(at.Began.Add(s.cfg.ScrubEvery))) {
				return
			}
			at.Began = time.Time{}
		}
		if at.Began.IsZero() {
			at = cursor{Began: time.Now()}
		}
		s.mu.Lock()
		s.scrubbed.Began = at.Began
		s.mu.Unlock()
		s.pass(ctx, &at)
	}
}

// pass proves the blobs from at on, and moves it along.
func (s *Store) pass(ctx context.Context, at *cursor) {
	saved := time.Now()
	for _, d := range s.digests(at.Digest) {
		if d != at.Digest {
			at.Digest, at.Piece = d, 0
		}
		for more := true; more; {
			var n int64
			at.Piece, n, more = s.scrubSome(ctx, d, at.Piece)
			if !pause(ctx, time.Duration(float64(n)/float64(s.cfg.ScrubRate)*float64(time.Second))) {
				return
			}
			if time.Since(saved) >= saveCursorEvery {
				s.saveCursor(*at)
				saved = time.Now()
			}
		}
	}
	at.Digest, at.Piece = "", 0
	s.saveCursor(*at)
	s.mu.Lock()
	s.scrubbed.Ended = time.Now()
	s.mu.Unlock()
	s.metrics.passes.SetToCurrentTime()
}

// digests lists the blobs that are held from first on, in their order.
func (s *Store) digests(first blob.Digest) []blob.Digest {
	s.mu.Lock()
	all := make([]blob.Digest, 0, len(s.blobs))
	for d := range s.blobs {
		if d >= first {
			all = append(all, d)
		}
	}
	s.mu.Unlock()
	slices.Sort(all)
	return all
}

// scrubSome proves pieces of a blob from first on: about as many bytes as one
// second has. The blob is in use no longer than that takes, so that the scrub
// keeps none from being evicted. It returns the next piece, the bytes that were
// read, and whether there is more to do.
func (s *Store) scrubSome(ctx context.Context, d blob.Digest, first int) (next int, n int64, more bool) {
	b, ok := s.Peek(d)
	if !ok {
		return 0, 0, false // gone meanwhile
	}
	defer b.Release()
	f, err := b.openFile()
	if err == nil {
		err = b.load()
	}
	if err != nil {
		return 0, 0, false // dropped and logged, or not to be had now: the next pass comes
	}
	cold := b.cold()
	for i := first; i < b.layout.Pieces(); i++ {
		if n >= s.cfg.ScrubRate || ctx.Err() != nil {
			return i, n, true
		}
		if cold {
			f.forget(b.layout.Offset(i), b.layout.Length(i))
		}
		read, _ := b.prove(f, i)
		if cold && read {
			f.forget(b.layout.Offset(i), b.layout.Length(i))
		}
		if read {
			n += b.layout.Length(i)
			s.metrics.scrubbed.Add(float64(b.layout.Length(i)))
		}
	}
	return b.layout.Pieces(), n, false
}

// cold tells whether nobody used the blob lately.
func (b *Blob) cold() bool {
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	return time.Since(b.lastUse) > coldAfter
}

// prove reads a piece that is held and proves it against its links. One that fails
// twice is given up as if a reader had missed it, and rotten says so; read is false
// when there was nothing to prove. The caller has a reference, and has loaded the
// links.
func (b *Blob) prove(f *file, i int) (read, rotten bool) {
	for failed := 0; ; {
		p, held, err := b.proveHeld(f, i)
		switch {
		case !held, isScarcity(err), errors.Is(err, fs.ErrClosed):
			return false, false
		case err == nil:
			return true, false
		case !b.still(p.gen):
			// A piece that was lost meanwhile, or is written anew, is not rotten.
		case failed > 0:
			return true, errors.Is(b.lose(i, err), ErrDamaged)
		default:
			failed++
		}
	}
}

// proveHeld is one try of prove. The error says that the piece is not what its
// links say, or cannot be read.
func (b *Blob) proveHeld(f *file, i int) (p proof, held bool, err error) {
	b.store.checks <- struct{}{}
	defer func() { <-b.store.checks }()
	p, next, held := b.linksOf(i)
	if held {
		err = b.proveOnDisk(f, i, p, next)
	}
	return p, held, err
}

// linksOf returns what a held piece starts from and leads to.
func (b *Blob) linksOf(i int) (p proof, next []byte, held bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || !b.hasLocked(i) || b.chain == nil || !b.chain.Proves(i) {
		return p, nil, false
	}
	copy(p.link[:], b.chain.Link(i))
	p.gen = b.gen
	return p, b.chain.Links(i+1, 1), true
}

// pause waits for d unless ctx ends first, and tells whether it has not.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// readCursor returns where the last run's scrub was; the start where that is not
// known.
func (s *Store) readCursor() (at cursor) {
	data, err := s.vol.readFile(cursorFile, maxCursor)
	if errors.Is(err, fs.ErrNotExist) {
		return cursor{}
	}
	if err == nil {
		err = json.Unmarshal(data, &at)
	}
	if err == nil && at.Digest != "" {
		_, err = blob.ParseDigest(string(at.Digest))
	}
	if err == nil && (at.Piece < 0 || at.Began.After(time.Now())) {
		err = fmt.Errorf("piece %d of a pass that began %s", at.Piece, at.Began)
	}
	if err != nil {
		s.log.Warn("cannot tell where the scrub was; it starts over", zap.Error(err))
		return cursor{}
	}
	return at
}

func (s *Store) saveCursor(at cursor) {
	data, err := json.Marshal(at)
	if err == nil {
		err = s.vol.replaceFile(cursorFile, cursorFile+".tmp", data, false)
	}
	if err != nil {
		s.log.Warn("cannot save where the scrub is; a restart would start it over", zap.Error(err))
	}
}
