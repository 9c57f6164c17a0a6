package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// model is a store without a disk, written as dumbly as it can be.
type model struct {
	limit int64
	blobs map[blob.Digest]*modelBlob
	order []blob.Digest // least recently used first
}

type modelBlob struct {
	c      *storetest.Content
	links  map[int]string
	pieces map[int][]byte
	pinned bool
	users  []*store.Blob
}

func (m *modelBlob) sealed() bool { return len(m.pieces) == m.c.Layout.Pieces() }

func (m *model) use(d blob.Digest) {
	m.order = append(slices.DeleteFunc(m.order, func(o blob.Digest) bool { return o == d }), d)
}

func (m *model) drop(d blob.Digest) {
	delete(m.blobs, d)
	m.order = slices.DeleteFunc(m.order, func(o blob.Digest) bool { return o == d })
}

func (m *model) used() (n int64) {
	for _, b := range m.blobs {
		n += b.c.Size()
	}
	return n
}

// room evicts, or says that it cannot.
func (m *model) room(size int64) bool {
	var victims []blob.Digest
	need := m.used() + size - m.limit
	for _, d := range m.order {
		if b := m.blobs[d]; need > 0 && !b.pinned && len(b.users) == 0 {
			victims = append(victims, d)
			need -= b.c.Size()
		}
	}
	if need > 0 {
		return false
	}
	for _, d := range victims {
		m.drop(d)
	}
	return true
}

// put is what Put and Extend ought to do.
func (m *modelBlob) put(i int, piece []byte, origin bool) error {
	last := i == m.c.Layout.Pieces()-1
	if m.pieces[i] != nil {
		return nil
	}
	if m.links[i] == "" || !last && m.links[i+1] == "" && !origin {
		return blob.ErrUnknownLink
	}
	next, err := blob.Advance(m.c.Digest, m.c.Layout, i, []byte(m.links[i]), piece)
	if err != nil && origin && last {
		return store.ErrBadDigest
	}
	if err != nil || !last && m.links[i+1] != "" && m.links[i+1] != string(next) {
		return blob.ErrMismatch
	}
	if !last {
		m.links[i+1] = string(next)
	}
	m.pieces[i] = piece
	return nil
}

func (m *modelBlob) addLinks(first int, links []byte) error {
	for i := 0; i*32 < len(links); i++ {
		if old := m.links[first+i]; old != "" && old != string(links[i*32:(i+1)*32]) {
			return blob.ErrConflict
		}
	}
	for i := 0; i*32 < len(links); i++ {
		m.links[first+i] = string(links[i*32 : (i+1)*32])
	}
	return nil
}

func (m *modelBlob) reset() {
	if !m.sealed() {
		m.pieces = map[int][]byte{}
		m.links = map[int]string{0: m.links[0]}
	}
}

// machine drives a store and its model with the same calls.
type machine struct {
	dir   string
	s     *store.Store
	m     *model
	right []*storetest.Content
	evil  []*storetest.Content // as long as right, other bytes
}

func (k *machine) open(t *rapid.T) {
	s, err := store.Open(store.Config{Dir: k.dir, MaxBytes: k.m.limit}, nil)
	if err != nil {
		t.Fatal(err)
	}
	k.s = s
}

func (k *machine) draw(t *rapid.T) (right, evil *storetest.Content) {
	i := rapid.IntRange(0, len(k.right)-1).Draw(t, "blob")
	return k.right[i], k.evil[i]
}

// inUse draws a blob that somebody has in use.
func (k *machine) inUse(t *rapid.T) (*store.Blob, *modelBlob, *storetest.Content) {
	right, evil := k.draw(t)
	m := k.m.blobs[right.Digest]
	if m == nil || len(m.users) == 0 {
		t.Skip("not in use")
	}
	return m.users[0], m, evil
}

func (k *machine) Create(t *rapid.T) {
	c, _ := k.draw(t)
	b, err := k.s.Create(c.Digest, c.Size())
	m := k.m.blobs[c.Digest]
	if m == nil {
		if !k.m.room(c.Size()) {
			if !errors.Is(err, store.ErrNoSpace) {
				t.Fatalf("create: %v, want no space", err)
			}
			return
		}
		m = &modelBlob{c: c, links: map[int]string{0: string(c.Digest.FirstLink())}, pieces: map[int][]byte{}}
		k.m.blobs[c.Digest] = m
	}
	if err != nil {
		t.Fatal(err)
	}
	m.users = append(m.users, b)
	k.m.use(c.Digest)
}

func (k *machine) Get(t *rapid.T) {
	c, _ := k.draw(t)
	b, ok := k.s.Get(c.Digest)
	m := k.m.blobs[c.Digest]
	if ok != (m != nil) {
		t.Fatalf("Get: %v", ok)
	}
	if ok {
		m.users = append(m.users, b)
		k.m.use(c.Digest)
	}
}

