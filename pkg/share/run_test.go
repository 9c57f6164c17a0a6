package share

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

func TestRun(t *testing.T) {
	w := newWorld(t, t.TempDir())
	c := storetest.Random(t, 1, 600000)
	told := make(chan blob.Digest, 1)
	s := New(w.root, w.store, func(d blob.Digest) { told <- d }, func() bool { return true }, zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	w.commit(c.Digest, c.Data)
	if d := <-told; d != c.Digest {
		t.Errorf("told %s", d)
	}
	w.checkRead(c)
	cancel()
	w.must(<-done)

	// Turned off, the store lets go of what only the runtime keeps, once nobody
	// reads it.
	b, _ := w.store.Get(c.Digest)
	ctx, cancel = context.WithTimeout(t.Context(), 10*lookEvery)
	defer cancel()
	go func() {
		done <- New("", releaser{w.store, sync.OnceFunc(b.Release), cancel}, nil, nil, zap.NewNop()).Run(ctx)
	}()
	w.must(<-done)
	w.holds(nil)
	if n := w.links(c.Digest); n != 1 {
		t.Errorf("the file has %d names", n)
	}
}

// releaser is a store whose user goes once it could not be let go of a blob.
type releaser struct {
	*store.Store
	refused, done func()
}

func (r releaser) Unshare(d blob.Digest) error {
	err := r.Store.Unshare(d)
	if errors.Is(err, store.ErrInUse) {
		r.refused()
	} else {
		r.done()
	}
	return err
}

func TestAnotherFileSystem(t *testing.T) {
	other, err := os.MkdirTemp("/dev/shm", "damselfly-test-")
	if err != nil {
		t.Fatalf("this test needs a second file system at /dev/shm: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(other) })
	w := newWorld(t, other)
	c := storetest.Random(t, 1, 1000)
	storetest.Fill(t, w.store, c)
	w.commit(c.Digest, c.Data)
	if err := w.scan(t.Context()); !errors.Is(err, store.ErrCannotShare) {
		t.Fatalf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.log = w.log.WithOptions(zap.Hooks(func(e zapcore.Entry) error {
		if strings.HasPrefix(e.Message, "blobs are kept twice on this machine") && e.Level == zap.WarnLevel {
			cancel()
		}
		return nil
	}))
	w.must(w.Run(ctx))
	w.holds(map[blob.Digest]bool{c.Digest: false})
	w.checkRead(c)
}

// quiet runs the Sharer for two hours, with a commit in the middle.
func (w *world) quiet(c *storetest.Content) {
	w.t.Helper()
	synctest.Test(w.t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		time.Sleep(time.Hour)
		w.commit(c.Digest, c.Data)
		time.Sleep(time.Hour)
		cancel()
		w.must(<-done)
	})
}

// Where blobs cannot be shared at all, one is tried, and none after it.
func TestGivesUpOnce(t *testing.T) {
	w := newWorld(t, t.TempDir())
	tries := 0
	w.use(meddler{Store: w.store, refuse: func(blob.Digest) error {
		tries++
		return store.ErrCannotShare
	}})
	c, later := storetest.Random(t, 1, 1000), storetest.Random(t, 2, 1000)
	w.commit(c.Digest, c.Data)
	w.quiet(later)
	if said := w.logs.Len(); tries != 1 || said != 1 {
		t.Errorf("tried %d times, said %d times", tries, said)
	}
}

// A disk that is full is told of once a try, and not for every blob.
func TestFullDisk(t *testing.T) {
	w := newWorld(t, t.TempDir())
	tries, full := 0, true
	w.use(meddler{Store: w.store, refuse: func(blob.Digest) error {
		if tries++; full {
			return store.ErrNoSpace
		}
		return nil
	}})
	want := map[blob.Digest]bool{}
	for i := range uint64(3) {
		c := storetest.Random(t, i, 1000)
		w.commit(c.Digest, c.Data)
		want[c.Digest] = true
	}
	w.look()
	if said := w.logs.Len(); tries != 1 || said != 1 || w.retry == 0 {
		t.Errorf("tried %d times, said %d times, tried again in %v", tries, said, w.retry)
	}
	full = false
	w.look()
	w.holds(want)
}

// A directory that cannot be read is looked at less and less often.
func TestUnreadableDirectory(t *testing.T) {
	w := newWorld(t, t.TempDir())
	c := storetest.Random(t, 1, 1000)
	w.must(os.Rename(w.dir+"/sha512", w.dir+"/sha512.away"))
	w.must(os.WriteFile(w.dir+"/sha512", nil, 0o400))
	w.quiet(c)
	if said := w.logs.FilterMessageSnippet("cannot read").Len(); said < 5 || said > 40 {
		t.Errorf("said %d times in two hours", said)
	}
	w.must(os.Remove(w.dir + "/sha512"))
	w.must(os.Rename(w.dir+"/sha512.away", w.dir+"/sha512"))
	w.look()
	w.holds(map[blob.Digest]bool{c.Digest: true})
}
