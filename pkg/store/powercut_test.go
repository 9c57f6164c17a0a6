package store_test

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// cutsVariable sets how many random power cuts TestPowerCutAtRandom makes, which are a
// thousand with those of TestPowerCut; seedVariable sets where it begins.
const (
	cutsVariable = "DAMSELFLY_STORE_CUTS"
	seedVariable = "DAMSELFLY_STORE_SEED"
)

func variable(tb testing.TB, name, otherwise string) int {
	tb.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv(name), otherwise))
	if err != nil {
		tb.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestPowerCut cuts the power before each operation of one life of a store, which
// has all that a store does in it. See life for what has to hold.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	contents := killable(t)[:2]
	for n := 1; ; n++ {
		l := newLife(t, rand.New(rand.NewPCG(uint64(n), 1)), contents)
		l.p.cutAt = l.p.seen + n
		l.all()
		for range 3 { // a power cut has many outcomes
			l.judge(l.p.cut(t))
		}
		through := l.alive()
		l.end()
		if t.Failed() {
			t.Fatalf("power cut before operation %d", n)
		}
		if through {
			t.Logf("%d power cuts", 3*n)
			break
		}
	}
}

// TestPowerCutAtRandom lives random lives in which operations on the disk fail and
// the power is cut, again and again, each life going on with what the last one left.
func TestPowerCutAtRandom(t *testing.T) {
	t.Parallel()
	contents := killable(t)
	cuts, seed := variable(t, cutsVariable, "300"), uint64(variable(t, seedVariable, "1"))
	for n := 0; n < cuts; seed++ {
		rng := rand.New(rand.NewPCG(seed, 2))
		l := newLife(t, rng, contents)
		for range 1 + rng.IntN(4) {
			n++
			l.p.cutAt = l.p.seen + 1 + rng.IntN(200)
			if rng.IntN(2) == 0 {
				l.p.fault = l.random(1+rng.IntN(100), 1+rng.IntN(2)*rng.IntN(20))
			}
			for l.alive() {
				l.step(rng.IntN(12), rng.IntN(len(contents)))
			}
			l.judge(l.p.cut(t))
			l.again(l.p.cut(t))
		}
		l.end()
		if t.Failed() {
			t.Fatalf("%s=1 %s=%d repeats it", cutsVariable, seedVariable, seed)
		}
	}
}

// TestPinBeforeTheSeal: a power cut may leave the name of a whole blob beside a sidecar
// that names a part of it. When the rest has come, and the sidecar is written for some
// other reason, it must not call data sealed that is not synced.
func TestPinBeforeTheSeal(t *testing.T) {
	contents := killable(t)[1:2]
	c := contents[0]
	for seed := range uint64(20) {
		l := newLife(t, rand.New(rand.NewPCG(seed, 3)), contents)
		dir := l.p.dir
		b := create(t, l.s, c)
		if err := b.Extend(0, c.Piece(0)); err != nil {
			t.Fatal(err)
		}
		b.Release()
		l.end()
		if err := os.Rename(pathOf(dir, c.Digest, ".part"), pathOf(dir, c.Digest, "")); err != nil {
			t.Fatal(err)
		}
		l.again(dir)
		b = create(t, l.s, c)
		if err := errors.Join(b.Verify(t.Context()), b.Extend(1, c.Piece(1))); err != nil || !b.Sealed() {
			t.Fatalf("not sealed: %v", err)
		}
		if err := l.s.Pin(c.Digest); err != nil {
			t.Fatal(err)
		}
		l.judge(l.p.cut(t))
		b.Release() // seals it
		l.look(0)
		if !l.committed[0] {
			t.Error("not sealed on the disk when it fell idle")
		}
		l.judge(l.p.cut(t))
		l.end()
	}
}

// random breaks n operations from the nth on in a random way.
func (l *life) random(nth, n int) func(op store.Operation, data *[]byte) (bool, error) {
	names := []string{"EIO", "ENOSPC", "EMFILE", "EIO after success", "cut short"}
	name, count := names[l.rng.IntN(len(names))], 0
	return func(op store.Operation, data *[]byte) (done bool, err error) {
		if count++; count < nth || count >= nth+n || op.Kind == "forget" { // advice that may be ignored
			return false, nil
		}
		l.excuse(op, name)
		err = faults[name](op, data, func() error { done = true; return nil })
		return done, err
	}
}

