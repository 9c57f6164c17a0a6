// Package cluster runs Damselfly's own binaries as processes on loopback: a
// scheduler, seeds and nodes with directories of their own. The end-to-end tests
// and the demo start theirs by it.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e/fabric"
	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// Config says which cluster to start.
type Config struct {
	// Dir is the cluster's own directory; Bin that of scheduler, seed and dfget.
	Dir, Bin string
	// Seeds and Nodes are how many there are; Schedulers too, with one for 0.
	Schedulers, Seeds, Nodes int
	// Alone leaves the scheduler out: each node works by itself.
	Alone bool
	// Hosts says where registries are served.
	Hosts []Host
	// Intercept lists the registries that the nodes' HTTPS proxies serve.
	Intercept []string
	// Place gives each member a machine of its own on a network; nil: all are on
	// loopback.
	Place func(name string, role Role) (*fabric.Port, error)
	// Env is added to the environment of every member.
	Env []string
	// LogLevel is info when empty.
	LogLevel string
}

// Host is a registry by its name in image references and the URL of its server.
type Host struct {
	Name     string `yaml:"name"`
	Endpoint string `yaml:"endpoint"`
	// CAFile signs the server's certificate; CertFile and KeyFile are what a server that
	// wants to know its clients is shown.
	CAFile   string `yaml:"caFile,omitempty"`
	CertFile string `yaml:"certFile,omitempty"`
	KeyFile  string `yaml:"keyFile,omitempty"`
}

// Cluster is a running cluster.
type Cluster struct {
	// Scheduler is the first of the Schedulers: it made the CA and all join tokens,
	// and is the only one that seeds and nodes are told of.
	Scheduler                *Member
	Schedulers, Seeds, Nodes []*Member

	cfg Config
}

// Member is one process of a cluster. Its fields do not change once it is made;
// a stopped member may be started again.
type Member struct {
	Name string
	Role Role
	// Dir holds the member's File (its configuration), its DataDir and its log.
	Dir, File, DataDir string
	// Share is the root directory of the containerd whose files a node shares.
	Share string
	// Mirror, Hub and Proxy are the URLs of a node's faces: for any registry, for
	// Docker Hub alone, and as an HTTPS proxy, whose CA is in CAFile.
	Mirror, Hub, Proxy, CAFile string
	// Ops is the address of /metrics and /readyz, Peer that where other members
	// reach this one, Gossip that where a scheduler's peers do. Trace is the file of
	// what one of several schedulers was told.
	Ops, Peer, Gossip, Trace string

	port    *fabric.Port // nil: on loopback
	client  *http.Client
	program string
	args    []string
	env     []string
	process *process.Process
}

// Bounds on how long a member may take.
const (
	startTimeout = 30 * time.Second
	stopTimeout  = 15 * time.Second
)

// Start starts a cluster and waits until every member is ready. The caller
// closes it.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	c := &Cluster{cfg: cfg}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start cluster: %w", err), c.Close())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	if !c.cfg.Alone {
		for range max(c.cfg.Schedulers, 1) {
			if _, err := c.AddScheduler(ctx); err != nil {
				return err
			}
		}
	}
	for i := range c.cfg.Seeds {
		if err := c.add(Seed, i+1); err != nil {
			return err
		}
	}
	for i := range c.cfg.Nodes {
		if err := c.add(Node, i+1); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, m := range append(append([]*Member(nil), c.Seeds...), c.Nodes...) {
		group.Go(func() error { return m.Start(ctx) })
	}
	return group.Wait()
}

// AddScheduler starts a further scheduler, which gets the CA from the first, and
// waits until it is ready. Close ends it.
func (c *Cluster) AddScheduler(ctx context.Context) (*Member, error) {
	name := "scheduler"
	if n := len(c.Schedulers); n > 0 {
		name = fmt.Sprintf("scheduler%d", n+1)
	}
	m, err := c.New(Member{Name: name, Role: Scheduler})
	if err != nil {
		return nil, err
	}
	if c.Schedulers = append(c.Schedulers, m); c.Scheduler == nil {
		c.Scheduler = m
	}
	return m, m.Start(ctx)
}

func (c *Cluster) add(role Role, number int) error {
	m, err := c.New(Member{Name: fmt.Sprintf("%s%d", role, number), Role: role})
	if err != nil {
		return err
	}
	if role == Seed {
		c.Seeds = append(c.Seeds, m)
	} else {
		c.Nodes = append(c.Nodes, m)
	}
	return nil
}

