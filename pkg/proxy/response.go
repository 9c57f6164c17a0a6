package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Results of pulls, as the metric's label has them.
const (
	resultHit      = "hit"       // was held whole
	resultMiss     = "miss"      // came while the client waited
	resultPassed   = "passed"    // the origin's, not kept
	resultDenied   = "denied"    // 401, 403
	resultNotFound = "not_found" // 404
	resultLimited  = "limited"   // 429
	resultFailed   = "failed"    // another status
	resultShort    = "short"     // failed after the headers: the client saw a short body
	resultAborted  = "aborted"   // the client went away
)

func resultOf(status int) string {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return resultDenied
	case http.StatusNotFound, http.StatusGone:
		return resultNotFound
	case http.StatusTooManyRequests:
		return resultLimited
	}
	return resultFailed
}

func resultOfHeld(held bool) string {
	if held {
		return resultHit
	}
	return resultMiss
}

// errClientGone: the client took no more bytes.
var errClientGone = errors.New("client went away")

const (
	// copyChunk is read from a waiting blob at a time.
	copyChunk = 128 << 10
	// sendChunk is handed to sendfile at a time. The client must take it within
	// Config.WriteTimeout, so it bounds the slowest client from below.
	sendChunk = 512 << 10
)

// response is the http.ResponseWriter of every face. It counts, keeps the
// client's write deadline moving, sends headers at once where asked to, and
// lets a file go out by sendfile. It belongs to one request.
type response struct {
	http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	buffers *sync.Pool // of *[copyChunk]byte

	// localize, if set, rewrites headers before they go out.
	localize func(http.Header)
	// flushHeader sends the headers without waiting for the first byte.
	flushHeader bool
	// result is the pull's result, "" where the request is none.
	result string

	status   int
	written  int64
	err      error // of the first write that failed
	deadline time.Time
}

func newResponse(w http.ResponseWriter, timeout time.Duration, buffers *sync.Pool) *response {
	return &response{ResponseWriter: w, control: http.NewResponseController(w), timeout: timeout, buffers: buffers}
}

// Unwrap serves http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush implements http.Flusher.
func (w *response) Flush() { _ = w.control.Flush() }

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	if status >= 100 && status < 200 {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	if w.status != 0 {
		return
	}
	w.status = status
	if w.localize != nil {
		w.localize(w.Header())
	}
	w.extend()
	w.ResponseWriter.WriteHeader(status)
	if w.flushHeader {
		_ = w.control.Flush()
	}
}

// extend moves the write deadline. It spares the system call when that was done
// just now.
func (w *response) extend() {
	now := time.Now()
	if now.Add(w.timeout - w.timeout/8).Before(w.deadline) {
		return
	}
	w.deadline = now.Add(w.timeout)
	_ = w.control.SetWriteDeadline(w.deadline) // a test's recorder has none
}

// Write implements io.Writer.
func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.extend()
	n, err := w.ResponseWriter.Write(b)
	return n, w.count(int64(n), err)
}

func (w *response) count(n int64, err error) error {
	w.written += n
	if err != nil && w.err == nil {
		w.err = err
	}
	return err
}

// ReadFrom implements io.ReaderFrom: it sends a file, or the part of one that an
// io.LimitedReader leaves, by sendfile where the connection can, and everything
// else as it comes.
func (w *response) ReadFrom(src io.Reader) (int64, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if l, ok := src.(*io.LimitedReader); ok {
		if f, ok := l.R.(*os.File); ok {
			if to, ok := w.ResponseWriter.(io.ReaderFrom); ok {
				return w.sendFile(to, f, l)
			}
		}
	}
	buf, _ := w.buffers.Get().(*[copyChunk]byte)
	if buf == nil {
		buf = new([copyChunk]byte)
	}
	defer w.buffers.Put(buf)
	var total int64
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			m, werr := w.Write(buf[:n])
			total += int64(m)
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (w *response) sendFile(to io.ReaderFrom, f *os.File, l *io.LimitedReader) (int64, error) {
	var total int64
	for l.N > 0 {
		w.extend()
		want := min(l.N, sendChunk)
		n, err := to.ReadFrom(&io.LimitedReader{R: f, N: want})
		total += n
		l.N -= n
		if err := w.count(n, err); err != nil {
			return total, err
		}
		if n < want {
			return total, nil
		}
	}
	return total, nil
}

// finish tells what is wrong with a body that was sent: cause, the error of its
// reader, errClientGone, or that it is shorter than the headers said.
func (w *response) finish(cause error) error {
	switch {
	case cause != nil:
		return cause
	case errors.Is(w.err, syscall.EIO): // of the disk: sendfile tells both ends' errors
		return w.err
	case w.err != nil:
		return fmt.Errorf("%w: %w", errClientGone, w.err)
	}
	length, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
	if err == nil && (w.status == http.StatusOK || w.status == http.StatusPartialContent) && w.written < length {
		return fmt.Errorf("sent %d of %d bytes: %w", w.written, length, io.ErrUnexpectedEOF)
	}
	return nil
}
