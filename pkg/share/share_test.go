package share

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a store and a runtime on one disk.
type world struct {
	*Sharer
	t     *testing.T
	root  string
	store *store.Store
	told  []blob.Digest
	logs  *observer.ObservedLogs
}

func newWorld(t *testing.T, root string) *world {
	w := &world{t: t, root: root, store: storetest.Open(t, store.Config{Dir: filepath.Join(t.TempDir(), "store")})}
	w.use(w.store)
	for _, algorithm := range algorithms() {
		w.must(os.MkdirAll(filepath.Join(w.dir, algorithm), 0o700))
	}
	return w
}

func (w *world) use(st Store) {
	core, logs := observer.New(zap.InfoLevel)
	w.logs = logs
	w.Sharer = New(w.root, st, func(d blob.Digest) { w.told = append(w.told, d) }, func() bool { return false }, zap.New(core))
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) path(d blob.Digest) string { return filepath.Join(w.dir, d.Algorithm(), d.Hex()) }

// commit puts a blob into the runtime's store as containerd does.
func (w *world) commit(d blob.Digest, data []byte) {
	w.t.Helper()
	ingest := filepath.Join(w.root, "io.containerd.content.v1.content", "ingest", d.Hex()[:8])
	w.must(os.MkdirAll(ingest, 0o700))
	w.must(os.WriteFile(filepath.Join(ingest, "data"), data, 0o600))
	w.must(os.Chmod(filepath.Join(ingest, "data"), 0o444))
	w.must(os.Rename(filepath.Join(ingest, "data"), w.path(d)))
	w.must(os.RemoveAll(ingest))
}

func (w *world) links(d blob.Digest) int {
	w.t.Helper()
	var st syscall.Stat_t
	w.must(syscall.Stat(w.path(d), &st))
	return int(st.Nlink)
}

func (w *world) look() {
	w.t.Helper()
	w.must(w.scan(w.t.Context()))
}

// holds checks which blobs the store holds, and which of them it shares.
func (w *world) holds(want map[blob.Digest]bool) {
	w.t.Helper()
	got := map[blob.Digest]bool{}
	for _, i := range w.store.Blobs() {
		if !i.Sealed {
			w.t.Errorf("%s is held in part", i.Digest)
		}
		got[i.Digest] = i.Shared
	}
	for d, shared := range want {
		if was, ok := got[d]; !ok || was != shared {
			w.t.Errorf("%s: held %v, shared %v, want shared %v", d, ok, was, shared)
		}
	}
	if len(got) != len(want) {
		w.t.Errorf("%d blobs are held, want %d", len(got), len(want))
	}
}

func (w *world) checkRead(c *storetest.Content) {
	w.t.Helper()
	b, ok := w.store.Get(c.Digest)
	if !ok {
		w.t.Fatalf("%s is not held", c.Digest)
	}
	defer b.Release()
	if got, err := storetest.Read(w.t.Context(), b); err != nil || !slices.Equal(got, c.Data) {
		w.t.Errorf("read %d bytes, error %v", len(got), err)
	}
}

func TestFollowsTheRuntime(t *testing.T) {
	w := newWorld(t, t.TempDir())
	ours, before, later := storetest.Random(t, 1, 300000), storetest.Random512(t, 2, 600001), storetest.Random(t, 3, 10)
	storetest.Fill(t, w.store, ours)
	w.commit(ours.Digest, ours.Data)
	w.commit(before.Digest, before.Data)
	w.must(os.WriteFile(filepath.Join(w.dir, "sha256", "lost+found"), []byte("no blob"), 0o400))
	w.look()
	w.holds(map[blob.Digest]bool{ours.Digest: true, before.Digest: true})
	w.checkRead(ours)
	w.checkRead(before)
	if !slices.Equal(w.told, []blob.Digest{before.Digest}) {
		t.Errorf("told %v, want what nobody knew of", w.told)
	}
	w.commit(later.Digest, later.Data)
	if !w.due() {
		t.Error("a commit is not noticed")
	}
	w.look()
	w.holds(map[blob.Digest]bool{ours.Digest: true, before.Digest: true, later.Digest: true})

	// What the runtime deletes leaves with it, but for what was fetched here.
	w.must(os.Remove(w.path(ours.Digest)))
	w.must(os.Remove(w.path(before.Digest)))
	if !w.due() {
		t.Error("a deletion is not noticed")
	}
	w.look()
	w.holds(map[blob.Digest]bool{ours.Digest: false, later.Digest: true})
	w.checkRead(ours)
	w.commit(before.Digest, before.Data) // pulled again
	w.commit(ours.Digest, ours.Data)
	w.look()
	w.holds(map[blob.Digest]bool{ours.Digest: true, before.Digest: true, later.Digest: true})
	w.checkRead(before)
	if n := w.links(ours.Digest); n != 2 {
		t.Errorf("the file has %d names", n)
	}
}

