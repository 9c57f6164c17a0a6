package store_test

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/store"
	"github.com/damselfly-p2p/damselfly/pkg/store/storetest"
)

// platter follows every operation of a store and knows what a power cut would
// leave of it: what was synced, and any part of what was not. It is harsher than
// the file systems in use: writes are torn and lost, names change or not, each on
// its own.
type platter struct {
	rng    *rand.Rand
	cutAt  int // the operation before which the power goes
	seen   int
	inodes []*inode
	live   map[string]int // name to inode
	opened map[string]int // inode of the file that was opened last under a name; it may have another by now
	synced map[string]int
	todo   map[string][]func(names map[string]int) // changes of names that are not synced, by directory
}

type inode struct {
	live, synced []byte
	todo         []write // those that are not synced
}

// write is one write to a file, or its truncation when it has no bytes.
type write struct {
	p   []byte
	off int64
}

func (w write) to(data []byte) []byte {
	if w.p == nil {
		return nil
	}
	if grow := int(w.off) + len(w.p) - len(data); grow > 0 {
		data = append(data, make([]byte, grow)...)
	}
	copy(data[w.off:], w.p)
	return data
}

func (n *inode) add(w write) {
	n.live = w.to(n.live)
	n.todo = append(n.todo, w)
}

var errPower = errors.New("the power is cut")

func newPlatter(rng *rand.Rand) *platter {
	return &platter{rng: rng, cutAt: -1, live: map[string]int{}, opened: map[string]int{}, synced: map[string]int{}, todo: map[string][]func(map[string]int){}}
}

func (p *platter) tap(op store.Operation, data *[]byte, off int64, do func() error) error {
	p.seen++
	if p.cutAt >= 0 && p.seen >= p.cutAt {
		return errPower
	}
	if op.Kind != "sync" && op.Kind != "syncdir" { // this disk is made of memory
		if err := do(); err != nil {
			return err
		}
	}
	switch op.Kind {
	case "create":
		p.create(op.Name)
		p.opened[op.Name] = p.live[op.Name]
	case "open", "openread":
		p.opened[op.Name] = p.live[op.Name]
	case "write":
		p.inodes[p.opened[op.Name]].add(write{bytes.Clone(*data), off})
	case "sync":
		n := p.inodes[p.opened[op.Name]]
		n.synced, n.todo = bytes.Clone(n.live), nil
	case "rename":
		id := p.live[op.Name]
		p.names(op.Name, func(names map[string]int) {
			delete(names, op.Name)
			names[op.To] = id
		})
	case "remove":
		p.names(op.Name, func(names map[string]int) { delete(names, op.Name) })
	case "syncdir":
		for _, change := range p.todo[op.Name] {
			change(p.synced)
		}
		p.todo[op.Name] = nil
	}
	return nil
}

func (p *platter) create(name string) {
	if id, ok := p.live[name]; ok {
		p.inodes[id].add(write{})
		return
	}
	id := len(p.inodes)
	p.inodes = append(p.inodes, &inode{})
	p.names(name, func(names map[string]int) { names[name] = id })
}

func (p *platter) names(name string, change func(map[string]int)) {
	change(p.live)
	dir := path.Dir(name)
	p.todo[dir] = append(p.todo[dir], change)
}

