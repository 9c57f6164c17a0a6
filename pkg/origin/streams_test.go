package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/limit"
)

// slowOrigin serves content at a pace, in a synctest bubble.
type slowOrigin struct {
	content []byte
	perConn int // bytes a second of each answer; 0: no limit
	inAll   int // of all of them together; 0: no limit
	// answer, where it is set, may answer the n-th request, from 1, in another way, and
	// tells that it did. A writer that it is given keeps to the pace.
	answer func(w http.ResponseWriter, r *http.Request, n int) bool

	mu   sync.Mutex
	free time.Time // when the line is
	sent int
	now  int // requests under way
	most int
}

func (o *slowOrigin) ServeHTTP(w http.ResponseWriter, r *http.Request, n int) {
	o.mu.Lock()
	o.now++
	o.most = max(o.most, o.now)
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.now--
		o.mu.Unlock()
	}()
	paced := &slowWriter{ResponseWriter: w, origin: o, ctx: r.Context(), perSecond: o.perConn}
	if o.answer != nil && o.answer(paced, r, n) {
		return
	}
	serveBytes(paced, r, o.content)
}

// serve makes o the registry of a new network.
func (o *slowOrigin) serve(t testing.TB) (*memNet, *record) {
	return registryOf(t, o.ServeHTTP)
}

func (o *slowOrigin) counts() (sent, most int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.sent, o.most
}

// alone is how long one stream takes.
func (o *slowOrigin) alone() time.Duration {
	perSecond := o.perConn
	if perSecond == 0 || o.inAll > 0 && o.inAll < perSecond {
		perSecond = o.inAll
	}
	return time.Duration(float64(len(o.content)) / float64(perSecond) * float64(time.Second))
}

type slowWriter struct {
	http.ResponseWriter
	origin    *slowOrigin
	ctx       context.Context
	perSecond int
}

func (w *slowWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
func (w *slowWriter) Flush()                      { w.ResponseWriter.(http.Flusher).Flush() }

func (w *slowWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), 16<<10)]
		o := w.origin
		until := time.Now()
		if w.perSecond > 0 {
			until = until.Add(time.Duration(len(part)) * time.Second / time.Duration(w.perSecond))
		}
		o.mu.Lock()
		if o.inAll > 0 {
			if o.free.Before(time.Now()) {
				o.free = time.Now()
			}
			o.free = o.free.Add(time.Duration(len(part)) * time.Second / time.Duration(o.inAll))
			if o.free.After(until) {
				until = o.free
			}
		}
		o.mu.Unlock()
		select {
		case <-time.After(time.Until(until)):
		case <-w.ctx.Done():
			return n, w.ctx.Err()
		}
		m, err := w.ResponseWriter.Write(part)
		n += m
		o.mu.Lock()
		o.sent += m
		o.mu.Unlock()
		if err != nil {
			return n, err
		}
		p = p[m:]
	}
	return n, nil
}

// readTimed reads the whole content and tells how long that took.
func readTimed(t testing.TB, c *Client, ref Ref, size int) ([]byte, time.Duration, error) {
	t.Helper()
	began := time.Now()
	got, err := readAll(t, c, ref, nil, int64(size), 0, -1)
	return got, time.Since(began), err
}

// checkIdle fails when a host's places or memory were not given back.
func checkIdle(t testing.TB, c *Client) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		if h.gate.users != 0 || h.streams.places != 0 || h.streams.bytes != 0 || h.streams.reads != 0 {
			t.Errorf("%s: %d requests, %d streams, %d bytes, %d reads are still counted", h.name,
				h.gate.users, h.streams.places, h.streams.bytes, h.streams.reads)
		}
	}
}

const slowConn = 4_000_000

// Where each connection is slow, eight streams bring the content in little more than an
// eighth of the time, and no byte twice.
func TestStreamsOfSlowConnections(t *testing.T) {
	for _, size := range []int{24 << 20, 64 << 20} {
		t.Run(fmt.Sprint(size>>20), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := &slowOrigin{content: content(size), perConn: slowConn}
				n, rec := o.serve(t)
				c := testClient(t, n, nil)
				got, took, err := readTimed(t, c, blobRef(o.content), size)
				if err != nil || !bytes.Equal(got, o.content) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				sent, most := o.counts()
				if best := o.alone() / 8; took > best*5/4+100*time.Millisecond {
					t.Errorf("took %s, eight streams at once %s", took, best)
				}
				// The origin may not yet know of a stream that has ended.
				if sent > size+size/100 || most > 8+2 {
					t.Errorf("the origin sent %d of %d bytes, by %d streams at a time", sent, size, most)
				}
				if first := rec.ranges()[0]; first != "" {
					t.Errorf("the first request was for %q", first)
				}
				checkIdle(t, c)
			})
		})
	}
}

// Where one connection fills the line, others do no harm: they are given up without a
// byte or a request lost.
func TestStreamsOfFullLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &slowOrigin{content: content(64 << 20), inAll: 10_000_000}
		n, rec := o.serve(t)
		got, took, err := readTimed(t, testClient(t, n, nil), blobRef(o.content), len(o.content))
		if err != nil || !bytes.Equal(got, o.content) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		sent, _ := o.counts()
		if took > o.alone()*102/100 || sent > len(o.content)*101/100 || rec.count() > 3 {
			t.Errorf("took %s, one stream %s; %d of %d bytes by %d requests", took, o.alone(), sent, len(o.content), rec.count())
		}
	})
}

