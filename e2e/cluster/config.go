package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// What the binaries are called with and what their files say stands in this file
// alone.

// envTrace names the file that schedulers append the events of their core to, for
// looking into what was decided and why.
const envTrace = "DAMSELFLY_E2E_TRACE"

// Role is what a member of a cluster is.
type Role string

// The roles.
const (
	Scheduler Role = "scheduler"
	Seed      Role = "seed"
	Node      Role = "node"
)

// command is how a member is started.
func (m *Member) command() (program string, args []string) {
	switch m.Role {
	case Scheduler:
		return "scheduler", []string{"serve", "--config", m.File}
	case Seed:
		return "seed", []string{"--config", m.File}
	default:
		return "dfget", []string{"daemon", "--config", m.File}
	}
}

// tokenArgs is how the scheduler is asked for a join token of a role.
func (m *Member) tokenArgs(role Role) []string {
	return []string{"token", "create", "--config", m.File, "--role", string(role)}
}

type schedulerFile struct {
	StateDir  string   `yaml:"stateDir"`
	Trace     string   `yaml:"trace,omitempty"`
	Listen    string   `yaml:"listen"`
	Gossip    listener `yaml:"gossip,omitempty"`
	Join      []string `yaml:"join,omitempty"`
	CAFrom    string   `yaml:"joinCluster,omitempty"`
	TokenFile string   `yaml:"joinTokenFile,omitempty"`
	Log       logFile  `yaml:"log"`
	Ops       listener `yaml:"ops"`
}

// scheduler writes a scheduler's file. Of several, each but the first is told of the
// first alone, and gets the CA from it.
func (c *Cluster) scheduler(m *Member, log logFile) error {
	file := schedulerFile{StateDir: m.DataDir, Trace: os.Getenv(envTrace), Listen: m.Peer, Log: log, Ops: listener{m.Ops}}
	if c.cfg.Schedulers > 1 {
		var err error
		if m.Gossip == "" {
			if m.Gossip, err = process.FreeAddr(); err != nil {
				return err
			}
		}
		m.Trace = filepath.Join(m.Dir, "trace")
		file.Gossip, file.Trace = listener{m.Gossip}, m.Trace
	}
	if c.Scheduler != nil {
		file.Join, file.CAFrom, file.TokenFile = []string{c.Scheduler.Gossip}, c.Scheduler.Peer, filepath.Join(m.Dir, "token")
	}
	return write(m.File, file)
}

type nodeFile struct {
	DataDir   string     `yaml:"dataDir"`
	Scheduler string     `yaml:"scheduler"`
	TokenFile string     `yaml:"joinTokenFile"`
	Mirror    mirrorFile `yaml:"mirror"`
	Proxy     proxyFile  `yaml:"proxy"`
	Peer      listener   `yaml:"peer"`
	Store     storeFile  `yaml:"store,omitempty"`
	Origin    originFile `yaml:"origin"`
	Log       logFile    `yaml:"log"`
	Ops       listener   `yaml:"ops"`
	Grace     string     `yaml:"grace"`
}

type listener struct {
	Listen string `yaml:"listen"`
}

type storeFile struct {
	Share    string `yaml:"share,omitempty"`
	KeepFree *int   `yaml:"keepFree,omitempty"` // percent of the disk
}

type logFile struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

type mirrorFile struct {
	Listen     string     `yaml:"listen"`
	DockerHub  string     `yaml:"dockerHubListen"`
	Registries []faceFile `yaml:"registries,omitempty"`
}

type faceFile struct {
	Name   string `yaml:"name"`
	Listen string `yaml:"listen"`
}

type proxyFile struct {
	Listen    string   `yaml:"listen"`
	Intercept []string `yaml:"intercept,omitempty"`
}

type originFile struct {
	Hosts []Host   `yaml:"hosts"`
	Allow []string `yaml:"allow"`
	Proxy string   `yaml:"proxy"`
}

// configure gives a member the addresses that it lacks and writes its file.
func (c *Cluster) configure(m *Member) error {
	m.File = filepath.Join(m.Dir, "config.yaml")
	store := storeFile{Share: m.Share}
	if m.DataDir == "" {
		m.DataDir = filepath.Join(m.Dir, "data")
		store.KeepFree = new(int) // all share one disk, and what else fills it is not theirs
	}
	want := []*string{&m.Ops, &m.Peer}
	if m.Role == Node {
		want = append(want, &m.Mirror, &m.Hub, &m.Proxy, &m.Face)
	}
	for _, addr := range want {
		if *addr != "" {
			continue
		}
		var err error
		if *addr, err = process.FreeAddr(); err != nil {
			return err
		}
	}
	log := logFile{Level: c.cfg.LogLevel, Format: "console"}
	if log.Level == "" {
		log.Level = "info"
	}
	if m.Role == Scheduler {
		return c.scheduler(m, log)
	}
	file := nodeFile{
		DataDir: m.DataDir,
		Peer:    listener{m.Peer},
		Store:   store,
		// The registries' front, their bucket and their token realm are on loopback.
		Origin: originFile{Hosts: c.cfg.Hosts, Allow: []string{"127.0.0.0/8"}, Proxy: "none"},
		Log:    log,
		Ops:    listener{m.Ops},
		Grace:  "5s",
	}
	if c.Scheduler != nil {
		file.Scheduler, file.TokenFile = c.Scheduler.Peer, filepath.Join(m.Dir, "token")
	}
	if m.Role == Node {
		file.Mirror = mirrorFile{Listen: host(m.Mirror), DockerHub: host(m.Hub)}
		if c.cfg.Face != "" {
			file.Mirror.Registries = []faceFile{{c.cfg.Face, host(m.Face)}}
		}
		file.Proxy = proxyFile{Listen: host(m.Proxy), Intercept: c.cfg.Intercept}
		m.Mirror, m.Hub, m.Proxy = "http://"+host(m.Mirror), "http://"+host(m.Hub), "http://"+host(m.Proxy)
		m.Face = "http://" + host(m.Face)
		m.CAFile = filepath.Join(m.DataDir, "proxy-ca", "ca.crt")
	}
	return write(m.File, file)
}

// host is the host:port of a URL, or of what is one already.
func host(url string) string { return strings.TrimPrefix(url, "http://") }

func write(file string, v any) error {
	content, err := yaml.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}