// killable is what is put into a store to see what becomes of it: of one piece and
// of several, with each algorithm, and empty.
func killable(tb testing.TB) []*storetest.Content {
	return []*storetest.Content{
		storetest.Random(tb, 1, 900), storetest.Random512(tb, 2, pieceLength+100), storetest.Random(tb, 3, 2*pieceLength+1), storetest.Random(tb, 4, 0),
	}
}

// judge opens what a power cut left: blobs whose seal was on the disk are there, all
// that is served is right, and what was lost can be fetched again.
func (l *life) judge(dir string) {
	l.t.Helper()
	s, err := store.OpenTapped(store.Config{Dir: dir}, nil, (&breaker{}).tap)
	if err != nil {
		l.t.Fatal(err)
	}
	for i, c := range l.contents {
		l.checkSurvivor(s, c, i)
	}
	for _, c := range l.contents {
		refill(l.t, s, c)
		whole(l.t, s, c) // through a Reader
	}
	closeStore(l.t, s)
}

func (l *life) checkSurvivor(s *store.Store, c *storetest.Content, i int) {
	l.t.Helper()
	b, ok := s.Get(c.Digest)
	if !ok {
		if l.committed[i] {
			l.t.Errorf("%s of %d bytes was on the disk and is lost", c.Digest, c.Size())
		}
		return
	}
	defer b.Release()
	if l.committed[i] && !b.Sealed() {
		l.t.Errorf("%s of %d bytes was sealed on the disk and is not", c.Digest, c.Size())
	}
	if err := b.Verify(l.t.Context()); err != nil {
		l.t.Error(err)
	}
	l.read(b, i)
}

// readAll reads every piece that is served. Those of a chain that somebody forged are
// what that chain proves until the last one is here.
func readAll(tb testing.TB, b *store.Blob, c, evil *storetest.Content) {
	tb.Helper()
	have, buf := b.Have(), make([]byte, c.Layout.PieceLength())
	for i := range c.Layout.Pieces() {
		buf := buf[:c.Layout.Length(i)]
		err := b.ReadPiece(i, buf)
		last := i == c.Layout.Pieces()-1
		switch {
		case err != nil && have.Has(i) && !excused(err):
			tb.Errorf("piece %d of %d is held and cannot be read: %v", i, c.Layout.Pieces(), err)
		case err != nil:
		case bytes.Equal(buf, c.Piece(i)):
		case evil != nil && !last && !b.Sealed() && bytes.Equal(buf, evil.Piece(i)):
		default:
			tb.Errorf("piece %d of %d serves wrong bytes", i, c.Layout.Pieces())
		}
	}
}

// excused tells whether the disk was made to fail, which the store says as it is.
func excused(err error) bool {
	return errors.Is(err, errPower) || errors.Is(err, store.ErrDamaged) || errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOSPC) ||
		errors.Is(err, syscall.EMFILE) || errors.Is(err, io.ErrShortWrite)
}

// refill fetches the whole blob as a task does, which starts over when the chain
// that it found leads to a wrong digest.
func refill(tb testing.TB, s *store.Store, c *storetest.Content) {
	tb.Helper()
	b, err := s.Create(c.Digest, c.Size())
	if err != nil {
		tb.Fatal(err)
	}
	defer b.Release()
	for i := b.Front(); i < c.Layout.Pieces(); i = b.Front() {
		err := b.Extend(i, c.Piece(i))
		if errors.Is(err, store.ErrBadDigest) || err != nil && !b.Sealed() {
			err = b.Reset()
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := b.Seal(); err != nil || !b.Sealed() {
		tb.Fatalf("not sealed after every piece: %v, %+v %v", err, s.Blobs(), b.Put(0, nil))
	}
}

// checkServed fails when s serves anything but c's bytes.
func checkServed(tb testing.TB, s *store.Store, c *storetest.Content) {
	tb.Helper()
	b, ok := s.Get(c.Digest)
	if !ok {
		return
	}
	defer b.Release()
	if err := b.Verify(tb.Context()); err != nil {
		tb.Error(err)
	}
	readAll(tb, b, c, nil)
}