func TestRottenFileIsNeverHeld(t *testing.T) {
	w := newWorld(t, t.TempDir())
	c := storetest.Random(t, 1, 700000)
	bad := slices.Clone(c.Data)
	bad[len(bad)-1] ^= 1
	w.commit(c.Digest, bad)
	for range 3 {
		w.look()
	}
	w.holds(nil)
	if n := w.logs.FilterMessageSnippet("has not the bytes").Len(); n != 1 {
		t.Errorf("said %d times", n)
	}
	storetest.Fill(t, w.store, c)
	w.look()
	w.holds(map[blob.Digest]bool{c.Digest: false})
	w.checkRead(c)
	w.must(os.Remove(w.path(c.Digest)))
	w.look()
	w.commit(c.Digest, c.Data)
	w.look()
	w.holds(map[blob.Digest]bool{c.Digest: true})
	w.checkRead(c)
}

// meddler is a store to which something happens just before it shares.
type meddler struct {
	*store.Store
	refuse func(d blob.Digest) error                // nil: it shares
	pace   func(ctx context.Context, n int64) error // nil: the caller's
}

func (m meddler) Share(ctx context.Context, d blob.Digest, path string, pace func(context.Context, int64) error) error {
	if m.refuse != nil {
		if err := m.refuse(d); err != nil {
			return err
		}
	}
	if m.pace != nil {
		pace = m.pace
	}
	return m.Store.Share(ctx, d, path, pace)
}

// The runtime's garbage collection may come between the list and the link.
func TestFileVanishes(t *testing.T) {
	w := newWorld(t, t.TempDir())
	gone, stays := storetest.Random(t, 1, 1000), storetest.Random(t, 2, 1000)
	w.commit(gone.Digest, gone.Data)
	w.commit(stays.Digest, stays.Data)
	w.use(meddler{Store: w.store, refuse: func(d blob.Digest) error {
		if d == gone.Digest {
			w.must(os.RemoveAll(w.path(d)))
		}
		return nil
	}})
	w.look()
	w.look()
	w.holds(map[blob.Digest]bool{stays.Digest: true})
	if n := w.logs.FilterLevelExact(zap.WarnLevel).Len(); n != 0 {
		t.Errorf("%d warnings of what is as it should be", n)
	}
}

// The runtime may delete a blob and get it anew between two looks, or while this
// process did not run: another file, so that the bytes are there twice.
func TestFileIsReplaced(t *testing.T) {
	w := newWorld(t, t.TempDir())
	c := storetest.Random(t, 1, 600000)
	storetest.Fill(t, w.store, c)
	for range 2 {
		for range 2 {
			w.must(os.RemoveAll(w.path(c.Digest)))
			w.commit(c.Digest, c.Data)
			w.look()
			w.holds(map[blob.Digest]bool{c.Digest: true})
			if n := w.links(c.Digest); n != 2 {
				t.Errorf("the file has %d names", n)
			}
		}
		w.must(os.Remove(w.path(c.Digest)))
		w.commit(c.Digest, c.Data)
		w.use(w.store) // another process
		w.look()
		if n := w.links(c.Digest); n != 2 {
			t.Errorf("after a restart the file has %d names", n)
		}
	}
	// A restart alone reads nothing.
	w.use(meddler{Store: w.store, pace: func(context.Context, int64) error { return errors.New("it is read again") }})
	w.look()
	w.holds(map[blob.Digest]bool{c.Digest: true})
	if n := w.logs.Len(); n != 0 {
		t.Errorf("%d lines in the log of nothing new", n)
	}
	if len(w.told) != 0 {
		t.Errorf("told of %v, which was held", w.told)
	}
}

