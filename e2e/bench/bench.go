package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/damselfly-p2p/damselfly/e2e"
	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/process"
	"github.com/damselfly-p2p/damselfly/pkg/blob"
	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/identity"
)

const (
	// blobSize is the least size of the blob that is moved, in parts: its pieces have
	// 4 MiB each.
	blobSize = 4 << 30
	// leastSlice is the least that one round of a row moves.
	leastSlice = 16 << 20
)

// bench is a run of the program.
type bench struct {
	options
	say   func(string, ...any)
	wants func(row string) bool
	// layers are one to be hit, manyLayers to be pulled at once, and a large one.
	layers []layer
	origin *origin
}

// run measures everything that o says.
func run(ctx context.Context, o options, say func(string, ...any)) (r *report, err error) {
	only, err := regexp.Compile(o.only)
	if err != nil {
		return nil, fmt.Errorf("--only: %w", err)
	}
	if o.bin == "" {
		if o.bin, err = build(ctx); err != nil {
			return nil, err
		}
	}
	if o.dir, err = os.MkdirTemp(o.dir, "damselfly-bench-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	b := &bench{options: o, say: say, wants: only.MatchString}
	r = newReport(o)
	others, err := watchOthers()
	if err != nil {
		return nil, err
	}
	if err := b.sizes(); err != nil {
		return nil, err
	}
	say("hashes layers of zeros")
	if err := nameLayers(ctx, b.layers); err != nil {
		return nil, err
	}
	if b.origin, err = startOrigin(b.layers); err != nil {
		return nil, err
	}
	defer b.origin.server.Close()
	if err := b.pipes(ctx, r); err != nil {
		return nil, err
	}
	if err := b.memory(ctx, r); err != nil {
		return nil, err
	}
	r.Others, err = others()
	return r, err
}

// build makes Damselfly's programs. Needs the repository as working directory, or a
// folder in it.
func build(ctx context.Context) (bin string, err error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOMOD")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w; the bench builds what it measures and needs Go, or --bin", err)
	}
	return e2e.Build(ctx, filepath.Dir(strings.TrimSpace(string(out))), false)
}

// sizes decides how large the layers are.
func (b *bench) sizes() error {
	b.layers = []layer{{size: min(max(b.bytes/8, 256<<20), 1<<30)}}
	if !b.wants(rowMemory) {
		return nil
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(b.dir, &disk); err != nil {
		return err
	}
	room := int64(disk.Bavail) * disk.Bsize * 9 / 10 // others need some
	fit := func(size, copies int64) int64 {
		if size*copies <= room {
			return size
		}
		fits := room / copies / 1e8 * 1e8
		b.say("the disk of %s has no room for %d times a layer of %s: it is made %s", b.dir, copies, config.Bytes(size), config.Bytes(fits))
		return fits
	}
	many := fit(b.bytes/2, 2*manyLayers) // a seed has each, too
	for i := range manyLayers {
		b.layers = append(b.layers, layer{number: i + 1, size: many})
	}
	if b.big {
		b.layers = append(b.layers, layer{number: manyLayers + 1, size: fit(b.bytes/2*25, 1)})
	}
	return nil
}

// pipes measures everything that needs the other end.
func (b *bench) pipes(ctx context.Context, r *report) (err error) {
	if !slices.ContainsFunc(moving(), b.wants) {
		return nil
	}
	size := int64(leastSlice)
	if slices.ContainsFunc(moving()[:5], b.wants) {
		size = max(b.bytes, blobSize)
	}
	b.say("makes a blob of %s", config.Bytes(size))
	f, err := startFar(ctx, b.dir, size, b.profileOf("far.pprof"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close(), os.RemoveAll(filepath.Join(b.dir, "far"))) }()
	if size >= blobSize {
		if err := b.exchange(ctx, r, f); err != nil {
			return err
		}
	}
	if !b.wants(rowHit) && !b.wants(rowFiles) && !b.wants(rowManifest) {
		return nil
	}
	c, err := b.nodes(ctx, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.end(c)) }()
	if err := b.hits(ctx, r, f, c.Nodes[0], b.layers[0]); err != nil {
		return err
	}
	return b.manifests(ctx, r, f, c.Nodes[0])
}

// nodes starts a node, alone or with so many seeds and a scheduler.
func (b *bench) nodes(ctx context.Context, seeds int) (*cluster.Cluster, error) {
	return cluster.Start(ctx, cluster.Config{
		Dir: filepath.Join(b.dir, "cluster"), Bin: b.bin, Alone: seeds == 0, Seeds: seeds, Nodes: 1,
		Hosts: []cluster.Host{{Name: registryName, Endpoint: b.origin.server.URL}}, LogLevel: "warn",
	})
}

// end stops nodes and removes what they stored.
func (b *bench) end(c *cluster.Cluster) error {
	return errors.Join(c.Close(), os.RemoveAll(filepath.Join(b.dir, "cluster")))
}

// exchange measures the piece exchange and what it is made of.
func (b *bench) exchange(ctx context.Context, r *report, f *far) (err error) {
	id, err := newIdentity(b.dir, "near-identity")
	if err != nil {
		return err
	}
	e, err := newExchange(ctx, b.dir, id, f.hello)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	plain, err := openPipe(ctx, f.Plain, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plain.conn.Close()) }()
	secure, err := openPipe(ctx, f.TLS, id.ClientTLS(identity.Expect{Roles: []identity.Role{identity.RoleNode}, ID: f.ID}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, secure.conn.Close()) }()

	file := filepath.Join(b.dir, "near", "alone")
	remove := func() error { return os.Remove(file) }
	buf := make([]byte, largeWrite)
	data := noise(e.layout.PieceLength())
	stop, err := process.ProfileSelf(b.profileOf("near.pprof"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	tasks := b.chosen([]task{
		{name: rowSendfile, after: remove, move: func(_ context.Context, s slice) error { return plain.into(file, s.request) }},
		{name: rowTLS, move: func(_ context.Context, s slice) error { return secure.away(buf, s.request) }},
		{name: rowHash, move: func(ctx context.Context, s slice) error { return hashAlone(ctx, data, s.Bytes) }},
		{name: rowWrite, after: remove, move: func(ctx context.Context, s slice) error { return writeAlone(ctx, file, data, s.Bytes) }},
		{name: rowExchange, before: e.begin, after: e.forget, move: func(ctx context.Context, s slice) error { return e.pull(ctx, s.run) }},
	})
	for i := range tasks {
		tasks[i].pid, tasks[i].heap = f.pid(), f.heap
	}
	return b.takeTurns(ctx, r, b.slices(e.layout), tasks)
}

// profileOf is the file for a profile, "" where none is wanted.
func (b *bench) profileOf(name string) string {
	if b.profile == "" {
		return ""
	}
	return filepath.Join(b.profile, name)
}

// chosen are the rows that are to be measured.
func (b *bench) chosen(all []task) []task {
	return slices.DeleteFunc(all, func(t task) bool { return !b.wants(t.name) })
}

// slices cuts what a row moves into rounds. Each goes on where the one before ended,
// at a piece's edge.
func (b *bench) slices(l blob.Layout) []slice {
	out := make([]slice, b.options.rounds)
	count := max(1, int(b.bytes/int64(len(out))/l.PieceLength()))
	for i := range out {
		run := blob.Run{First: i * count % (l.Pieces() - count + 1), Count: count}
		out[i] = slice{run, request{l.Offset(run.First), l.Bytes(run)}}
	}
	return out
}