func (k *machine) Release(t *rapid.T) {
	b, m, _ := k.inUse(t)
	b.Release()
	if m.users = m.users[1:]; len(m.users) == 0 {
		k.m.use(m.c.Digest)
	}
}

func (k *machine) Put(t *rapid.T) {
	b, m, evil := k.inUse(t)
	from := rapid.SampledFrom([]*storetest.Content{m.c, m.c, m.c, evil}).Draw(t, "from")
	if m.c.Layout.Pieces() == 0 {
		return
	}
	i := rapid.IntRange(0, m.c.Layout.Pieces()-1).Draw(t, "piece")
	origin := rapid.Bool().Draw(t, "origin")
	want := m.put(i, from.Piece(i), origin)
	err := b.Put
	if origin {
		err = b.Extend
	}
	if got := err(i, from.Piece(i)); !errors.Is(got, want) {
		t.Fatalf("put piece %d: %v, want %v", i, got, want)
	}
	if err := b.Seal(); err != nil {
		t.Fatal(err)
	}
}

// Fetch puts the whole blob, if its chain is right.
func (k *machine) Fetch(t *rapid.T) {
	b, m, _ := k.inUse(t)
	for i := range m.c.Layout.Pieces() {
		want := m.put(i, m.c.Piece(i), true)
		if got := b.Extend(i, m.c.Piece(i)); !errors.Is(got, want) {
			t.Fatalf("extend piece %d: %v, want %v", i, got, want)
		}
	}
	if err := b.Seal(); err != nil {
		t.Fatal(err)
	}
}

func (k *machine) AddLinks(t *rapid.T) {
	b, m, evil := k.inUse(t)
	from := rapid.SampledFrom([]*storetest.Content{m.c, m.c, evil}).Draw(t, "from")
	n := m.c.Layout.Pieces()
	first := rapid.IntRange(0, n).Draw(t, "first")
	links := from.Links[first*32 : rapid.IntRange(first, n).Draw(t, "end")*32]
	want := m.addLinks(first, links)
	if err := b.AddLinks(first, links); !errors.Is(err, want) {
		t.Fatalf("links %d: %v, want %v", first, err, want)
	}
}

func (k *machine) Reset(t *rapid.T) {
	b, m, _ := k.inUse(t)
	m.reset()
	if err := b.Reset(); err != nil {
		t.Fatal(err)
	}
}

func (k *machine) Remove(t *rapid.T) {
	c, _ := k.draw(t)
	m := k.m.blobs[c.Digest]
	want := error(nil)
	if m == nil {
		want = store.ErrNotHeld
	}
	if err := k.s.Remove(c.Digest); !errors.Is(err, want) {
		t.Fatalf("remove: %v, want %v", err, want)
	}
	if m != nil {
		k.m.drop(c.Digest)
		for _, b := range m.users {
			if err := b.Put(0, nil); m.c.Size() > 0 && !errors.Is(err, store.ErrRemoved) {
				t.Fatalf("put into a removed blob: %v", err)
			}
			b.Release()
		}
	}
}

func (k *machine) Pin(t *rapid.T) {
	c, _ := k.draw(t)
	pin := rapid.Bool().Draw(t, "pin")
	call := k.s.Unpin
	if pin {
		call = k.s.Pin
	}
	m := k.m.blobs[c.Digest]
	if m == nil {
		if err := call(c.Digest); !errors.Is(err, store.ErrNotHeld) {
			t.Fatalf("pin: %v", err)
		}
		return
	}
	if err := call(c.Digest); err != nil {
		t.Fatal(err)
	}
	m.pinned = pin
	k.m.use(c.Digest)
}

func (k *machine) release() {
	for _, m := range k.m.blobs {
		for _, b := range m.users {
			b.Release()
		}
		m.users = nil
	}
}

func (k *machine) Reopen(t *rapid.T) {
	if rapid.IntRange(0, 2).Draw(t, "rare") > 0 {
		t.Skip("not now")
	}
	if err := k.s.Close(); err != nil {
		t.Fatal(err)
	}
	k.release()
	k.open(t)
	k.verify(t, func(d blob.Digest, m *modelBlob, got *blob.Bitmap) {
		if got.Count() != len(m.pieces) {
			t.Fatalf("%s came back with %d of %d pieces", d, got.Count(), len(m.pieces))
		}
	})
}

// Kill may lose pieces of blobs that are not sealed, and such blobs altogether.
func (k *machine) Kill(t *rapid.T) {
	if rapid.IntRange(0, 2).Draw(t, "rare") > 0 {
		t.Skip("not now")
	}
	k.s.Kill()
	k.release()
	k.open(t)
	k.verify(t, func(d blob.Digest, m *modelBlob, got *blob.Bitmap) {
		if m.sealed() && !got.Full() {
			t.Fatalf("%s was sealed and is not", d)
		}
	})
}

