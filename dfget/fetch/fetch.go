// Package fetch brings the bytes of one blob, manifest or file into a sink,
// from the local daemon where there is one and from the origin otherwise. It
// proves them against their digest while they pass, goes on where a connection
// broke, and leaves one source for the next when it fails.
//
// It chooses no file names and draws no progress; the commands of dfget do.
package fetch

import (
	"context"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

// Want is content to fetch.
type Want struct {
	// Ref is where the origin keeps it.
	Ref origin.Ref
	// Digest names the content; "" when nobody knows it yet (a tag, a plain URL).
	Digest blob.Digest
	// Size is its length in bytes, below zero when unknown.
	Size int64
	// Header is sent to the origin and to nobody else: the user's own headers,
	// Accept for manifests.
	Header http.Header
}

// Reply is content that a source has begun to send.
type Reply struct {
	Body io.ReadCloser
	// Offset is where in the content Body starts: what was asked for, or 0 when
	// the source knows no ranges or holds other content than before.
	Offset int64
	// Size is the length of the whole content, below zero when unknown.
	Size int64
	// Validator tells this content from others at the same place: a strong ETag
	// or a Last-Modified date; "" when the source gives neither.
	Validator string
	// MediaType is the Content-Type.
	MediaType string
	// Digest is what the source says the digest is, "" when it does not.
	Digest blob.Digest
}

// Source opens content. The daemon is one, the origin another.
type Source interface {
	// Name is "daemon" or "origin".
	Name() string
	// Open asks for w from off on. With a validator the bytes from off on are
	// sent only if the content is still the same, the whole otherwise. The
	// errors are those of package origin, or wrap ErrUnusable when another source
	// should be asked.
	Open(ctx context.Context, w Want, off int64, validator string) (*Reply, error)
}

// Sink takes the bytes in order.
type Sink interface {
	// Resume feeds what an earlier run left to h and returns how much that is.
	Resume(h hash.Hash) (int64, error)
	io.Writer
	// Reset drops all that was written. It errs where that cannot be.
	Reset() error
}

// Noter is a Sink that keeps a note beside the bytes for a later run.
type Noter interface {
	Note() []byte
	SetNote(note []byte) error
}

// Watch sees a fetch advance. It is called from the goroutine of Fetch.
type Watch interface {
	// Expect tells the size as soon as it is known.
	Expect(size int64)
	// Kept tells how many bytes were there already. It replaces what was told
	// before by Kept and Add.
	Kept(n int64)
	// Add tells that n more bytes came.
	Add(n int64)
}

// Result says what a fetch did.
type Result struct {
	Digest    blob.Digest
	Size      int64
	MediaType string
	Fetched   int64 // bytes that came over the network
	Kept      int64 // bytes of an earlier run that were used again
	Sources   Sources
}

// Config tunes a Fetcher.
type Config struct {
	// Tries bounds how often a source is asked in a row without one byte more.
	// Default 4.
	Tries int
	// Pause is the wait before the second of these tries; it doubles with each.
	// Default 500 ms.
	Pause time.Duration
	// MaxPause bounds the wait that a source may ask for by Retry-After. Default
	// 30 s.
	MaxPause time.Duration
	// Warn tells the user that a fetch goes on in another way than planned. It
	// may be called from several goroutines at once; nil = nobody is told.
	Warn func(msg string)
}

// Fetcher asks its sources in order. It is safe for concurrent use.
type Fetcher struct {
	cfg     Config
	sources []Source
	left    atomic.Bool // the user has been told that a source was left for the next
}

// New returns a Fetcher over sources, the most wanted first. There must be one.
func New(cfg Config, sources ...Source) *Fetcher {
	if cfg.Tries <= 0 {
		cfg.Tries = 4
	}
	if cfg.Pause <= 0 {
		cfg.Pause = 500 * time.Millisecond
	}
	if cfg.MaxPause <= 0 {
		cfg.MaxPause = 30 * time.Second
	}
	if cfg.Warn == nil {
		cfg.Warn = func(string) {}
	}
	return &Fetcher{cfg: cfg, sources: sources}
}

// Fetch brings w into sink. When it returns without error the bytes are whole
// and, where w has a digest, proven. On an *IntegrityError sink holds bytes that
// must not be used; on other errors it holds bytes that a later Fetch may
// continue. Those are a *SourceError, which holds the error of the source, the
// sink's own, or the cause for which ctx ended.
func (f *Fetcher) Fetch(ctx context.Context, w Want, sink Sink, watch Watch) (Result, error) {
	r := &run{f: f, want: w, sink: sink, watch: watch}
	for {
		if err := r.transfer(ctx); err != nil {
			return r.result, err
		}
		bad := r.verify()
		if bad == nil {
			return r.result, nil
		}
		if !r.secondChance() || r.reset() != nil {
			return r.result, bad
		}
		r.bad = bad
		f.cfg.Warn(fmt.Sprintf("%v; fetching it again from the %s", bad, f.sources[r.at].Name()))
	}
}

// Manifest fetches w into memory; it may have max bytes. The Result's digest is
// that of the body.
func (f *Fetcher) Manifest(ctx context.Context, w Want, max int64) ([]byte, Result, error) {
	m := &memory{max: max}
	res, err := f.Fetch(ctx, w, m, nopWatch{})
	return m.buf, res, err
}

type memory struct {
	buf []byte
	max int64
}

func (m *memory) Resume(hash.Hash) (int64, error) { return 0, nil }

func (m *memory) Reset() error {
	m.buf = m.buf[:0]
	return nil
}

func (m *memory) Write(b []byte) (int, error) {
	if int64(len(m.buf)+len(b)) > m.max {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, m.max)
	}
	m.buf = append(m.buf, b...)
	return len(b), nil
}

type nopWatch struct{}

func (nopWatch) Expect(int64) {}
func (nopWatch) Kept(int64)   {}
func (nopWatch) Add(int64)    {}

// note is what a run leaves beside bytes that have no digest.
type note struct {
	Validator string `json:"validator"`
}

func readNote(sink Sink) (note, bool) {
	n, ok := sink.(Noter)
	if !ok {
		return note{}, false
	}
	var v note
	if err := json.Unmarshal(n.Note(), &v); err != nil || v.Validator == "" {
		return note{}, false
	}
	return v, true
}

func writeNote(sink Sink, v note) error {
	n, ok := sink.(Noter)
	if !ok {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return n.SetNote(b)
}

// Sources is the sorted set of sources that gave bytes.
type Sources []string

// Add puts name into the set.
func (s *Sources) Add(name string) {
	i, found := slices.BinarySearch(*s, name)
	if !found {
		*s = slices.Insert(*s, i, name)
	}
}

// String is "daemon", "origin", "daemon+origin", or "disk" when no byte had to
// come from anywhere.
func (s Sources) String() string {
	if len(s) == 0 {
		return "disk"
	}
	return strings.Join(s, "+")
}
