package fetch

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
)

const (
	// bufferSize is how much is read, hashed and written at a time.
	bufferSize = 256 << 10
	// maxRestarts bounds how often content without a digest may turn out to have
	// changed under one fetch.
	maxRestarts = 3
)

// run is one Fetch under way.
type run struct {
	f     *Fetcher
	want  Want
	sink  Sink
	watch Watch

	at       int             // the source in use
	stuck    int             // tries of that source in a row that brought nothing
	restarts int             // how often the content had changed
	begun    bool            // what an earlier run left has been taken up
	again    bool            // mixed bytes have been fetched a second time
	bad      *IntegrityError // what a source before this one got wrong first

	hash      hash.Hash
	off       int64 // bytes that the sink holds
	size      int64 // of the whole content as the replies say, below zero unknown
	validator string
	claimed   blob.Digest // what the latest source says the digest is
	last      string      // the source of the latest bytes
	result    Result
	buf       []byte
}

// transfer brings the sink to the end of the content.
func (r *run) transfer(ctx context.Context) error {
	if !r.begun {
		if err := r.begin(); err != nil {
			return err
		}
	}
	for !r.complete() {
		before := r.off
		done, err := r.once(ctx)
		if done {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.stuck++
		if r.off > before {
			r.stuck = 0
		}
		if err := r.after(ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// begin takes up what an earlier run left.
func (r *run) begin() error {
	r.begun = true
	r.size = r.want.Size
	r.buf = make([]byte, bufferSize)
	r.hash = r.want.Digest.Hash()
	if r.size >= 0 {
		r.watch.Expect(r.size)
	}
	off, err := r.sink.Resume(r.hash)
	if err != nil || off == 0 {
		return err
	}
	if r.want.Digest == "" {
		kept, ok := readNote(r.sink)
		if !ok {
			return r.reset()
		}
		r.validator = kept.Validator
	}
	if r.size >= 0 && off > r.size {
		return r.reset()
	}
	r.off, r.result.Kept = off, off
	r.watch.Kept(off)
	return nil
}

// reset starts from the first byte.
func (r *run) reset() error {
	if err := r.sink.Reset(); err != nil {
		return err
	}
	r.hash = r.want.Digest.Hash()
	r.off, r.result.Kept, r.validator = 0, 0, ""
	r.size = r.want.Size
	r.watch.Kept(0)
	return nil
}

// complete tells whether nothing is left to ask for: the size is known and
// reached, by content whose digest can vouch for it.
func (r *run) complete() bool {
	return r.want.Digest != "" && r.size >= 0 && r.off == r.size
}

// once asks the source in use for the rest and copies what it sends. done is
// true at the end of the content.
func (r *run) once(ctx context.Context) (done bool, err error) {
	src := r.f.sources[r.at]
	validator := r.validator
	if r.want.Digest != "" {
		validator = ""
	}
	reply, err := src.Open(ctx, r.want, r.off, validator)
	var status *origin.StatusError
	if errors.As(err, &status) && status.Code == http.StatusRequestedRangeNotSatisfiable && r.off > 0 {
		return r.beyond(status)
	}
	if err != nil {
		return false, err
	}
	defer reply.Body.Close()
	if err := r.accept(reply, src.Name()); err != nil {
		return false, err
	}
	return r.copy(reply, src.Name())
}

// beyond decides what the answer 416 means: there may be nothing behind the
// bytes that an earlier run left.
func (r *run) beyond(status *origin.StatusError) (done bool, err error) {
	if r.want.Digest != "" && r.digest() == r.want.Digest {
		return true, nil
	}
	if r.want.Digest == "" && r.validator != "" && contentRangeSize(status.Header.Get("Content-Range")) == r.off {
		return true, nil
	}
	return false, r.restart()
}

// restart is reset for content that is not what the bytes held came from.
func (r *run) restart() error {
	r.restarts++
	if r.restarts > maxRestarts {
		return &finalError{fmt.Errorf("%s: %w", r.want.Ref, origin.ErrChanged)}
	}
	return r.reset()
}

// accept makes the run agree with what the reply says of itself.
func (r *run) accept(reply *Reply, source string) error {
	if r.want.Size >= 0 && reply.Size >= 0 && reply.Size != r.want.Size {
		return r.wrong(source, fmt.Sprintf("%d bytes", r.want.Size), fmt.Sprintf("%d bytes", reply.Size))
	}
	if r.want.Digest == "" && r.off > 0 && (reply.Offset != r.off || reply.Validator != r.validator) {
		if err := r.restart(); err != nil {
			return err
		}
		if reply.Offset != 0 {
			return fmt.Errorf("%s: %w", r.want.Ref, origin.ErrChanged)
		}
	}
	if r.want.Digest == "" && r.off == 0 && reply.Validator != "" {
		if err := writeNote(r.sink, note{Validator: reply.Validator}); err != nil {
			return &SinkError{Err: err}
		}
	}
	if r.want.Size < 0 && reply.Size >= 0 {
		r.size = reply.Size
		r.watch.Expect(reply.Size)
	}
	r.validator, r.claimed, r.result.MediaType = reply.Validator, reply.Digest, reply.MediaType
	skip := r.off - reply.Offset
	if skip < 0 {
		return fmt.Errorf("%s: asked for byte %d on, got %d on: %w", r.want.Ref, r.off, reply.Offset, origin.ErrProtocol)
	}
	if _, err := io.CopyN(io.Discard, reply.Body, skip); err != nil {
		return fmt.Errorf("%s: skip to byte %d: %w", r.want.Ref, r.off, err)
	}
	return nil
}

// copy takes the body to its end.
func (r *run) copy(reply *Reply, source string) (done bool, err error) {
	for {
		n, err := reply.Body.Read(r.buf)
		if n > 0 {
			if takeErr := r.take(r.buf[:n], source); takeErr != nil {
				return false, takeErr
			}
		}
		switch {
		case errors.Is(err, io.EOF) && r.size >= 0 && r.off < r.size:
			return false, fmt.Errorf("%s: %d of %d bytes came: %w", r.want.Ref, r.off, r.size, io.ErrUnexpectedEOF)
		case errors.Is(err, io.EOF):
			return true, nil
		case err != nil:
			return false, err
		}
	}
}

func (r *run) take(b []byte, source string) error {
	n := int64(len(b))
	if r.size >= 0 && n > r.size-r.off {
		return r.wrong(source, fmt.Sprintf("%d bytes", r.size), "more")
	}
	r.last = source
	r.result.Sources.Add(source)
	r.hash.Write(b)
	if _, err := r.sink.Write(b); err != nil {
		return &SinkError{Err: err}
	}
	r.off += n
	r.result.Fetched += n
	r.watch.Add(n)
	return nil
}

// after decides how the run goes on after err: with the same source again, with
// the next one, or, when it returns an error, not at all.
func (r *run) after(ctx context.Context, err error) error {
	var sink *SinkError
	more := r.at+1 < len(r.f.sources)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &sink):
		return sink.Err
	case errors.Is(err, blob.ErrMismatch) || errors.Is(err, origin.ErrSize):
		if bad := r.integrity(err); !more || r.reset() != nil {
			return bad
		} else if r.bad == nil {
			r.bad = bad
		}
		r.next(err)
		return nil
	case more && r.stuck > 0 && !authoritative(err):
		r.next(err)
		return nil
	case r.stuck > 0 && !temporary(err) || isFinal(err) || r.stuck >= r.f.cfg.Tries:
		return r.failed(err)
	}
	return r.pause(ctx, err)
}

// failed is err as the run's end. Where a source before has given wrong bytes, that
// is what the user must know: nobody has contradicted it.
func (r *run) failed(err error) error {
	if r.bad != nil {
		return r.bad
	}
	return &SourceError{Source: r.f.sources[r.at].Name(), Err: err}
}

func (r *run) wrong(source, want, got string) *IntegrityError {
	return &IntegrityError{Ref: r.want.Ref, Source: source, Want: want, Got: got}
}

// integrity is err as an IntegrityError.
func (r *run) integrity(err error) *IntegrityError {
	var bad *IntegrityError
	if errors.As(err, &bad) {
		return bad
	}
	bad = r.wrong(r.f.sources[r.at].Name(), fmt.Sprintf("%d bytes", r.want.Size), "another size")
	bad.Err = err
	return bad
}

// next leaves the source in use for the one behind it. The user is told the first
// time: what fails for one blob of an image mostly fails for all.
func (r *run) next(err error) {
	from, to := r.f.sources[r.at], r.f.sources[r.at+1]
	r.at++
	r.stuck = 0
	if !errors.Is(err, ErrUnusable) && r.f.left.CompareAndSwap(false, true) {
		r.f.cfg.Warn(fmt.Sprintf("the %s failed (%v); going on from the %s", from.Name(), err, to.Name()))
	}
}

// pause waits before the next try, as long as the source asks where it does.
func (r *run) pause(ctx context.Context, err error) error {
	if r.stuck == 0 {
		return nil
	}
	wait := r.f.cfg.Pause << (r.stuck - 1)
	var status *origin.StatusError
	if errors.As(err, &status) && status.RetryAfter > wait {
		if status.RetryAfter > r.f.cfg.MaxPause {
			return r.failed(err)
		}
		wait = status.RetryAfter
	}
	r.f.cfg.Warn(fmt.Sprintf("%v; trying again in %s", err, wait))
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// algorithm is that of the digest to compute.
func (r *run) algorithm() string {
	if r.want.Digest != "" {
		return r.want.Digest.Algorithm()
	}
	return blob.FromBytes(nil).Algorithm()
}

func (r *run) digest() blob.Digest { return blob.Of(r.algorithm(), r.hash) }

// verify compares what came with the digest that was asked for, or that the
// source claimed, and fills in the result.
func (r *run) verify() *IntegrityError {
	r.result.Size, r.result.Digest = r.off, r.digest()
	want := r.want.Digest
	if want == "" && r.claimed.Algorithm() == r.algorithm() {
		want = r.claimed
	}
	if want == "" || want == r.result.Digest {
		return nil
	}
	return r.wrong(r.last, string(want), string(r.result.Digest))
}

// secondChance tells whether wrong bytes may be the fault of something that the
// next attempt leaves out: bytes of an earlier run, a source before the last,
// the joint of two sources.
func (r *run) secondChance() bool {
	switch {
	case r.result.Kept > 0:
		return true
	case r.at+1 < len(r.f.sources):
		r.at++
		r.stuck = 0
		return true
	case len(r.result.Sources) > 1 && !r.again:
		r.again = true
		return true
	}
	return false
}
