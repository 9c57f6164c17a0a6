package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

func TestReadersFollowTheWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.Open(t, store.Config{})
		c := storetest.Random(t, 1, 4*pieceLength+9)
		b := create(t, s, c)
		defer b.Release()
		var wg sync.WaitGroup
		for _, at := range []struct{ off, n int64 }{{0, -1}, {10, 20}, {pieceLength + 1, 2 * pieceLength}, {c.Size() - 1, -1}, {c.Size(), -1}, {3, 1 << 62}} {
			wg.Go(func() {
				r := b.Reader(t.Context(), at.off, at.n)
				defer r.Close()
				var buf bytes.Buffer
				n, err := r.WriteTo(&buf)
				end := c.Size()
				if at.n >= 0 && at.n < end-at.off {
					end = at.off + at.n
				}
				if err != nil || n != end-at.off || !bytes.Equal(buf.Bytes(), c.Data[at.off:end]) {
					t.Errorf("reader of %d+%d: %d bytes, %v", at.off, at.n, n, err)
				}
			})
		}
		wg.Go(func() {
			for _, i := range []int{4, 2, 1, 3, 0} { // links 1.. come late
				time.Sleep(time.Second)
				_ = b.AddLinks(0, c.Links)
				if err := b.Put(i, c.Piece(i)); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Wait()
	})
}

// TestReaderGetsWhatIsHere holds cut-through: bytes that have come are handed out
// while others are waited for, and the last piece only with the seal.
func TestReaderGetsWhatIsHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.Open(t, store.Config{})
		c := storetest.Random(t, 1, 3*pieceLength)
		b := create(t, s, c)
		defer b.Release()
		got := make(chan int, 100)
		done := make(chan error, 1)
		r := b.Reader(t.Context(), 0, -1)
		go func() {
			defer r.Close()
			buf := make([]byte, pieceLength)
			for {
				n, err := r.Read(buf)
				if n > 0 {
					got <- n
				}
				if err != nil {
					done <- err
					return
				}
			}
		}()
		total := func() (n int) {
			synctest.Wait()
			for len(got) > 0 {
				n += <-got
			}
			return n
		}
		_ = b.AddLinks(0, c.Links)
		for _, step := range []struct{ put, want int }{{0, pieceLength}, {2, 0}, {1, 2 * pieceLength}} {
			if err := b.Put(step.put, c.Piece(step.put)); err != nil {
				t.Fatal(err)
			}
			if n := total(); n != step.want {
				t.Errorf("after piece %d the reader got %d bytes, want %d", step.put, n, step.want)
			}
		}
		if err := <-done; err != io.EOF {
			t.Error(err)
		}
	})
}

func TestWaitingEnds(t *testing.T) {
	gaveUp := errors.New("the origin said no")
	for name, test := range map[string]struct {
		end  func(s *store.Store, b *store.Blob, cancel context.CancelCauseFunc)
		want error
	}{
		"cancel": {func(_ *store.Store, _ *store.Blob, cancel context.CancelCauseFunc) { cancel(gaveUp) }, gaveUp},
		"fail":   {func(_ *store.Store, b *store.Blob, _ context.CancelCauseFunc) { b.Fail(gaveUp) }, gaveUp},
		"remove": {func(s *store.Store, b *store.Blob, _ context.CancelCauseFunc) { _ = s.Remove(b.Digest()) }, store.ErrRemoved},
		"close":  {func(s *store.Store, _ *store.Blob, _ context.CancelCauseFunc) { _ = s.Close() }, store.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := storetest.Open(t, store.Config{})
				c := storetest.Random(t, 1, 3*pieceLength)
				b := create(t, s, c)
				defer b.Release()
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				errs := make(chan error, 3)
				go func() { errs <- b.Wait(ctx, 5) }()
				go func() { errs <- b.Wait(ctx, c.Size()-1) }()
				go func() {
					_, err := storetest.Read(ctx, b)
					errs <- err
				}()
				synctest.Wait()
				if len(errs) > 0 {
					t.Fatalf("did not wait: %v", <-errs)
				}
				test.end(s, b, cancel)
				for range 3 {
					wantError(t, "waiting", <-errs, test.want)
				}
			})
		})
	}
}

func TestReaderClosedWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.Open(t, store.Config{})
		b := create(t, s, storetest.Random(t, 1, 100))
		defer b.Release()
		r := b.Reader(t.Context(), 0, -1)
		err := make(chan error, 1)
		go func() {
			_, e := r.Read(make([]byte, 1))
			err <- e
		}()
		synctest.Wait()
		_ = r.Close()
		_ = r.Close()
		wantError(t, "read", <-err, os.ErrClosed)
	})
}