// A hard link changes with the runtime's file: it is given up, and the file is used
// again when it is right.
func TestFileIsWrittenTo(t *testing.T) {
	w := newWorld(t, t.TempDir())
	c := storetest.Random(t, 1, 600000)
	w.commit(c.Digest, c.Data)
	w.look()
	w.holds(map[blob.Digest]bool{c.Digest: true})
	bad := slices.Clone(c.Data)
	bad[5] ^= 1
	for _, now := range [][]byte{bad, c.Data} {
		w.must(os.WriteFile(w.path(c.Digest), now, 0o444))
		later := time.Now().Add(time.Minute)
		w.must(os.Chtimes(w.path(c.Digest), later, later))
		w.look()
	}
	w.holds(map[blob.Digest]bool{c.Digest: true})
	w.checkRead(c)
	if n := w.logs.FilterMessageSnippet("has not the bytes").Len(); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// One file that cannot be shared, such as one that is immutable, ends the sharing of
// no other.
func TestOneFileCannotBeShared(t *testing.T) {
	w := newWorld(t, t.TempDir())
	first, odd, last := storetest.Random(t, 1, 1000), storetest.Random(t, 2, 1000), storetest.Random(t, 3, 1000)
	tries, refused := 0, false
	w.use(meddler{Store: w.store, refuse: func(d blob.Digest) error {
		if !refused || d != odd.Digest {
			return nil
		}
		tries++
		return store.ErrCannotShare
	}})
	storetest.Fill(t, w.store, odd)
	for _, c := range []*storetest.Content{first, odd, last} {
		w.commit(c.Digest, c.Data)
		w.look()
		w.look()
	}
	w.holds(map[blob.Digest]bool{first.Digest: true, odd.Digest: true, last.Digest: true})
	refused = true
	w.must(os.Remove(w.path(odd.Digest)))
	w.commit(odd.Digest, odd.Data)
	w.look()
	w.look()
	w.holds(map[blob.Digest]bool{first.Digest: true, odd.Digest: false, last.Digest: true})
	if n := w.logs.FilterMessageSnippet("cannot be shared").Len(); n != 1 || tries != 1 {
		t.Errorf("said %d times, tried %d times", n, tries)
	}
}

func TestRemovedBlobIsNotTakenAgain(t *testing.T) {
	w := newWorld(t, t.TempDir())
	c := storetest.Random(t, 1, 1000)
	w.commit(c.Digest, c.Data)
	w.look()
	w.must(w.store.Remove(c.Digest))
	w.look()
	w.holds(nil)
	storetest.Fill(t, w.store, c) // but one that was fetched again does not take room twice
	w.look()
	w.holds(map[blob.Digest]bool{c.Digest: true})
}

// A blob on its way is left alone, and looked at again soon.
func TestBlobOnItsWay(t *testing.T) {
	w := newWorld(t, t.TempDir())
	c := storetest.Random(t, 1, 600000)
	b, err := w.store.Create(c.Digest, c.Size())
	w.must(err)
	w.must(b.Extend(0, c.Piece(0)))
	w.commit(c.Digest, c.Data)
	w.look()
	if b.Sealed() || w.retry == 0 {
		t.Errorf("sealed %v, tried again in %v", b.Sealed(), w.retry)
	}
	storetest.Fill(t, w.store, c)
	b.Release()
	w.look()
	w.holds(map[blob.Digest]bool{c.Digest: true})
	if w.retry != 0 {
		t.Errorf("tried again in %v", w.retry)
	}
}

func TestWrongDirectoryIsSaidOnce(t *testing.T) {
	w := newWorld(t, t.TempDir())
	c := storetest.Random(t, 1, 1000)
	w.commit(c.Digest, c.Data)
	w.look()
	away := w.dir + ".away"
	w.must(os.Rename(w.dir, away))
	w.look()
	w.look()
	if n := w.logs.FilterMessageSnippet("store.share").Len(); n != 1 {
		t.Errorf("said %d times", n)
	}
	w.holds(nil) // or the file's bytes would stay although the runtime is gone
	w.must(os.Rename(away, w.dir))
	if n := w.links(c.Digest); n != 1 {
		t.Errorf("the file has %d names", n)
	}
	w.look()
	w.holds(map[blob.Digest]bool{c.Digest: true})
}
