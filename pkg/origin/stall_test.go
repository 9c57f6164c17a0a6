package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// An origin that falls silent, before or in a body, is asked again on another
// connection after StallTimeout; one that is merely slow is not.
func TestReadStall(t *testing.T) {
	for _, header := range []bool{true, false} {
		t.Run(fmt.Sprint("header ", header), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := content(2000)
				n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, n int) {
					switch n {
					case 1:
						_, _ = w.Write(headOf(w, r, b)[:100])
						w.(http.Flusher).Flush()
						<-r.Context().Done()
					case 2:
						if !header {
							<-r.Context().Done()
							return
						}
						fallthrough
					default:
						serveBytes(w, r, b)
					}
				})
				start := time.Now()
				got, err := readAll(t, testClient(t, n, nil), blobRef(b), nil, 2000, 0, -1)
				took := time.Since(start)
				if err != nil || !bytes.Equal(got, b) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				want := 20 * time.Second
				if !header {
					want *= 2
				}
				if took < want || took > want+2*time.Second {
					t.Errorf("took %s, want about %s", took, want)
				}
				if n.dialled() != rec.count() {
					t.Errorf("%d connections for %d requests", n.dialled(), rec.count())
				}
			})
		})
	}
}

// Connections that idle beside one that hangs are not trusted with the rest.
func TestReadStallLeavesIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, hang := content(1000), false
		n, _ := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
			if hang {
				hang = false
				_, _ = w.Write(headOf(w, r, b)[:100])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return
			}
			pass(time.Second)
			serveBytes(w, r, b)
		})
		c := testClient(t, n, nil)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { _, _ = readAll(t, c, blobRef(b), nil, 1000, 0, -1) })
		}
		wg.Wait()
		hang = true
		if got, err := readAll(t, c, blobRef(b), nil, 1000, 0, -1); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if n.dialled() != 3 {
			t.Errorf("%d connections, want two at first and a new one for the rest", n.dialled())
		}
	})
}

// What is slow has not stalled.
func TestReadSlow(t *testing.T) {
	t.Run("origin", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := content(50)
			n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
				headOf(w, r, b)
				for i := range b {
					pass(19 * time.Second)
					_, _ = w.Write(b[i : i+1])
					w.(http.Flusher).Flush()
				}
			})
			got, err := readAll(t, testClient(t, n, nil), blobRef(b), nil, 50, 0, -1)
			if err != nil || !bytes.Equal(got, b) || rec.count() != 1 {
				t.Errorf("%d bytes, %v, %d requests", len(got), err, rec.count())
			}
		})
	})
	t.Run("reader", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := content(100_000)
			n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) { serveBytes(w, r, b) })
			r, err := testClient(t, n, nil).Read(t.Context(), blobRef(b), nil, int64(len(b)), 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			buf := make([]byte, 10_000)
			for err == nil {
				var n int
				pass(time.Minute)
				n, err = r.Read(buf)
				got = append(got, buf[:n]...)
			}
			_ = r.Close()
			if err != io.EOF || !bytes.Equal(got, b) || rec.count() != 1 {
				t.Errorf("%d bytes, %v, %d requests", len(got), err, rec.count())
			}
		})
	})
}

func TestReadStallsForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) { <-r.Context().Done() })
		_, err := readAll(t, testClient(t, n, nil), blobRef(nil), nil, 10, 0, -1)
		if !errors.Is(err, ErrStalled) || rec.count() != maxTries {
			t.Errorf("%v after %d requests", err, rec.count())
		}
	})
}

func TestReadEnds(t *testing.T) {
	for name, end := range map[string]func(cancel func(), r io.Closer){
		"by its context": func(cancel func(), _ io.Closer) { cancel() },
		"by Close":       func(_ func(), r io.Closer) { _ = r.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := content(1000)
				n, _ := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) {
					_, _ = w.Write(headOf(w, r, b)[:10])
					w.(http.Flusher).Flush()
					<-r.Context().Done()
				})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				r, err := testClient(t, n, nil).Read(ctx, blobRef(b), nil, 1000, 0, -1)
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan error)
				go func() {
					_, err := io.ReadAll(r)
					done <- err
				}()
				synctest.Wait()
				start := time.Now()
				end(cancel, r)
				if err := <-done; !errors.Is(err, context.Canceled) || time.Since(start) > 0 {
					t.Errorf("%v after %s", err, time.Since(start))
				}
				_ = r.Close()
				if _, err := r.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("read after Close: %v", err)
				}
			})
		})
	}
}