// New makes a member that does not run: its directory, its configuration, its
// join token. Fields of like beside Name and Role may be set to choose directory
// and addresses. The caller ends what it starts of it; Close does not.
func (c *Cluster) New(like Member) (*Member, error) {
	m := &like
	if m.Dir == "" {
		m.Dir = filepath.Join(c.cfg.Dir, m.Name)
	}
	if err := c.place(m); err != nil {
		return nil, err
	}
	if err := c.configure(m); err != nil {
		return nil, err
	}
	program, args := m.command()
	m.program, m.args, m.env = filepath.Join(c.cfg.Bin, program), args, c.cfg.Env
	if c.Scheduler == nil {
		return m, nil
	}
	return m, c.token(m)
}

// place gives a member its machine and the addresses there.
func (c *Cluster) place(m *Member) (err error) {
	m.client = http.DefaultClient
	if c.cfg.Place == nil {
		return nil
	}
	if m.port, err = c.cfg.Place(m.Name, m.Role); err != nil {
		return err
	}
	// A connection for each call: a member that was killed leaves none behind.
	m.client = &http.Client{Transport: &http.Transport{DialContext: m.port.Dial, DisableKeepAlives: true}}
	at := func(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
	self := m.port.Addr().String()
	m.Peer, m.Gossip, m.Ops = at(self, 9101), at(self, 9102), at(self, 9103)
	if m.Role == Node {
		m.Mirror, m.Hub, m.Proxy = at("127.0.0.1", 9104), at("127.0.0.1", 9105), at("127.0.0.1", 9106)
	}
	return nil
}

// Client reaches the member from its own machine.
func (m *Member) Client() *http.Client { return m.client }

// ProcessID is the ID of a running member's process.
func (m *Member) ProcessID() int { return m.process.ID() }

// netns is the namespace that the member runs in, empty on loopback.
func (m *Member) netns() string {
	if m.port == nil {
		return ""
	}
	return m.port.Path()
}

// token gets a join token for a member from the scheduler.
func (c *Cluster) token(m *Member) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	out, err := process.Run(ctx, process.Spec{
		Name: "token", Path: c.Scheduler.program, Args: c.Scheduler.tokenArgs(m.Role), Dir: m.Dir,
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(m.Dir, "token"), []byte(strings.TrimSpace(out)+"\n"), 0o600); err != nil {
		return fmt.Errorf("keep join token: %w", err)
	}
	return nil
}

// Start starts a member that is not running and waits until it is ready.
func (m *Member) Start(ctx context.Context) error {
	if err := m.Launch(); err != nil {
		return err
	}
	return m.Ready(ctx)
}

// Ready waits until a running member says that it is ready: it serves clients
// and has joined its cluster.
func (m *Member) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return m.process.Ready(ctx, process.AnswersBy(m.client, "http://"+m.Ops+"/readyz?strict"))
}

// Launch starts a member that is not running and does not wait.
func (m *Member) Launch() error {
	p, err := process.Start(process.Spec{Name: m.Name, Path: m.program, Args: m.args, Env: m.env, Dir: m.Dir, Netns: m.netns()})
	if err != nil {
		return err
	}
	m.process = p
	return nil
}

// Wait waits until a running member ends by itself. It returns nil when that was
// with code 0.
func (m *Member) Wait(ctx context.Context) error {
	err := m.process.Wait(ctx)
	m.process = nil
	return err
}

// Running tells whether the member was started and neither stopped nor killed since.
func (m *Member) Running() bool { return m.process != nil }

// Program is the file of the program that the member runs.
func (m *Member) Program() string { return m.program }

// Signal sends a signal to a running member.
func (m *Member) Signal(sig os.Signal) error { return m.process.Signal(sig) }

// Log is the last lines of what the member has written, over all its starts.
func (m *Member) Log(lines int) string {
	return process.Tail(filepath.Join(m.Dir, m.Name+".log"), lines)
}

// Stop ends a member by SIGTERM; it errs when it does not exit with code 0.
func (m *Member) Stop() error {
	if m.process == nil {
		return nil
	}
	p := m.process
	m.process = nil
	return p.Stop(stopTimeout)
}

// Kill ends a member by SIGKILL.
func (m *Member) Kill() {
	if m.process != nil {
		m.process.Kill()
		m.process = nil
	}
}

// Members are all members, the schedulers last.
func (c *Cluster) Members() []*Member { return slices.Concat(c.Nodes, c.Seeds, c.Schedulers) }

// Close ends every member that runs by SIGTERM. The error joins those of members
// that did not exit with code 0 in time.
func (c *Cluster) Close() error {
	members := c.Members()
	errs := make([]error, len(members))
	var wait sync.WaitGroup
	for i, m := range members {
		wait.Go(func() { errs[i] = m.Stop() })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// Logs is the end of what each member has written.
func (c *Cluster) Logs(lines int) string {
	var out strings.Builder
	for _, m := range c.Members() {
		fmt.Fprintf(&out, "--- %s\n%s\n", m.Name, m.Log(lines))
	}
	return out.String()
}
