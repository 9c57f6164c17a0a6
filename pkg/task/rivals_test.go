package task_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/control"
	"github.com/damselfly-p2p/damselfly/pkg/task"
	damselflyv1 "github.com/damselfly-p2p/damselfly/proto/damselfly/v1"
)

// Nobody verifies what does not pass through the store, so the last bytes wait
// for the digest.
func TestWrongBytesPastAFullStoreAreNotCompleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 1000)
		wrong := bytes.Clone(w.data)
		wrong[5] ^= 1
		w.up.data[w.d.String()] = wrong
		if r := <-read(w.open(w.request())); !errors.Is(r.err, blob.ErrMismatch) || len(r.data) >= len(w.data) {
			t.Errorf("got %d of %d bytes, %v", len(r.data), len(w.data), r.err)
		}
	})
}

// A registry that tells a wrong size of a blob keeps nobody from it who asks
// another.
func TestSizesOfTwoOrigins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.up.gate = make(chan struct{})
		liar := w.request()
		liar.Ref.Registry, liar.Size = "liar.example.com", liar.Size-1
		h := w.open(liar)
		defer func() { _ = h.Close() }()
		synctest.Wait() // the liar's bytes do not come
		w.up.mu.Lock()
		w.up.gate = nil
		w.up.mu.Unlock()
		w.wantWhole(<-read(w.open(w.request())))
	})
}

// Scheduler and client may name two registries for one blob.
func TestCredentialOfOneRegistryIsNotSentToAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{Seed: true}, 0)
		w.sched.joined = true
		req := w.request()
		req.Header = http.Header{"Authorization": {"Bearer for r.example.com"}}
		whole := read(w.open(req))
		l := w.lease(1, blob.Run{Count: pieces})
		l.Origin = &damselflyv1.Origin{Registry: "other.example.com", Repository: "app"}
		w.Handle(l)
		w.wantWhole(<-whole)
		w.up.mu.Lock()
		defer w.up.mu.Unlock()
		for _, h := range w.up.headers {
			if v := h.Get("Authorization"); v != "" {
				t.Errorf("other.example.com was sent %q", v)
			}
		}
	})
}

// The first client of a blob names a registry that never ends, or lies. Who comes
// after it and names a good one gets the blob.
func TestBadRegistryOfOneClientHoldsUpNoOther(t *testing.T) {
	for name, badly := range map[string]func(io.Reader) io.Reader{
		"a byte a second": func(r io.Reader) io.Reader { return &slow{r} },
		"breaks off":      func(io.Reader) io.Reader { return bytes.NewReader(nil) },
		"wrong bytes":     func(r io.Reader) io.Reader { return io.MultiReader(bytes.NewReader([]byte{1}), r) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, task.Config{}, 0)
				w.up.bad, w.up.badly = "bad.example.com", badly
				req := w.request()
				req.Ref.Registry = w.up.bad
				first := w.open(req)
				defer func() { _ = first.Close() }()
				started := time.Now()
				r := <-read(w.open(w.request()))
				for range 2 { // a client that was cut off comes back
					if r.err != nil {
						r = <-read(w.open(w.request()))
					}
				}
				w.wantWhole(r)
				if took := time.Since(started); took > 10*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// slow gives a byte a second.
type slow struct{ r io.Reader }

func (s *slow) Read(p []byte) (int, error) {
	pass(time.Second)
	return s.r.Read(p[:1])
}

// Links that a forged chain left here give way to those that the scheduler sends
// now: a blob is not stuck for having believed the wrong ones first.
func TestForgedLinksGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.sched.joined = true
		r := read(w.open(w.request()))
		forged := w.lease(1, blob.Run{Count: 1})
		forged.Holder, forged.Links = &control.Holder{ID: "b"}, bytes.Clone(w.chain())
		forged.Links[40] ^= 1
		w.Handle(forged)
		synctest.Wait()
		if got := told[control.Failed](w.sched); len(got) != 1 {
			t.Fatalf("the forged lease ended with %v", got)
		}
		right := w.lease(2, blob.Run{Count: pieces})
		right.Holder, right.Links = &control.Holder{ID: "b"}, w.chain()
		w.Handle(right)
		w.wantWhole(<-r)
		if w.up.count() != 0 {
			t.Error("the origin was read although the swarm had it all")
		}
	})
}

// A seed that reads for a client here gets what that client sent for the origin that
// is read, and nothing for another.
func TestCredentialIsForItsOriginAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, task.Config{}, 0)
		w.sched.joined = true
		good, other := w.request(), w.request()
		good.Header = http.Header{"Authorization": {"Bearer good"}}
		other.Ref.Registry, other.Header = "other.example.com", http.Header{"Authorization": {"Bearer other"}}
		for _, req := range []task.Request{good, other} {
			h := w.open(req)
			defer func() { _ = h.Close() }()
		}
		for registry, want := range map[string]string{
			"r.example.com": "Bearer good", "other.example.com": "Bearer other", "evil.example.com": "",
		} {
			header, ok := w.Credential(w.d, &damselflyv1.Origin{Kind: damselflyv1.Origin_KIND_BLOB, Registry: registry, Repository: "app"})
			if ok != (want != "") || header.Get("Authorization") != want {
				t.Errorf("%s gets %q", registry, header)
			}
		}
	})
}