// TestFailIsForThoseWhoAreThere: a task that gave up does not spoil the next.
func TestFailIsForThoseWhoAreThere(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c := storetest.Random(t, 1, 2*pieceLength)
	b := create(t, s, c)
	defer b.Release()
	if err := b.Extend(0, c.Piece(0)); err != nil {
		t.Fatal(err)
	}
	old := b.Reader(t.Context(), 0, -1)
	defer old.Close()
	gaveUp := errors.New("gave up")
	b.Fail(gaveUp)
	got, err := io.ReadAll(old)
	wantError(t, "old reader", err, gaveUp)
	if !bytes.Equal(got, c.Piece(0)) {
		t.Errorf("old reader got %d bytes, want those that were here", len(got))
	}
	next := b.Reader(t.Context(), 0, -1)
	defer next.Close()
	storetest.Fill(t, s, c)
	if got, err := io.ReadAll(next); err != nil || !bytes.Equal(got, c.Data) {
		t.Errorf("reader opened later: %d bytes, %v", len(got), err)
	}
}

// TestResetAndReaders: who has got bytes that are not vouched for any more must
// not get a completed blob; who has got none need not notice.
func TestResetAndReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.Open(t, store.Config{})
		c, evil := storetest.Random(t, 1, 3*pieceLength), storetest.Random(t, 2, 3*pieceLength)
		b := create(t, s, c)
		defer b.Release()
		if err := b.Extend(0, evil.Piece(0)); err != nil {
			t.Fatal(err)
		}
		begun := b.Reader(t.Context(), 0, -1)
		defer begun.Close()
		if _, err := io.ReadFull(begun, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		begunErr, waited := make(chan error, 1), make(chan []byte, 1)
		go func() {
			_, err := io.ReadAll(begun)
			begunErr <- err
		}()
		go func() {
			r := b.Reader(t.Context(), pieceLength, -1)
			defer r.Close()
			got, err := io.ReadAll(r)
			if err != nil {
				t.Error(err)
			}
			waited <- got
		}()
		synctest.Wait()
		if err := b.Reset(); err != nil {
			t.Fatal(err)
		}
		storetest.Fill(t, s, c)
		wantError(t, "reader that had begun", <-begunErr, store.ErrReset)
		if !bytes.Equal(<-waited, c.Data[pieceLength:]) {
			t.Error("reader that had got nothing reads other bytes")
		}
	})
}

func TestReadSeekerServesHTTP(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c := storetest.Random(t, 1, 2*pieceLength+33)
	storetest.Fill(t, s, c)
	b, _ := s.Get(c.Digest)
	defer b.Release()
	for header, want := range map[string]struct {
		status   int
		from, to int64
	}{
		"":                 {200, 0, c.Size()},
		"bytes=0-":         {206, 0, c.Size()},
		"bytes=100-262243": {206, 100, 262244},
		"bytes=-5":         {206, c.Size() - 5, c.Size()},
		"bytes=9999999-":   {416, 0, 0},
	} {
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		if header != "" {
			req.Header.Set("Range", header)
		}
		rec := httptest.NewRecorder()
		r := b.ReadSeeker(t.Context())
		rec.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(rec, req, "", time.Time{}, r)
		_ = r.Close()
		if rec.Code != want.status || want.status != 416 && !bytes.Equal(rec.Body.Bytes(), c.Data[want.from:want.to]) {
			t.Errorf("Range %q: status %d, %d bytes", header, rec.Code, rec.Body.Len())
		}
	}
	r := b.ReadSeeker(t.Context())
	defer r.Close()
	for _, seek := range []struct {
		off    int64
		whence int
		want   int64
	}{{0, io.SeekEnd, c.Size()}, {-10, io.SeekCurrent, c.Size() - 10}, {5, io.SeekStart, 5}, {c.Size() + 7, io.SeekStart, c.Size() + 7}} {
		if got, err := r.Seek(seek.off, seek.whence); err != nil || got != seek.want {
			t.Errorf("Seek(%d, %d) = %d, %v", seek.off, seek.whence, got, err)
		}
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read past the end: %d, %v", n, err)
	}
	if _, err := r.Seek(-1, io.SeekStart); err == nil {
		t.Error("seek before the start")
	}
}

