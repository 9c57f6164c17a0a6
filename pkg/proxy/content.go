package proxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
)

// content is the part of a blob that one response sends, as http.ServeContent
// reads it. It opens the blob once for each span, so that no more of it is
// fetched than the spans cover. Its methods are for one goroutine at a time, but
// for close and failure.
type content struct {
	ctx   context.Context
	tasks Tasks
	req   Request // Size is known once started
	spans []span
	pos   int64
	gate  *gate // nil: all may go out

	failed atomic.Pointer[error]
	// turn holds one token. Who has it may use what is below: http.ServeContent can
	// return while a goroutine of its own still reads.
	turn    chan struct{}
	closed  bool
	open    Handle        // nil before the first
	reader  io.ReadSeeker // of open, at readPos; -1 is nowhere
	readPos int64
	span    span // that open covers
}

func newContent(ctx context.Context, tasks Tasks, req Request) *content {
	c := &content{ctx: ctx, tasks: tasks, req: req, turn: make(chan struct{}, 1)}
	c.turn <- struct{}{}
	return c
}

// start opens the first span that the request wants and returns the blob's size.
// It leaves the range in the request that http.ServeContent is to serve. The size that is
// known before is a hint; what is opened knows better, where it is held whole.
func (c *content) start(r *http.Request, etag string) (int64, error) {
	asked := rangeOf(r, etag)
	for {
		spans, err := parseRange(asked, c.req.Size)
		if err != nil && c.req.Size > 0 {
			return c.req.Size, err
		}
		if c.spans = spans; c.req.Size <= 0 {
			c.spans = nil
		}
		if err := c.switchTo(c.first()); err != nil {
			return c.req.Size, err
		}
		size, err := c.sizeOfOpen()
		if err != nil {
			return c.req.Size, err
		}
		if size == c.req.Size || size == 0 {
			break
		}
		whole := c.req.Size <= 0
		if c.req.Size = size; whole { // all of it is open, whatever is wanted
			if c.spans, err = parseRange(asked, size); err != nil {
				return size, err
			}
			break
		}
	}
	if s := formatRange(c.spans); s != "" {
		r.Header.Set("Range", s)
	}
	c.pos = c.first().off
	return c.req.Size, nil
}

func (c *content) sizeOfOpen() (int64, error) {
	if f, ok := c.open.Sealed(); ok {
		defer f.Close()
		return f.Seek(0, io.SeekEnd)
	}
	return c.reader.Seek(0, io.SeekEnd)
}

// first is the first span that is wanted; {0, -1} is the whole blob.
func (c *content) first() span {
	if len(c.spans) == 0 {
		return span{0, -1}
	}
	return c.spans[0]
}

// switchTo opens the blob for a span and closes what was open before.
func (c *content) switchTo(s span) error {
	req := c.req
	req.Offset, req.Length = s.off, s.n
	if s.n >= 0 && s.off+s.n == c.req.Size {
		req.Length = -1
	}
	h, err := c.tasks.Open(c.ctx, req)
	if err != nil {
		return err
	}
	if c.open != nil {
		_ = c.open.Close()
	}
	c.open, c.reader, c.readPos, c.span = h, h.Content(), -1, s
	return nil
}

// sealed is the whole blob as a file, if it is held.
func (c *content) sealed() (*os.File, bool) { return c.open.Sealed() }

// ready waits for the first byte that is wanted.
func (c *content) ready(ctx context.Context) error { return c.open.Ready(ctx, c.pos) }

// Seek implements io.Seeker over the whole blob.
func (c *content) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.pos
	case io.SeekEnd:
		offset += c.req.Size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d: before the start of the blob", offset)
	}
	c.pos = offset
	return offset, nil
}

// Read implements io.Reader; it waits for bytes that are not here yet.
func (c *content) Read(b []byte) (int, error) {
	if c.pos >= c.req.Size {
		return 0, io.EOF
	}
	if g := c.gate; g != nil {
		if c.pos < g.open.off || c.pos >= g.open.off+g.open.n {
			if err := g.at(c.ctx, c, c.pos); err != nil {
				c.failed.CompareAndSwap(nil, &err)
				return 0, err
			}
		}
		b = b[:min(int64(len(b)), g.open.off+g.open.n-c.pos)]
	}
	<-c.turn
	n, err := c.read(b)
	c.turn <- struct{}{}
	if err != nil {
		c.failed.CompareAndSwap(nil, &err)
	}
	return n, err
}

// readAt reads from off, wherever the response is, and opens what is within s where that
// is not open.
func (c *content) readAt(b []byte, off int64, s span) (int, error) {
	<-c.turn
	defer func() { c.turn <- struct{}{} }()
	if c.closed {
		return 0, errClosed
	}
	if off < c.span.off || c.span.n >= 0 && s.off+s.n > c.span.off+c.span.n {
		if err := c.switchTo(s); err != nil {
			return 0, err
		}
	}
	back := c.pos
	defer func() { c.pos = back }()
	c.pos = off
	return c.read(b)
}

func (c *content) read(b []byte) (int, error) {
	if c.closed {
		return 0, errClosed
	}
	if s, ok := c.covering(c.pos); !ok {
		if err := c.switchTo(s); err != nil {
			return 0, err
		}
	}
	if c.readPos != c.pos {
		if _, err := c.reader.Seek(c.pos, io.SeekStart); err != nil {
			return 0, err
		}
	}
	n, err := c.reader.Read(b)
	c.pos += int64(n)
	c.readPos = c.pos
	if err == io.EOF {
		err = nil
		if n == 0 {
			err = io.ErrUnexpectedEOF // Read does not come here at the blob's end
		}
	}
	return n, err
}

// covering is the wanted span that holds the byte at off, and whether what is
// open covers it.
func (c *content) covering(off int64) (span, bool) {
	has := func(s span) bool { return off >= s.off && (s.n < 0 || off < s.off+s.n) }
	if has(c.span) {
		return c.span, true
	}
	for _, s := range c.spans {
		if has(s) {
			return s, false
		}
	}
	return span{off, -1}, false
}

// failure is the first error of a Read, nil where there was none.
func (c *content) failure() error {
	if err := c.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// close gives up what is open. The context of c must have ended, so that a Read
// that waits does too.
func (c *content) close() {
	<-c.turn
	c.closed = true
	if c.open != nil {
		_ = c.open.Close()
	}
	c.turn <- struct{}{}
}