// verify takes what a store came back with into the model, after judging it.
func (k *machine) verify(t *rapid.T, judge func(blob.Digest, *modelBlob, *blob.Bitmap)) {
	for d, m := range maps.Clone(k.m.blobs) {
		b, ok := k.s.Get(d)
		if !ok {
			judge(d, m, blob.NewBitmap(m.c.Layout.Pieces()))
			k.m.drop(d)
			continue
		}
		if err := b.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		have := b.Have()
		judge(d, m, have)
		missing := map[int]bool{}
		for _, r := range b.Missing(m.c.Layout.All()) {
			for i := r.First; i < r.End(); i++ {
				missing[i] = true
			}
		}
		for i := range m.c.Layout.Pieces() {
			if missing[i] {
				delete(m.pieces, i)
			} else if m.pieces[i] == nil {
				t.Fatalf("%s came back with piece %d, which it never had", d, i)
			}
			if i > 0 {
				delete(m.links, i)
				if _, link := b.Links(i, 1); len(link) > 0 {
					m.links[i] = string(link)
				}
			}
		}
		b.Release()
	}
	k.m.order = k.m.order[:0]
	infos := k.s.Blobs()
	slices.SortFunc(infos, func(a, b store.Info) int { return a.LastUse.Compare(b.LastUse) })
	for _, i := range infos {
		m := k.m.blobs[i.Digest]
		if m == nil {
			t.Fatalf("%s came back from nowhere", i.Digest)
		}
		m.pinned = i.Pinned
		k.m.use(i.Digest)
	}
}

// Check compares all that can be seen.
func (k *machine) Check(t *rapid.T) {
	var got, want []string
	for _, i := range k.s.Blobs() {
		got = append(got, fmt.Sprint(i.Digest, i.Size, i.Held, i.Sealed, i.Pinned, i.InUse))
	}
	for _, d := range slices.Sorted(maps.Keys(k.m.blobs)) {
		m := k.m.blobs[d]
		want = append(want, fmt.Sprint(d, m.c.Size(), len(m.pieces), m.sealed(), m.pinned, len(m.users) > 0))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("holds %v, want %v", got, want)
	}
	if k.s.Reserved() != k.m.used() || k.m.used() > k.m.limit {
		t.Fatalf("%d bytes reserved, %d expected", k.s.Reserved(), k.m.used())
	}
	for _, m := range k.m.blobs {
		if len(m.users) > 0 {
			k.checkBlob(t, m.users[0], m)
		}
	}
}

func (k *machine) checkBlob(t *rapid.T, b *store.Blob, m *modelBlob) {
	have, ok, front, n := b.Have(), m.pieces, b.Front(), m.c.Layout.Pieces()
	for i := range n {
		if have.Has(i) != (ok[i] != nil) {
			t.Fatalf("Have of piece %d: %v", i, have.Has(i))
		}
		if (m.pieces[i] == nil && i < front) || (m.pieces[i] != nil && i == front) {
			t.Fatalf("front %d, piece %d held: %v", front, i, m.pieces[i] != nil)
		}
		if _, link := b.Links(i, 1); string(link) != m.links[i] {
			t.Fatalf("link %d is %x, want %x", i, link, m.links[i])
		}
		buf := make([]byte, m.c.Layout.Length(i))
		switch err := b.ReadPiece(i, buf); {
		case ok[i] == nil && !errors.Is(err, store.ErrMissing):
			t.Fatalf("piece %d, which is not to be served: %v", i, err)
		case ok[i] != nil && (err != nil || !bytes.Equal(buf, ok[i])):
			t.Fatalf("piece %d reads other bytes: %v", i, err)
		}
	}
	if m.sealed() {
		if got, err := storetest.Read(t.Context(), b); err != nil || !bytes.Equal(got, m.c.Data) {
			t.Fatalf("sealed blob reads %d bytes, %v", len(got), err)
		}
	}
}

// TestAgainstModel does the same to a store and to the model, with restarts and
// kills in between, and compares them after every step.
func TestAgainstModel(t *testing.T) {
	var right, evil []*storetest.Content
	for i, size := range []int64{0, 1000, 2 * pieceLength, 3*pieceLength + 5} {
		right = append(right, storetest.Random(t, uint64(i), size))
		evil = append(evil, storetest.Random(t, uint64(i)+100, size))
	}
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "store-model-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		k := &machine{dir: dir, right: right, evil: evil, m: &model{limit: 4*pieceLength + 2000, blobs: map[blob.Digest]*modelBlob{}}}
		k.open(t)
		defer func() { _ = k.s.Close() }()
		t.Repeat(rapid.StateMachineActions(k))
	})
}
