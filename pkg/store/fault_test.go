package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// breaker fails operations on the disk.
type breaker struct {
	mu   sync.Mutex
	at   int  // the operation that fails, counted from 1; 0 for none
	rest bool // and all after it
	how  func(op store.Operation, data *[]byte, do func() error) error

	seen  int
	last  store.Operation
	broke bool
}

func (k *breaker) tap(op store.Operation, data *[]byte, _ int64, do func() error) error {
	k.mu.Lock()
	k.seen++
	hit := k.at > 0 && (k.seen == k.at || k.rest && k.seen > k.at)
	if hit && !k.broke {
		k.broke, k.last = true, op
	}
	k.mu.Unlock()
	if op.Kind == "sync" || op.Kind == "syncdir" {
		do = func() error { return nil } // no power is cut here
	}
	if hit {
		return k.how(op, data, do)
	}
	return do()
}

func (k *breaker) mend() {
	k.mu.Lock()
	k.at = 0
	k.mu.Unlock()
}

var faults = map[string]func(op store.Operation, data *[]byte, do func() error) error{
	"ENOSPC":            func(store.Operation, *[]byte, func() error) error { return syscall.ENOSPC },
	"EIO":               func(store.Operation, *[]byte, func() error) error { return syscall.EIO },
	"EMFILE":            func(store.Operation, *[]byte, func() error) error { return syscall.EMFILE },
	"EIO after success": func(_ store.Operation, _ *[]byte, do func() error) error { _ = do(); return syscall.EIO },
	"cut short": func(_ store.Operation, data *[]byte, do func() error) error {
		if *data == nil {
			return syscall.EIO
		}
		*data = (*data)[:len(*data)/2]
		if err := do(); err != nil {
			return err
		}
		return io.ErrShortWrite
	},
}

// TestFailAtTheNthOperation breaks each operation on the disk in turn, in each
// way, once or from there on. Whatever breaks: errors say so, nothing wrong is
// read, nothing that was reserved stays so, and once the disk is well everything
// can be fetched and is there after a restart.
func TestFailAtTheNthOperation(t *testing.T) {
	c := []*storetest.Content{
		storetest.Random(t, 1, 700), storetest.Random512(t, 2, pieceLength+9), storetest.Random(t, 3, pieceLength+5), storetest.Random(t, 4, 500),
	}
	for name, how := range faults {
		for _, rest := range []bool{false, true} {
			if rest && !slices.Contains([]string{"EIO", "ENOSPC"}, name) {
				continue
			}
			t.Run(fmt.Sprintf("%s/all after=%v", name, rest), func(t *testing.T) {
				t.Parallel()
				for n, hit := 1, true; hit && !t.Failed(); n++ {
					synctest.Test(t, func(t *testing.T) {
						k := &breaker{at: n, rest: rest, how: how}
						broken(t, k, c)
						if hit = k.broke; t.Failed() {
							t.Logf("failing operation %d: %+v", n, k.last)
						}
					})
				}
			})
		}
	}
}

func broken(t *testing.T, k *breaker, c []*storetest.Content) {
	cfg := store.Config{Dir: memoryDir(t), MaxBytes: 2*pieceLength + 1000}
	old, part, next, tiny := c[0], c[1], c[2], c[3]
	s := tapped(t, cfg, &breaker{})
	storetest.Fill(t, s, old)
	b := create(t, s, part)
	if err := b.Extend(0, part.Piece(0)); err != nil {
		t.Fatal(err)
	}
	b.Release()
	closeStore(t, s)

	s = tapped(t, cfg, k)
	use(t, s, part) // check what was there, fetch the rest
	use(t, s, next) // evicts old
	use(t, s, tiny)
	for _, call := range []func() error{
		func() error { return s.Pin(part.Digest) }, func() error { return s.Unpin(part.Digest) }, func() error { return s.Remove(next.Digest) },
		func() error { return resetOnce(t, s, next) },
	} {
		clean(t, "call", call())
	}
	k.mend()
	for _, c := range []*storetest.Content{part, next, tiny} {
		storetest.Fill(t, s, c)
		whole(t, s, c)
	}
	var sum int64
	for _, i := range s.Blobs() {
		sum += i.Size
		if i.InUse {
			t.Errorf("%s is still in use", i.Digest)
		}
	}
	if got := s.Reserved(); got < sum || got > cfg.MaxBytes {
		t.Errorf("%d bytes reserved for %d", got, sum)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close after the disk is well: %v", err)
	}

	cfg.MaxBytes = 0 // blobs that the broken disk hid come back
	s = tapped(t, cfg, &breaker{})
	for _, c := range []*storetest.Content{part, next, tiny} {
		if b, ok := s.Get(c.Digest); !ok || !b.Sealed() {
			t.Errorf("%s is not sealed after a restart: %+v", c.Digest, s.Blobs())
		} else {
			b.Release()
			whole(t, s, c)
		}
	}
	closeStore(t, s)
}

