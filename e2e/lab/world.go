package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e"
	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/fabric"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// world is what a run happens in: links, the origin, the cluster, and what was seen.
// Fields above mu do not change once newWorld has returned.
type world struct {
	options
	scenario scenario
	programs programs
	// say tells people what happens, on standard error.
	say func(format string, args ...any)
	// dir holds every file of the run.
	dir     string
	release func() // gives up the hold on dir

	fabric     *fabric.Fabric
	racks      []*fabric.Rack
	originPort *fabric.Port
	// payload is what one plain TCP flow over a link of rate brings, in bytes per
	// second.
	payload float64
	origin  *origin.Origin
	images  []image
	cluster *cluster.Cluster
	// began is when clients could start.
	began time.Time
	// random makes the scenario's choices; it is for one goroutine.
	random *rand.Rand

	lives  sync.Mutex // held while a member is ended or launched, and while their processes are listed
	guests []guest    // guarded by lives

	mu      sync.Mutex
	ports   map[string]*fabric.Port // by member's name
	pulls   []*pull
	excused map[string]bool
	broken  []string
	notes   []string
	figures map[string]float64
	events  []event
	// sources are the bytes that each node got by kind of source (seed, peer, origin),
	// once the run is over.
	sources map[string]map[string]int64
	// had is what sources would have been before the run began.
	had map[string]map[string]int64
}

// programs are the files that a lab runs: the directory of Damselfly's, the registry,
// and the node that misbehaves.
type programs struct{ bin, registry, rogue string }

// build makes the programs, or takes those of a directory. Needs the repository as
// working directory, or a folder in it.
func build(ctx context.Context, bin string) (programs, error) {
	root, err := repository(ctx)
	if err != nil {
		return programs{}, err
	}
	p := programs{bin: bin, rogue: filepath.Join(bin, "rogue")}
	if p.registry, err = e2e.PrepareLab(ctx, root); err != nil || bin != "" {
		return p, err
	}
	if p.bin, err = e2e.Build(ctx, root, false); err != nil {
		return p, err
	}
	p.rogue, err = e2e.BuildRogue(ctx, root)
	return p, err
}

// newWorld starts everything that a run needs and waits until every node and seed
// attends every scheduler. The caller closes the world, also when it gets an error
// with one.
func newWorld(ctx context.Context, o options, s scenario, p programs, say func(string, ...any)) (*world, error) {
	w := &world{
		options: o, scenario: s, programs: p, say: say,
		random:  rand.New(rand.NewPCG(o.Seed, 0)),
		ports:   map[string]*fabric.Port{},
		excused: map[string]bool{},
		figures: map[string]float64{},
	}
	var err error
	if w.dir, w.release, err = newDir(); err != nil {
		return w, err
	}
	for _, step := range []func(context.Context) error{w.startFabric, w.startOrigin, w.startCluster} {
		if err := step(ctx); err != nil {
			return w, err
		}
	}
	return w, w.attended(ctx)
}

// startFabric makes the links that do not depend on members, and measures what one
// brings.
func (w *world) startFabric(ctx context.Context) (err error) {
	if w.fabric, err = fabric.New(ctx); err != nil {
		return err
	}
	link := fabric.Link{Up: w.rate, Down: w.rate}
	var ends [2]*fabric.Port
	for i, name := range []string{"measure1", "measure2"} {
		if ends[i], err = w.fabric.Add(name, link); err != nil {
			return err
		}
	}
	if w.payload, err = fabric.Calibrate(ctx, ends[0], ends[1]); err != nil {
		return err
	}
	w.say("one TCP flow over a link of %v brings %.2f Mbit/s", w.rate, w.payload*8/1e6)
	for i := range w.options.racks {
		r, err := w.fabric.AddRack(fmt.Sprintf("rack%d", i+1), fabric.Link{Up: w.uplink, Down: w.uplink})
		if err != nil {
			return err
		}
		w.racks = append(w.racks, r)
	}
	w.originPort, err = w.fabric.Add("origin", fabric.Link{Up: w.originRate, Down: w.originRate})
	return err
}

// startOrigin starts the registry and pushes the images beside the origin's link.
func (w *world) startOrigin(ctx context.Context) (err error) {
	w.origin, err = origin.Start(ctx, origin.Config{
		Dir: filepath.Join(w.dir, "origin"), Registry: w.programs.registry, Kind: origin.Token,
		Wire: origin.Wire{Listen: func() (net.Listener, error) {
			return w.originPort.Listen(ctx, "tcp", net.JoinHostPort(w.originPort.Addr().String(), "0"))
		}},
	})
	if err != nil {
		return err
	}
	for i := range w.options.images {
		img, err := sample.New(fmt.Sprintf("lab %d image %d", w.Seed, i), w.layers, sample.OCI)
		if err != nil {
			return err
		}
		repository := fmt.Sprintf("lab/app%d", i+1)
		if err := w.origin.Push(ctx, img, repository, tag); err != nil {
			return err
		}
		w.images = append(w.images, image{img, repository})
	}
	return nil
}

