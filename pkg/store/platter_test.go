package store_test

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/store"
)

// platter follows every operation of a store and knows what a power cut would
// leave of it: what was synced, and any part of what was not. It is harsher than
// the file systems in use: each sector of a write that is not synced is old, new or
// garbage, and each change of a name is there or not, on its own. After a sync that
// failed the memory holds what the disk does not, and nothing writes it any more.
type platter struct {
	mu     sync.Mutex
	rng    *rand.Rand
	dir    string // of the store, where the files of the living are
	cutAt  int    // the operation before which the power goes
	seen   int
	inodes []*inode
	live   map[string]int // name to inode; directories have inode 0
	opened map[string]int // inode of the file that was opened last under a name; it may have another by now
	synced map[string]int
	todo   map[string][]func(names map[string]int) // changes of names that are not synced, by directory

	// fault breaks an operation: it may shorten what is written, and returns the error, and whether the operation is
	// done all the same. nil breaks none.
	fault func(op store.Operation, data *[]byte) (done bool, err error)
}

type inode struct {
	disk   []byte // what was synced
	todo   []write
	strays bool // a sync failed: the store reads bytes that will never be on the disk
}

// write is one write to a file, or its truncation when it has no bytes.
type write struct {
	p   []byte
	off int64
}

const sector = 512

func (w write) to(data []byte) []byte {
	if w.p == nil {
		return nil
	}
	data = grow(data, w.off+int64(len(w.p)))
	copy(data[w.off:], w.p)
	return data
}

func grow(data []byte, size int64) []byte {
	if n := int(size) - len(data); n > 0 {
		data = append(data, make([]byte, n)...)
	}
	return data
}

// tear is to of a write that the power cut overtook.
func (w write) tear(data []byte, rng *rand.Rand) []byte {
	share := rng.IntN(3) // of the sectors that get there, in halves
	if w.p == nil {
		if share == 0 {
			return data
		}
		return nil
	}
	if share == 0 && rng.IntN(2) == 0 { // not even the file's length has changed
		return data
	}
	data = grow(data, w.off+int64(len(w.p)))
	for at := 0; at < len(w.p); at += sector {
		piece := w.p[at:min(at+sector, len(w.p))]
		switch to := data[int(w.off)+at:]; {
		case rng.IntN(100) == 0:
			for i := range piece {
				to[i] = byte(rng.Uint32())
			}
		case rng.IntN(2) < share:
			copy(to, piece)
		}
	}
	return data
}

var errPower = errors.New("the power is cut")

// newPlatter is one that was there before the power came back: dir has what is on
// it.
func newPlatter(tb testing.TB, rng *rand.Rand, dir string) *platter {
	tb.Helper()
	p := &platter{
		rng: rng, dir: dir, cutAt: -1, inodes: make([]*inode, 1), opened: map[string]int{}, synced: map[string]int{},
		todo: map[string][]func(map[string]int){},
	}
	root := filepath.Join(dir, "v1")
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil || e.IsDir() {
			p.synced[rel] = 0
			return err
		}
		data, err := os.ReadFile(name)
		p.synced[rel] = len(p.inodes)
		p.inodes = append(p.inodes, &inode{disk: data})
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		tb.Fatal(err)
	}
	p.live = maps.Clone(p.synced)
	if len(p.synced) == 0 {
		p.names("..", func(names map[string]int) { names["."] = 0 })
	}
	return p
}

func (p *platter) tap(op store.Operation, data *[]byte, off int64, do func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen++
	if p.cutAt >= 0 && p.seen >= p.cutAt {
		return errPower
	}
	var broken error
	if p.fault != nil {
		done, err := p.fault(op, data)
		if op.Kind == "sync" && err != nil {
			p.failSync(p.inodes[p.opened[op.Name]], op.Name)
		}
		if err != nil && !done {
			return err
		}
		broken = err
	}
	if op.Kind != "sync" && op.Kind != "syncdir" { // this disk is made of memory
		if err := do(); err != nil {
			return errors.Join(broken, err)
		}
	}
	if op.Kind != "sync" || broken == nil {
		p.follow(op, *data, off)
	}
	return broken
}

