package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
)

// Read opens the bytes [off, off+n) of ref, n < 0 meaning to the end, whose size
// is known; a range past the end is cut. It returns when the origin has begun to
// answer, so a refusal is Read's own error. header is a client's, as for Head;
// without Authorization in it the node's own credential counts, or else what
// anybody may have. An If-Range in header says which version of a file without a
// digest is meant (Info.Validator).
//
// The reader hides what can be mended: it takes a broken, short or stalled body
// up again at the byte reached, as long as there is progress and at most four
// times in a row without any; asks the registry again when a presigned location
// has expired; skips what an origin that ignores Range sends too much, up to
// Config.MaxSkip; waits out a 429 or 503 up to Config.MaxRetryAfter. Where one
// stream leaves the line idle it reads by several, up to Config.MaxStreams. It never
// delivers a byte at another offset than asked, and nothing past the size. It
// does not verify digests.
//
// Errors of Read and of the reader: *StatusError, ErrChanged, ErrSize,
// ErrNoRange, ErrProtocol, ErrStalled, and those of Head. The reader is for one
// goroutine, but Close may be called by another while a Read waits. ctx ends the
// reader as well.
func (c *Client) Read(ctx context.Context, ref Ref, header http.Header, size, off, n int64) (io.ReadCloser, error) {
	if size < 0 || off < 0 || off > size {
		return nil, fmt.Errorf("origin: %s: cannot read at offset %d of %d bytes", ref, off, size)
	}
	end := size
	if n >= 0 && n < size-off {
		end = off + n
	}
	if off == end {
		return http.NoBody, nil
	}
	h, err := c.host(ref)
	if err != nil {
		return nil, fmt.Errorf("origin: %w", err)
	}
	validator := header.Get("If-Range")
	content := contentHeader(header)
	question, err := h.call(http.MethodGet, ref, passHeader(content, c.cfg.UserAgent), askNode, laneBulk)
	if err != nil {
		return nil, fmt.Errorf("origin: %w", err)
	}
	r := &reader{
		client: c, host: h, ref: ref, question: question, key: secret(ref, question.header),
		size: size, first: off, pos: off, end: end, validator: validator, limited: new(atomic.Int64), line: new(line),
	}
	all, cancel := context.WithCancel(withLimited(ctx, r.limited))
	r.ctx, r.cancel = context.WithCancel(withLine(all, r.line))
	began := time.Now()
	err = r.open()
	if err == nil && r.untold && !r.versioned() && size > blob.MinPieceLength {
		err = r.confirm(content)
	}
	if err != nil {
		cancel()
		return nil, about(ref, err)
	}
	return c.several(all, cancel, r, time.Since(began)), nil
}

// confirmPatience is how long the origin may take to tell a size that its answer did not.
const confirmPatience = 300 * time.Millisecond

// confirm asks for the first byte alone, to be told the size, where the answer to GET did
// not tell it. The size that was given is a hint, of a manifest or of HEAD; were it wrong,
// that would show at the end, and what was read with it could not be taken back. It closes
// the reader where another size, or none, is told.
func (r *reader) confirm(header http.Header) error {
	ctx, cancel := context.WithTimeout(context.WithValue(r.ctx, lineKey{}, nil), confirmPatience) // not by r's line
	defer cancel()
	told := int64(-1)
	if info, err := r.client.statByte(ctx, r.ref, header); err == nil {
		told = info.Size
	}
	if told == r.size {
		return nil
	}
	_ = r.Close()
	return &SizeError{Size: told, Expected: r.size}
}