// startCluster starts schedulers, then seeds and nodes, each in its own namespace.
func (w *world) startCluster(ctx context.Context) (err error) {
	w.cluster, err = cluster.Start(ctx, cluster.Config{
		Dir: filepath.Join(w.dir, "cluster"), Bin: w.programs.bin, Schedulers: w.Schedulers, LogLevel: w.LogLevel,
		Hosts: []cluster.Host{{Name: registryName, Endpoint: w.origin.URL, CAFile: w.origin.CAFile}},
		Place: w.place,
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i := range w.Seeds + w.Nodes {
		role, number, list := cluster.Seed, i+1, &w.cluster.Seeds
		if i >= w.Seeds {
			role, number, list = cluster.Node, i-w.Seeds+1, &w.cluster.Nodes
		}
		m, err := w.newMember(fmt.Sprintf("%s%d", role, number), role)
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		// Whoever is in the lists is ended with the cluster.
		*list = append(*list, m)
		group.Go(func() error { return m.Start(ctx) })
	}
	return group.Wait()
}

// newMember makes a member of the cluster that does not run, as the options say. It
// belongs to whoever asked.
func (w *world) newMember(name string, role cluster.Role) (*cluster.Member, error) {
	like := cluster.Member{Name: name, Role: role}
	if w.dataDir != nil {
		like.DataDir = w.dataDir(name)
	}
	m, err := w.cluster.New(like)
	if err != nil {
		return nil, err
	}
	extra := ""
	if rack := w.rackOf(name); rack != nil {
		extra = fmt.Sprintf("topology: {rack: %s}\n", rack.Name())
	}
	if w.alter != nil {
		extra += w.alter(name)
	}
	if extra == "" {
		return m, nil
	}
	f, err := os.OpenFile(m.File, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString("\n" + extra + "\n")
	return m, errors.Join(err, f.Close())
}

// place gives each member a link of its own. A member that is made again keeps its.
func (w *world) place(name string, role cluster.Role) (*fabric.Port, error) {
	if p := w.port(name); p != nil {
		return p, nil
	}
	link := fabric.Link{Up: w.rate, Down: w.rate}
	add := w.fabric.Add
	switch role {
	case cluster.Seed:
		link = fabric.Link{Up: w.seedRate, Down: w.seedRate}
	case cluster.Node:
		link = w.link(number(name) - 1)
		if rack := w.rackOf(name); rack != nil {
			add = rack.Add
		}
	}
	p, err := add(name, link)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports[name] = p
	return p, nil
}

// port is a member's port, nil when it has none.
func (w *world) port(name string) *fabric.Port {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ports[name]
}

// rackOf is the rack that a node stands in; nil is none.
func (w *world) rackOf(name string) *fabric.Rack {
	if n := number(name); n > 0 && len(w.racks) > 0 && name == fmt.Sprintf("%s%d", cluster.Node, n) {
		return w.racks[(n-1)%len(w.racks)]
	}
	return nil
}

// number is the number at the end of a member's name, 0 for none.
func number(name string) int {
	n := 0
	for i, unit := len(name)-1, 1; i >= 0 && name[i] >= '0' && name[i] <= '9'; i, unit = i-1, unit*10 {
		n += unit * int(name[i]-'0')
	}
	return n
}

// attended waits until every running node and seed attends every running scheduler.
func (w *world) attended(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	want := map[string]int{"node": running(w.cluster.Nodes), "seed": running(w.cluster.Seeds)}
	return w.until(ctx, func() error {
		for _, m := range w.cluster.Schedulers {
			if !m.Running() {
				continue
			}
			for state, want := range want {
				got, err := m.Gauge(ctx, "damselfly_peers", "state", state)
				if err != nil {
					return err
				}
				if int(got) != want {
					return fmt.Errorf("%s is attended by %v of %d %ss", m.Name, got, want, state)
				}
			}
		}
		return nil
	})
}

func running(members []*cluster.Member) int {
	n := 0
	for _, m := range members {
		if m.Running() {
			n++
		}
	}
	return n
}

// until calls check every few milliseconds until it returns nil. It errs with what
// check said last when ctx ends.
func (w *world) until(ctx context.Context, check func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, ctx.Err())
		}
	}
}

// close ends and removes everything. Members are ended well, unless hard is set.
func (w *world) close(hard bool) error {
	var errs []error
	for _, g := range w.guests {
		g.process.Kill()
	}
	if w.cluster != nil && hard {
		for _, m := range w.cluster.Members() {
			m.Kill()
		}
	}
	if w.cluster != nil {
		errs = append(errs, w.cluster.Close())
	}
	if w.origin != nil {
		w.origin.Close()
	}
	if w.fabric != nil {
		errs = append(errs, w.fabric.Close())
	}
	if w.release != nil {
		w.release()
		if w.Keep {
			w.say("files are kept in %s", w.dir)
		} else {
			errs = append(errs, os.RemoveAll(w.dir))
		}
	}
	return errors.Join(errs...)
}