// follow does on the platter what was done in the directory.
func (p *platter) follow(op store.Operation, data []byte, off int64) {
	switch op.Kind {
	case "mkdir":
		if _, ok := p.live[op.Name]; !ok {
			p.names(path.Dir(op.Name), func(names map[string]int) { names[op.Name] = 0 })
		}
	case "create":
		p.create(op.Name)
		p.opened[op.Name] = p.live[op.Name]
	case "link": // to a file of somebody who has synced it
		data, _ := os.ReadFile(filepath.Join(p.dir, "v1", op.Name))
		id := len(p.inodes)
		p.inodes = append(p.inodes, &inode{disk: data})
		p.names(path.Dir(op.Name), func(names map[string]int) { names[op.Name] = id })
	case "open", "openread":
		p.opened[op.Name] = p.live[op.Name]
	case "write":
		n := p.inodes[p.opened[op.Name]]
		n.todo = append(n.todo, write{bytes.Clone(data), off})
	case "sync":
		n := p.inodes[p.opened[op.Name]]
		for _, w := range n.todo {
			n.disk = w.to(n.disk)
		}
		n.todo = nil
	case "forget":
		p.forget(p.inodes[p.opened[op.Name]], op.Name)
	case "rename":
		id := p.live[op.Name]
		p.names(path.Dir(op.Name), func(names map[string]int) {
			delete(names, op.Name)
			names[op.To] = id
		})
	case "remove":
		if _, ok := p.live[op.Name]; ok {
			p.names(path.Dir(op.Name), func(names map[string]int) { delete(names, op.Name) })
		}
	case "syncdir":
		for _, change := range p.todo[op.Name] {
			change(p.synced)
		}
		p.todo[op.Name] = nil
	}
}

func (p *platter) create(name string) {
	if id, ok := p.live[name]; ok {
		n := p.inodes[id]
		n.todo = append(n.todo, write{})
		return
	}
	id := len(p.inodes)
	p.inodes = append(p.inodes, &inode{})
	p.names(path.Dir(name), func(names map[string]int) { names[name] = id })
}

// names changes names, and keeps the change until dir is synced.
func (p *platter) names(dir string, change func(map[string]int)) {
	change(p.live)
	p.todo[dir] = append(p.todo[dir], change)
}

// failSync gets some of what was written to the disk and forgets the rest.
func (p *platter) failSync(n *inode, name string) {
	for _, w := range n.todo {
		n.disk = w.tear(n.disk, p.rng)
	}
	n.todo, n.strays = nil, true
	if p.rng.IntN(2) == 0 { // some file systems drop it from memory at once, others keep it
		p.forget(n, name)
	}
}

// forget has the file read as it is on the disk, where nothing waits to be written.
func (p *platter) forget(n *inode, name string) {
	if !n.strays {
		return
	}
	n.strays = false
	data := bytes.Clone(n.disk)
	for _, w := range n.todo {
		data = w.to(data)
	}
	_ = os.WriteFile(filepath.Join(p.dir, "v1", name), data, 0o600) // removed meanwhile: nobody reads it
}

func (p *platter) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cutAt < 0 || p.seen < p.cutAt
}

// cut writes what the power cut leaves into a new directory.
func (p *platter) cut(tb testing.TB) string {
	tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	names := maps.Clone(p.synced)
	for _, dir := range slices.Sorted(maps.Keys(p.todo)) {
		for _, change := range p.todo[dir] {
			if p.rng.IntN(2) == 0 {
				change(names)
			}
		}
	}
	dir := memoryDir(tb)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		file := filepath.Join(dir, "v1", name)
		if !reachable(names, name) {
			continue
		}
		err := os.MkdirAll(filepath.Dir(file), 0o700)
		if n := p.inodes[names[name]]; n != nil && err == nil {
			data := n.disk
			if len(n.todo) > 0 {
				data = bytes.Clone(data)
			}
			for _, w := range n.todo {
				data = w.tear(data, p.rng)
			}
			err = os.WriteFile(file, data, 0o600)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

// reachable tells whether the directories that name is in are there.
func reachable(names map[string]int, name string) bool {
	for name != "." {
		name = path.Dir(name)
		if _, ok := names[name]; !ok {
			return false
		}
	}
	return true
}

// memoryDir is a directory for the time of the test, in memory where there is one:
// what survives is the platter's to say.
func memoryDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "store-")
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