// cut writes what the power cut leaves into a new directory.
func (p *platter) cut(tb testing.TB) string {
	names := maps.Clone(p.synced)
	for _, dir := range slices.Sorted(maps.Keys(p.todo)) {
		for _, change := range p.todo[dir] {
			if p.rng.IntN(2) == 0 {
				change(names)
			}
		}
	}
	dir := tb.TempDir()
	for _, name := range slices.Sorted(maps.Keys(names)) {
		n := p.inodes[names[name]]
		data := bytes.Clone(n.synced)
		for _, w := range n.todo {
			if p.rng.IntN(2) == 0 {
				continue
			}
			if len(w.p) > 0 && p.rng.IntN(2) == 0 { // torn: some of it is neither old nor new
				w.p = bytes.Clone(w.p)
				clear(w.p[p.rng.IntN(len(w.p)):])
			}
			data = w.to(data)
		}
		file := filepath.Join(dir, "v1", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

// TestPowerCut cuts the power before each operation of a store's life and opens
// what is left: blobs whose Seal had returned are sealed, all that is served
// is right, and what was lost can be fetched again.
func TestPowerCut(t *testing.T) {
	contents := []*storetest.Content{
		storetest.Random(t, 1, 900), storetest.Random(t, 2, pieceLength+100), storetest.Random(t, 3, 2*pieceLength+1),
	}
	for n := 1; ; n++ {
		p := newPlatter(rand.New(rand.NewPCG(uint64(n), 1)))
		p.cutAt = n
		sealed := live(t, p, contents)
		for range 3 { // a power cut has many outcomes
			s := tapped(t, store.Config{Dir: p.cut(t)}, &breaker{})
			for _, c := range contents {
				checkSurvivor(t, s, c, sealed[c.Digest])
			}
			closeStore(t, s)
		}
		s := tapped(t, store.Config{Dir: p.cut(t)}, &breaker{})
		for _, c := range contents {
			storetest.Fill(t, s, c)
			whole(t, s, c)
		}
		closeStore(t, s)
		if t.Failed() {
			t.Fatalf("power cut before operation %d", n)
		}
		if p.seen < n {
			break
		}
	}
}

// live runs a store until the power is cut and returns which blobs it had said
// to be sealed on disk.
func live(t *testing.T, p *platter, contents []*storetest.Content) map[blob.Digest]bool {
	sealed := map[blob.Digest]bool{}
	cfg := store.Config{Dir: t.TempDir()}
	s, err := store.OpenTapped(cfg, nil, p.tap)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	for round := range 2 {
		for _, c := range contents {
			sealed[c.Digest] = fetch(t, s, c, p)
		}
		middle := contents[1]
		if round == 0 && p.alive() {
			sealed[middle.Digest] = false // and fetched again in the next round
			_ = s.Remove(middle.Digest)
			sealed[contents[2].Digest] = spoil(t, s, cfg.Dir, contents[2], p)
		}
	}
	return sealed
}

func (p *platter) alive() bool { return p.cutAt < 0 || p.seen+1 < p.cutAt }

// fetch puts every piece and tells whether Seal returned with the power
// still there.
func fetch(t *testing.T, s *store.Store, c *storetest.Content, p *platter) bool {
	b, err := s.Create(c.Digest, c.Size())
	if err != nil {
		return false
	}
	defer b.Release()
	if err := b.AddLinks(0, c.Links); err != nil {
		return false
	}
	for i := c.Layout.Pieces() - 1; i >= 0; i-- {
		if b.Put(i, c.Piece(i)) != nil {
			return false
		}
	}
	if !b.Sealed() {
		t.Error("not sealed after every Put went well")
	}
	return b.Seal() == nil && p.alive()
}

// spoil cuts the data of a sealed blob short, so that it loses a piece and its
// seal, and puts garbage of an earlier life in its place.
func spoil(t *testing.T, s *store.Store, dir string, c *storetest.Content, p *platter) bool {
	b, ok := s.Get(c.Digest)
	if !ok {
		return false
	}
	defer b.Release()
	name := filepath.Join(c.Digest.Algorithm(), c.Digest.Hex()[:2], c.Digest.Hex())
	if err := os.Truncate(filepath.Join(dir, "v1", name), pieceLength); err != nil {
		return true
	}
	err := b.ReadPiece(1, make([]byte, pieceLength))
	if p.alive() {
		wantError(t, "read of a piece that is cut off", err, store.ErrDamaged)
	}
	return !errors.Is(err, store.ErrDamaged) && p.alive()
}

func checkSurvivor(t *testing.T, s *store.Store, c *storetest.Content, sealed bool) {
	t.Helper()
	b, ok := s.Get(c.Digest)
	if !ok {
		if sealed {
			t.Errorf("%s of %d bytes was sealed and is lost", c.Digest, c.Size())
		}
		return
	}
	defer b.Release()
	if sealed && !b.Sealed() {
		t.Errorf("%s of %d bytes was sealed and is not", c.Digest, c.Size())
	}
	if err := b.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	have := b.Have()
	for i := have.NextSet(0); i < have.Len(); i = have.NextSet(i + 1) {
		buf := make([]byte, c.Layout.Length(i))
		if err := b.ReadPiece(i, buf); err != nil || !bytes.Equal(buf, c.Piece(i)) {
			t.Errorf("piece %d of %d serves wrong bytes: %v", i, c.Layout.Pieces(), err)
		}
	}
}