// One stream is all there is where more are not wanted or of no use.
func TestStreamsNotTried(t *testing.T) {
	b := content(32 << 20)
	slow := func(size int) *slowOrigin { return &slowOrigin{content: b[:size], perConn: slowConn} }
	for name, k := range map[string]struct {
		origin *slowOrigin
		config func(*Config)
		limit  int64
		pace   int // bytes a second that are read; 0: no limit
	}{
		"switched off":       {origin: slow(16 << 20), config: func(c *Config) { c.MaxStreams = 1 }},
		"no place":           {origin: slow(16 << 20), config: func(c *Config) { c.MaxRequests = 1 }},
		"little":             {origin: slow(8 << 20)},
		"quick":              {origin: &slowOrigin{content: b, perConn: 60_000_000}},
		"limited":            {origin: slow(16 << 20), limit: 3_000_000},
		"read slower":        {origin: slow(16 << 20), pace: 2_000_000},
		"ranges not offered": {origin: &slowOrigin{content: b[:16<<20], perConn: slowConn, answer: noRanges}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, rec := k.origin.serve(t)
				c := testClient(t, n, k.config)
				c.Limit(limit.New(k.limit))
				r, err := c.Read(t.Context(), blobRef(k.origin.content), nil, int64(len(k.origin.content)), 0, -1)
				if err != nil {
					t.Fatal(err)
				}
				var got bytes.Buffer
				for buf := make([]byte, 100<<10); err == nil; {
					var n int
					n, err = r.Read(buf)
					got.Write(buf[:n])
					if k.pace > 0 {
						pass(time.Duration(n) * time.Second / time.Duration(k.pace))
					}
				}
				if err != io.EOF || !bytes.Equal(got.Bytes(), k.origin.content) || rec.count() != 1 {
					t.Errorf("%d bytes, %v, %d requests", got.Len(), err, rec.count())
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func noRanges(w http.ResponseWriter, r *http.Request, _ int) bool {
	w.Header().Set("Accept-Ranges", "none")
	_, _ = w.Write(headOf(w, r, content(16<<20)))
	return true
}

// A limit of this node is one for all streams together.
func TestStreamsKeepWithinLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &slowOrigin{content: content(32 << 20), perConn: slowConn}
		n, _ := o.serve(t)
		c := testClient(t, n, nil)
		c.Limit(limit.New(2 * slowConn))
		got, took, err := readTimed(t, c, blobRef(o.content), len(o.content))
		if err != nil || !bytes.Equal(got, o.content) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if took < o.alone()/2*95/100 || took > o.alone()/2*13/10 {
			t.Errorf("took %s at half of %s", took, o.alone())
		}
	})
}

// Reads of one host share what helps them.
func TestStreamsShareHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &slowOrigin{content: content(20 << 20), perConn: slowConn}
		n, _ := o.serve(t)
		c := testClient(t, n, func(c *Config) { c.MaxExtraStreams = 6 })
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if got, took, err := readTimed(t, c, blobRef(o.content), len(o.content)); err != nil || !bytes.Equal(got, o.content) || took > o.alone()*2/3 {
					t.Errorf("%d bytes in %s, %v; alone %s", len(got), took, err, o.alone())
				}
			})
		}
		wg.Wait()
		if _, most := o.counts(); most > 3+6+2 {
			t.Errorf("%d streams at a time", most)
		}
		checkIdle(t, c)
	})
}

// Whatever ends a read ends its streams, and gives everything back.
func TestStreamsEnd(t *testing.T) {
	b := content(32 << 20)
	for name, end := range map[string]func(r io.Closer, cancel func()) error{
		"closed":    func(r io.Closer, _ func()) error { _ = r.Close(); return os.ErrClosed },
		"cancelled": func(_ io.Closer, cancel func()) error { cancel(); return context.Canceled },
	} {
		for _, after := range []time.Duration{50 * time.Millisecond, 150 * time.Millisecond, 300 * time.Millisecond, time.Second} {
			t.Run(fmt.Sprint(name, " after ", after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					o := &slowOrigin{content: b, perConn: slowConn}
					n, _ := o.serve(t)
					c := testClient(t, n, nil)
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					r, err := c.Read(ctx, blobRef(o.content), nil, int64(len(o.content)), 0, -1)
					if err != nil {
						t.Fatal(err)
					}
					var want error
					time.AfterFunc(after, func() { want = end(r, cancel) })
					began := time.Now()
					got, err := io.ReadAll(r)
					if took := time.Since(began); took > after+50*time.Millisecond {
						t.Errorf("ended after %s", took)
					}
					synctest.Wait()
					if !errors.Is(err, want) || !bytes.HasPrefix(o.content, got) {
						t.Errorf("%d bytes, %v, want %v", len(got), err, want)
					}
					for range 2 {
						if err := r.Close(); err != nil {
							t.Error(err)
						}
					}
					checkIdle(t, c)
				})
			})
		}
	}
}