func tapped(t *testing.T, cfg store.Config, k *breaker) *store.Store {
	t.Helper()
	s, err := store.OpenTapped(cfg, nil, k.tap)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// use does all that a task does with a blob, on a disk that may break.
func use(t *testing.T, s *store.Store, c *storetest.Content) {
	b, err := s.Create(c.Digest, c.Size())
	if clean(t, "create", err); err != nil {
		return
	}
	defer b.Release()
	for range 2 {
		for i := b.Front(); i < c.Layout.Pieces(); i++ {
			time.Sleep(time.Second)
			clean(t, "extend", b.Extend(i, c.Piece(i)))
		}
		have, buf := b.Have(), make([]byte, c.Layout.PieceLength())
		for i := range c.Layout.Pieces() {
			buf := buf[:c.Layout.Length(i)]
			err := b.ReadPiece(i, buf)
			if clean(t, "read", err); err == nil && !bytes.Equal(buf, c.Piece(i)) {
				t.Fatalf("piece %d reads other bytes", i)
			}
			if err == nil && !have.Has(i) {
				t.Fatalf("piece %d can be read and is not held", i)
			}
		}
		if !b.Sealed() {
			continue // once more: the operation that failed may work now
		}
		got, err := storetest.Read(t.Context(), b)
		if clean(t, "read all", err); err == nil && !bytes.Equal(got, c.Data) {
			t.Fatal("reads other bytes")
		}
		f, err := b.File()
		if clean(t, "file", err); err == nil {
			_ = f.Close()
		}
		return
	}
}

func resetOnce(t *testing.T, s *store.Store, c *storetest.Content) error {
	b, err := s.Create(c.Digest, c.Size())
	if err != nil {
		return err
	}
	defer b.Release()
	clean(t, "extend", b.Extend(0, c.Piece(0)))
	return b.Reset()
}

// clean fails unless err is nil or one that callers can tell apart.
func clean(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, known := range []error{
		syscall.ENOSPC, syscall.EIO, syscall.EMFILE, io.ErrShortWrite, io.ErrUnexpectedEOF,
		store.ErrDamaged, store.ErrMissing, store.ErrNotHeld, store.ErrRemoved,
	} {
		if errors.Is(err, known) {
			return
		}
	}
	// A piece that could not be written leaves the chain where it was.
	t.Errorf("%s: %v", what, err)
}

func whole(t *testing.T, s *store.Store, c *storetest.Content) {
	t.Helper()
	b, ok := s.Get(c.Digest)
	if !ok {
		t.Fatalf("%s is not held", c.Digest)
	}
	defer b.Release()
	mustRead(t, b, c)
}

// TestFailWhileBusy breaks operations at random while several goroutines write, read,
// seal, remove and start over the same blobs. Nothing wrong is read meanwhile, and once
// the disk is well everything can be fetched.
func TestFailWhileBusy(t *testing.T) {
	t.Parallel()
	c := killable(t)[:3]
	for seed := range uint64(10) {
		var mu sync.Mutex
		rng := rand.New(rand.NewPCG(seed, 4))
		broken := true
		names := []string{"ENOSPC", "EIO", "EMFILE", "EIO after success", "cut short"}
		tap := func(op store.Operation, data *[]byte, _ int64, do func() error) error {
			mu.Lock()
			hit, name := broken && rng.IntN(20) == 0, names[rng.IntN(len(names))]
			mu.Unlock()
			if op.Kind == "sync" || op.Kind == "syncdir" {
				do = func() error { return nil }
			}
			if hit {
				return faults[name](op, data, do)
			}
			return do()
		}
		s, err := store.OpenTapped(store.Config{Dir: memoryDir(t), MaxBytes: 4 * pieceLength}, nil, tap)
		if err != nil {
			t.Fatal(err)
		}
		var busy sync.WaitGroup
		for worker := range 6 {
			busy.Go(func() {
				rng := rand.New(rand.NewPCG(seed, 10+uint64(worker)))
				for range 20 {
					visit(t, s, c[rng.IntN(len(c))], rng)
				}
			})
		}
		busy.Wait()
		mu.Lock()
		broken = false
		mu.Unlock()
		for _, c := range c {
			refill(t, s, c)
			whole(t, s, c)
			if err := s.Remove(c.Digest); err != nil {
				t.Error(err)
			}
		}
		if got := s.Reserved(); got != 0 {
			t.Errorf("%d bytes stay reserved for nothing", got)
		}
		closeStore(t, s)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// visit is one of many goroutines at a blob.
func visit(t *testing.T, s *store.Store, c *storetest.Content, rng *rand.Rand) {
	b, err := s.Create(c.Digest, c.Size())
	if err != nil {
		return
	}
	defer b.Release()
	_ = b.AddLinks(0, c.Links)
	for _, i := range rng.Perm(c.Layout.Pieces()) {
		_ = b.Put(i, c.Piece(i))
	}
	switch rng.IntN(6) {
	case 0:
		_ = b.Reset()
	case 1:
		_ = s.Remove(c.Digest)
	case 2:
		_ = s.Pin(c.Digest)
		_ = s.Unpin(c.Digest)
	case 3:
		_ = b.Seal()
	}
	buf := make([]byte, c.Layout.PieceLength())
	for i := range c.Layout.Pieces() {
		buf := buf[:c.Layout.Length(i)]
		if b.ReadPiece(i, buf) == nil && !bytes.Equal(buf, c.Piece(i)) {
			t.Errorf("piece %d reads other bytes", i)
		}
	}
	if b.Sealed() {
		if got, err := storetest.Read(t.Context(), b); err == nil && !bytes.Equal(got, c.Data) {
			t.Error("a reader was given other bytes")
		}
	}
}
