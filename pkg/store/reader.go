package store

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
)

// copyLength is the size of the buffer that a Reader copies through, in bytes.
const copyLength = 256 << 10

// Reader reads bytes of one blob in order and waits for those that are not here.
// It hands out the blob's last piece only when the blob is sealed: who has read a
// whole blob has read the bytes that its digest names.
//
// It ends with io.EOF at its end; with the cause of ctx's end; with what was
// given to Blob.Fail; with an error that wraps ErrRemoved, ErrDamaged or ErrClosed
// when the blob ends or loses bytes that it needs; and with one that wraps
// ErrReset when the blob was started over after this reader had handed out bytes.
//
// It keeps the blob in use until Close. Read, WriteTo and Seek are for one
// goroutine at a time; Close may come from any.
type Reader struct {
	b        *Blob
	ctx      context.Context
	off, end int64
	fails    uint64 // the blob's count when this reader began
	given    bool   // bytes were handed out
	reached  int64  // the end of those
	resets   uint64 // the blob's count when they were proven
	once     sync.Once
	closed   chan struct{}
}

// Reader returns a reader of the n bytes at off, to the end of the blob if n < 0.
// What lies outside of the blob is cut off. The caller has the blob in use, and
// closes the reader.
func (b *Blob) Reader(ctx context.Context, off, n int64) *Reader {
	size := b.layout.Size()
	off = max(0, min(off, size))
	if n < 0 || n > size-off {
		n = size - off
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refs++
	return &Reader{b: b, ctx: ctx, off: off, end: off + n, fails: b.fails, closed: make(chan struct{})}
}

// ReadSeeker returns a reader of the whole blob that can seek, as
// http.ServeContent wants it. Seeking waits for nothing. See Reader.
func (b *Blob) ReadSeeker(ctx context.Context) io.ReadSeekCloser {
	return &readSeeker{b.Reader(ctx, 0, -1)}
}

// Wait returns when the byte at off can be read without waiting, or with the
// error that a Reader would end with. A byte past the end needs no waiting.
func (b *Blob) Wait(ctx context.Context, off int64) error {
	r := b.Reader(ctx, off, -1)
	defer r.Close()
	if r.off == r.end {
		return nil
	}
	_, _, err := r.wait(1)
	return err
}

// Read implements io.Reader. It returns what is here, and waits only for the
// first byte.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if r.off >= r.end {
			return 0, io.EOF
		}
		n, gen, err := r.wait(min(int64(len(p)), r.end-r.off))
		if err != nil {
			return 0, err
		}
		f, err := r.b.enter()
		if err != nil {
			return 0, err
		}
		got, err := r.b.readFile(f, p[:n], r.off)
		r.b.Release()
		if !r.b.still(gen) {
			continue // not proven any more; wait tells how it goes on
		}
		r.off += int64(got)
		r.given = r.given || got > 0
		r.reached = max(r.reached, r.off)
		return got, err
	}
}

// WriteTo implements io.WriterTo: it copies until the end through a buffer that
// readers share.
func (r *Reader) WriteTo(w io.Writer) (written int64, err error) {
	buf, ok := r.b.store.copies.Get().(*[copyLength]byte)
	if !ok {
		buf = new([copyLength]byte)
	}
	defer r.b.store.copies.Put(buf)
	for {
		n, err := r.Read(buf[:])
		if n > 0 {
			m, werr := w.Write(buf[:n])
			written += int64(m)
			if werr != nil {
				return written, werr
			}
		}
		if err == io.EOF {
			return written, nil
		}
		if err != nil {
			return written, err
		}
	}
}

// Close ends the reader and its use of the blob. It is idempotent.
func (r *Reader) Close() error {
	r.once.Do(func() {
		close(r.closed)
		r.b.Release()
	})
	return nil
}

// wait waits for the byte at r.off, which lies in the blob. It returns how many
// of the n bytes from there may be read, and in which generation.
func (r *Reader) wait(n int64) (int64, uint64, error) {
	b := r.b
	for {
		if r.ctx.Err() != nil {
			return 0, 0, fmt.Errorf("store: read %s: %w", b.digest, context.Cause(r.ctx))
		}
		select {
		case <-r.closed:
			return 0, 0, os.ErrClosed
		default:
		}
		ready, gen, wake, err := r.poll(n)
		if err != nil || ready > 0 {
			return ready, gen, err
		}
		if wake == nil {
			if err := r.checkClaim(); err != nil {
				return 0, 0, err
			}
			continue
		}
		select {
		case <-wake:
		case <-r.ctx.Done():
		case <-r.closed:
		}
	}
}

// poll tells what wait can return now. When that is nothing, wake is closed as
// soon as it may be different, or is nil when the piece is on disk unchecked.
func (r *Reader) poll(n int64) (ready int64, gen uint64, wake <-chan struct{}, err error) {
	b := r.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.err; err != nil {
		return 0, 0, nil, err
	}
	if missed := b.resets - r.resets; r.given && missed > 0 && (missed > 1 || r.reached > b.stands) {
		return 0, 0, nil, fmt.Errorf("store: read %s: %w", b.digest, ErrReset)
	}
	r.resets = b.resets
	if ready := b.readableLocked(r.off, n); ready > 0 {
		return ready, b.gen, nil, nil
	}
	i := b.layout.At(r.off)
	if b.claimLocked(i) >= 0 {
		return 0, 0, nil, nil
	}
	if r.fails != b.fails {
		return 0, 0, nil, b.failed
	}
	w := b.waits[i]
	if w == nil {
		w = make(chan struct{})
		if b.waits == nil {
			b.waits = map[int]chan struct{}{}
		}
		b.waits[i] = w
	}
	return 0, 0, w, nil
}

func (r *Reader) checkClaim() error {
	f, err := r.b.enter()
	if err != nil {
		return err
	}
	defer r.b.Release()
	if err := r.b.load(); err != nil {
		return err
	}
	r.b.mu.Lock()
	i := r.b.claimLocked(r.b.layout.At(r.off))
	r.b.mu.Unlock()
	if i < 0 {
		return nil
	}
	return r.b.check(f, i)
}

// readSeeker is a Reader of a whole blob that seeks.
type readSeeker struct{ *Reader }

// Seek implements io.Seeker.
func (r *readSeeker) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.b.layout.Size()
	case io.SeekStart:
	default:
		return 0, fmt.Errorf("store: seek %s: whence %d", r.b.digest, whence)
	}
	if offset < 0 {
		return 0, fmt.Errorf("store: seek %s: offset %d before the start", r.b.digest, offset)
	}
	r.off = offset
	return offset, nil
}
