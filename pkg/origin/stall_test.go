package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// An origin that falls silent in a body, or before what takes that up again, is
// asked again on another connection after StallTimeout; one that is merely slow is
// not.
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

// An origin that does not begin to answer is not asked again and again: it may be
// at work, and would begin anew.
func TestReadStallsForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, n int) {
			if n > 1 {
				_, _ = w.Write(headOf(w, r, content(10))[:1])
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
		})
		c := testClient(t, n, nil)
		start := time.Now()
		_, err := readAll(t, c, blobRef(nil), nil, 10, 0, -1)
		if took := time.Since(start); !errors.Is(err, ErrStalled) || rec.count() != 1 || took != 5*time.Minute {
			t.Errorf("%v after %d requests and %s", err, rec.count(), took)
		}
		start = time.Now()
		got, err := readAll(t, c, blobRef(nil), nil, 10, 0, -1)
		if took := time.Since(start); err != nil || !bytes.Equal(got, content(10)) || took > 4*time.Minute {
			t.Errorf("with a byte each time: %d bytes, %v after %s", len(got), err, took)
		}
	})
}

// Registries that fetch on demand take minutes before the first byte of a blob or a
// manifest, and some realms half a minute. Each is asked once.
func TestSlowAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, bearerChallenge)
		b := w.blob
		w.realm.public, w.slow = true, 3*time.Minute
		w.realm.fault = func(http.ResponseWriter) bool { pass(25 * time.Second); return false }
		c := testClient(t, w.net, nil)
		start := time.Now()
		resp, err := c.Solver().Get(t.Context(), tagRef("v1"), nil)
		if err != nil || slurp(t, resp.Body) != string(b) {
			t.Errorf("manifest: %v", err)
		}
		if got, err := readAll(t, c, blobRef(b), nil, 1000, 0, -1); err != nil || !bytes.Equal(got, b) {
			t.Errorf("blob: %d bytes, %v", len(got), err)
		}
		if took := time.Since(start); took > 6*time.Minute+26*time.Second || w.reg.count() != 3 || w.realm.rec.count() != 1 {
			t.Errorf("%d questions, one to learn of the realm, %d tokens, in %s", w.reg.count(), w.realm.rec.count(), took)
		}
	})
}

// deadConn is a connection whose peer acknowledges nothing: the kernel ends it.
type deadConn struct {
	net.Conn
	after time.Duration
}

func (c deadConn) Write(p []byte) (int, error) { return len(p), nil }

func (c deadConn) Read([]byte) (int, error) {
	pass(c.after)
	return 0, &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)}
}

// A question whose connection is found dead has not been answered slowly: it is put
// again on another one.
func TestDeadConnectionIsNoSlowAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, rec := registryOf(t, func(w http.ResponseWriter, r *http.Request, _ int) { serveBytes(w, r, content(10)) })
		dials := 0
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := n.dial(ctx, network, addr)
			if dials++; dials%2 == 1 && err == nil {
				conn = deadConn{conn, maxUnacked}
			}
			return conn, err
		}
		hosts := []Host{{Name: testRegistry, Endpoint: "http://" + testRegistry}}
		c, err := newClient(Config{Proxy: "none", Hosts: hosts}, zap.NewNop(), nil, dial)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		resp, err := c.Get(t.Context(), tagRef("v1"), nil)
		if code := status(t, resp, err); code != http.StatusOK {
			t.Errorf("manifest: %d", code)
		}
		if got, err := readAll(t, c, blobRef(content(10)), nil, 10, 0, -1); err != nil || len(got) != 10 || rec.count() != 2 {
			t.Errorf("blob: %d bytes, %v", len(got), err)
		}
	})
}

// The kernel is told to find dead peers: blobs' sooner than others'.
func TestDeadPeersAreFound(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer s.Close()
	c, err := New(Config{Proxy: "none", Allow: []string{"127.0.0.1"}}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]struct {
		dial dialFunc
		want time.Duration
	}{"questions": {c.wire.plain.outside.ask.DialContext, maxUnacked}, "blobs": {c.wire.plain.outside.bulk.DialContext, c.cfg.StallTimeout}} {
		conn, err := d.dial(t.Context(), "tcp", strings.TrimPrefix(s.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		ms := 0
		if err := raw.Control(func(fd uintptr) {
			ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		}); err != nil || time.Duration(ms)*time.Millisecond != d.want {
			t.Errorf("%s: %d ms, %v; want %s", name, ms, err, d.want)
		}
		_ = conn.Close()
	}
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
