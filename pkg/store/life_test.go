package store_test

import (
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// life is a store on a platter, and what is known of it from outside.
type life struct {
	t        *testing.T
	rng      *rand.Rand
	p        *platter
	s        *store.Store
	contents []*storetest.Content
	evils    []*storetest.Content // as long as contents, other bytes
	// committed says of which contents the disk had the seal while the power was on and
	// nothing was done since that may take it away.
	committed []bool
	forged    []bool // another chain was put into it
}

func newLife(t *testing.T, rng *rand.Rand, contents []*storetest.Content) *life {
	l := &life{t: t, rng: rng, contents: contents, committed: make([]bool, len(contents)), forged: make([]bool, len(contents))}
	for _, c := range contents {
		l.evils = append(l.evils, storetest.Random(t, 100+uint64(c.Size()), c.Size()))
	}
	l.again(memoryDir(t))
	return l
}

// again goes on with the directory that a power cut left.
func (l *life) again(dir string) {
	l.end()
	l.p = newPlatter(l.t, l.rng, dir)
	l.open()
}

func (l *life) open() {
	s, err := store.OpenTapped(store.Config{Dir: l.p.dir}, nil, l.p.tap)
	if err != nil {
		l.t.Fatal(err)
	}
	l.s = s
}

// end kills the process.
func (l *life) end() {
	if l.s != nil {
		l.s.Kill()
	}
}

func (l *life) alive() bool { return l.p.alive() }

// excuse forgives the blobs that an operation which fails is about.
func (l *life) excuse(op store.Operation, fault string) {
	for i, c := range l.contents {
		name := path.Join(c.Digest.Algorithm(), c.Digest.Hex()[:2], c.Digest.Hex())
		if fault == "ENOSPC" || strings.HasPrefix(name, op.Name) || strings.HasPrefix(op.Name, name) || op.Name == "." {
			l.committed[i] = false
		}
	}
}

// all does each step, the first ones again after what undid them.
func (l *life) all() {
	for _, step := range []int{0, 4, 5, 8, 7, 11, 10, 1, 4, 9} {
		for i := range l.contents {
			l.step(step, i)
		}
	}
}

// step does one thing with content i and looks what is on the disk after it.
func (l *life) step(step, i int) {
	if !l.alive() {
		return
	}
	c := l.contents[i]
	switch step {
	case 0:
		l.forge(i)
	case 1, 2:
		l.fetch(c, l.rng.IntN(2) == 0, false)
	case 3, 4:
		l.fetch(c, true, l.rng.IntN(3) == 0)
	case 5:
		_ = l.s.Pin(c.Digest)
	case 6:
		_ = l.s.Unpin(c.Digest)
	case 7:
		l.lose(i)
	case 8: // the process is killed, and the page cache lives on
		l.s.Kill()
		l.open()
	case 9:
		_ = l.s.Close()
		l.open()
	case 10:
		if l.rng.IntN(2) == 0 {
			l.committed[i] = false
			_ = l.s.Remove(c.Digest)
		}
	case 11:
		l.fetch(c, true, false)
	}
	l.look(i)
}

func (l *life) look(i int) {
	on := l.s.Durable()
	if !l.alive() {
		return
	}
	for k, c := range l.contents {
		is := slices.Contains(on, c.Digest)
		sealed := slices.ContainsFunc(l.s.Blobs(), func(i store.Info) bool { return i.Digest == c.Digest && i.Sealed })
		if l.committed[k] && !sealed {
			l.t.Errorf("%s of %d bytes is not on the disk any more", c.Digest, c.Size())
		}
		l.committed[k] = l.committed[k] || is
		l.forged[k] = l.forged[k] && !sealed
	}
	if b, ok := l.s.Get(l.contents[i].Digest); ok {
		l.read(b, i)
		b.Release()
	}
}

// read reads all that is served of content i.
func (l *life) read(b *store.Blob, i int) {
	l.t.Helper()
	var evil *storetest.Content
	if l.forged[i] {
		evil = l.evils[i]
	}
	readAll(l.t, b, l.contents[i], evil)
}

// fetch puts pieces in a random order, all of them or some, and perhaps pins the
// blob before it is sealed on the disk.
func (l *life) fetch(c *storetest.Content, all, pin bool) {
	b, err := l.s.Create(c.Digest, c.Size())
	if err != nil {
		return
	}
	defer b.Release()
	if err := b.AddLinks(0, c.Links); err != nil {
		_ = b.Reset()
		_ = b.AddLinks(0, c.Links)
	}
	for _, i := range l.rng.Perm(c.Layout.Pieces()) {
		if all || l.rng.IntN(2) == 0 {
			_ = b.Put(i, c.Piece(i))
		}
	}
	if pin {
		_ = l.s.Pin(c.Digest)
	}
	if l.rng.IntN(4) > 0 {
		_ = b.Seal()
	}
}

// forge puts pieces of another chain, and sometimes finds out.
func (l *life) forge(i int) {
	c := l.contents[i]
	b, err := l.s.Create(c.Digest, c.Size())
	if err != nil || b.Sealed() || c.Layout.Pieces() < 2 {
		if err == nil {
			b.Release()
		}
		return
	}
	defer b.Release()
	l.forged[i] = true
	for k := range c.Layout.Pieces() {
		_ = b.Extend(k, l.evils[i].Piece(k))
	}
	if l.rng.IntN(2) == 0 {
		_ = b.Reset()
	}
}

// lose has the disk fail to read a piece.
func (l *life) lose(i int) {
	c := l.contents[i]
	b, ok := l.s.Get(c.Digest)
	if !ok || c.Layout.Pieces() == 0 {
		if ok {
			b.Release()
		}
		return
	}
	defer b.Release()
	l.committed[i] = false
	l.p.mu.Lock()
	was, once := l.p.fault, false
	l.p.fault = func(op store.Operation, data *[]byte) (bool, error) {
		if op.Kind == "read" && !once && strings.Contains(op.Name, c.Digest.Hex()) {
			once = true
			return false, syscall.EIO
		}
		if was != nil {
			return was(op, data)
		}
		return false, nil
	}
	l.p.mu.Unlock()
	k := l.rng.IntN(c.Layout.Pieces())
	_ = b.ReadPiece(k, make([]byte, c.Layout.Length(k)))
	if l.alive() && l.rng.IntN(2) == 0 {
		_ = b.Put(k, c.Piece(k))
	}
	l.p.mu.Lock()
	l.p.fault = was
	l.p.mu.Unlock()
}