func TestManyWritersAndReaders(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c := storetest.Random(t, 1, 12*pieceLength+1)
	b := create(t, s, c)
	defer b.Release()
	if err := b.AddLinks(0, c.Links); err != nil {
		t.Fatal(err)
	}
	evil := storetest.Random(t, 2, c.Size())
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for k := range c.Layout.Pieces() {
				i := (k*5 + w*3) % c.Layout.Pieces() // each piece comes from each writer
				if err := b.Put(i, evil.Piece(i)); err != nil {
					wantError(t, "wrong piece", err, blob.ErrMismatch)
				}
				if err := b.Put(i, c.Piece(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 6 {
		wg.Go(func() { mustRead(t, b, c) })
	}
	wg.Wait()
	if !b.Sealed() {
		t.Error("not sealed")
	}
}

// TestResetUnderWriters resets a blob while pieces of a wrong chain and of the
// right one come in, and still ends with the right bytes.
func TestResetUnderWriters(t *testing.T) {
	s := storetest.Open(t, store.Config{})
	c, evil := storetest.Random(t, 1, 6*pieceLength), storetest.Random(t, 2, 6*pieceLength)
	for range 5 {
		b := create(t, s, c)
		if err := b.AddLinks(0, evil.Links); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		start := make(chan struct{})
		for _, from := range []*storetest.Content{c, evil, evil} {
			wg.Go(func() {
				<-start
				for i := range c.Layout.Pieces() {
					if err := b.Put(i, from.Piece(i)); err != nil && !errors.Is(err, blob.ErrMismatch) && !errors.Is(err, blob.ErrUnknownLink) {
						t.Error(err)
					}
				}
			})
		}
		wg.Go(func() {
			<-start
			for range 3 {
				if err := b.Reset(); err != nil {
					t.Error(err)
				}
			}
			if err := b.AddLinks(0, c.Links); err != nil && !errors.Is(err, blob.ErrConflict) {
				t.Error(err)
			}
		})
		close(start)
		wg.Wait()
		storetest.Fill(t, s, c)
		mustRead(t, b, c)
		b.Release()
		if err := s.Remove(c.Digest); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEverythingAtOnce has tasks fetch, read, remove, reset and pin the same few
// blobs in a store that is too small for them. Whoever reads a blob to its end has
// the right bytes, and nothing stays behind.
func TestEverythingAtOnce(t *testing.T) {
	s := storetest.Open(t, store.Config{MaxBytes: 6 * pieceLength})
	var c []*storetest.Content
	for i := range 4 {
		c = append(c, storetest.Random(t, uint64(i), int64(i+1)*pieceLength-int64(i)))
	}
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 7))
			for range 25 {
				c := c[rng.IntN(len(c))]
				switch rng.IntN(8) {
				case 0:
					_ = s.Remove(c.Digest)
				case 1:
					_ = s.Pin(c.Digest)
					_ = s.Unpin(c.Digest)
				case 2:
					if b, ok := s.Get(c.Digest); ok {
						_ = b.Reset()
						b.Release()
					}
				default:
					fetchAndRead(t, s, c)
				}
			}
		})
	}
	wg.Wait()
	var sum int64
	for _, i := range s.Blobs() {
		sum += i.Size
		if i.InUse || i.Pinned {
			t.Errorf("left behind: %+v", i)
		}
	}
	if got := s.Reserved(); got != sum {
		t.Errorf("%d bytes reserved for %d", got, sum)
	}
}

func fetchAndRead(t *testing.T, s *store.Store, c *storetest.Content) {
	b, err := s.Create(c.Digest, c.Size())
	if err != nil {
		if !errors.Is(err, store.ErrRemoved) { // by another goroutine, at once
			wantError(t, "create", err, store.ErrNoSpace)
		}
		return
	}
	defer b.Release()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		got, err := storetest.Read(ctx, b)
		if err == nil && !bytes.Equal(got, c.Data) {
			t.Error("read other bytes to the end")
		}
	})
	for i := b.Front(); i < c.Layout.Pieces(); i = b.Front() {
		err := b.Extend(i, c.Piece(i))
		if errors.Is(err, store.ErrRemoved) {
			break
		}
		// Another task may have reset the blob since Front.
		if err != nil && !errors.Is(err, blob.ErrUnknownLink) {
			t.Error(err)
			break
		}
	}
	if !b.Sealed() {
		cancel()
	}
	wg.Wait()
}