// reader is one Read. Its fields but cancel are guarded by mu.
type reader struct {
	client   *Client
	host     *host
	ref      Ref
	question call // without Range
	key      secretRef
	size     int64
	first    int64 // where it was opened
	end      int64
	ctx      context.Context
	cancel   context.CancelFunc
	limited  *atomic.Int64 // time for which limits of this node held its bytes
	line     *line         // by which it comes; may be nil

	mu  sync.Mutex
	err error // sticky
	pos int64 // next byte to deliver

	body      io.ReadCloser // nil between attempts
	bodyEnd   int64         // where body ends or is of no more use; at most end
	openEnd   bool          // body should end at end, but its length was not declared
	untold    bool          // the answer did not tell the size of the whole
	got       int64         // bytes delivered from body
	validator string        // of the version that is read; "" unknown
	rangeless bool          // the origin has shown that it does not serve ranges
	plain     bool          // ask without a range
	helps     bool          // it reads a part beside others: what it does not get they will

	frees  int // attempts in a row that failed at a known location
	barren int // attempts in a row that delivered nothing
	slow   int // attempts in a row that delivered little
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, r.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if r.pos == r.end {
			r.err = r.finish()
			return 0, r.err
		}
		if r.body == nil {
			if err := r.open(); err != nil {
				r.err = about(r.ref, fmt.Errorf("at byte %d of %d: %w", r.pos, r.size, err))
				return 0, r.err
			}
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.bodyEnd-r.pos)])
		r.pos += int64(n)
		r.got += int64(n)
		if r.pos < r.end && (err != nil || r.pos == r.bodyEnd) {
			r.drop(err)
		}
		if n > 0 {
			return n, nil
		}
		if r.body == nil && r.barren >= maxTries {
			r.err = about(r.ref, fmt.Errorf("at byte %d of %d: given up after %d attempts: %w", r.pos, r.size, maxTries, whole(err)))
			return 0, r.err
		}
	}
}

// whole is why a body ended; that it did at all is an error where bytes lack.
func whole(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// drop gives the body up before the end was reached.
func (r *reader) drop(why error) {
	_ = r.body.Close()
	r.body = nil
	if r.got > 0 {
		r.barren, r.frees = 0, 0
	} else {
		r.barren++
	}
	if r.got >= goodProgress {
		r.slow = 0
	} else {
		r.slow++
	}
	if errors.Is(why, ErrStalled) || isDead(why) {
		// Connections that idle beside the one that hangs may hang as well.
		r.client.wire.closeIdle()
	}
	r.client.log.Debug("origin body ended early, taking it up again",
		zap.Stringer("ref", r.ref), zap.Int64("at", r.pos), zap.Int64("size", r.size), zap.Error(why))
}

// finish looks whether a body of undeclared length goes on past the end.
func (r *reader) finish() error {
	if r.body == nil {
		return io.EOF
	}
	defer func() {
		_ = r.body.Close()
		r.body = nil
	}()
	var more [1]byte
	if r.openEnd {
		if n, _ := io.ReadFull(r.body, more[:]); n > 0 {
			return about(r.ref, fmt.Errorf("%w: there is more than the %d bytes expected", ErrSize, r.size))
		}
	}
	return io.EOF
}

// Close ends the reader. It is safe to call while a Read waits, and twice.
func (r *reader) Close() error {
	r.cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.body != nil {
		_ = r.body.Close()
		r.body = nil
	}
	r.err = os.ErrClosed
	return nil
}

// begin has the origin answer before anything is read.
func (r *reader) begin() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil && r.body == nil && r.pos < r.end {
		if err := r.open(); err != nil {
			r.err = about(r.ref, fmt.Errorf("at byte %d of %d: %w", r.pos, r.size, err))
		}
	}
	return r.err
}

// failure is why an attempt has no body.
type failure struct {
	err error
	// again: another attempt may have one.
	again bool
	// after is how long the origin asks to wait.
	after time.Duration
	// free: the attempt says nothing about the origin.
	free bool
}

// open attempts until there is a body at pos, or no reason to go on.
func (r *reader) open() error {
	for {
		if r.slow > 0 {
			if err := sleep(r.ctx, backoff(readBackoff, r.slow)); err != nil {
				return err
			}
		}
		f := r.attempt()
		if f == nil {
			return nil
		}
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if err := r.retry(f); err != nil {
			return err
		}
	}
}

// retry tells, after an attempt that failed, why there shall be no other; it
// waits where the origin asked for it.
func (r *reader) retry(f *failure) error {
	if !f.again {
		return f.err
	}
	if f.free {
		return nil
	}
	if r.helps {
		return f.err
	}
	r.barren++
	r.slow++
	if r.barren >= maxTries || f.after > r.client.cfg.MaxRetryAfter || !r.host.gate.mayRetry(time.Now()) {
		return f.err
	}
	r.client.log.Debug("origin request failed, trying again", zap.Stringer("ref", r.ref), zap.Int64("at", r.pos), zap.Error(f.err))
	if errors.Is(f.err, ErrStalled) || isDead(f.err) {
		r.client.wire.closeIdle()
	}
	return sleep(r.ctx, f.after)
}
