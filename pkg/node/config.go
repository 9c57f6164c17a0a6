package node

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/damselfly-p2p/damselfly/pkg/origin"
	"github.com/damselfly-p2p/damselfly/pkg/proxy"
)

// Config is everything that a node or a seed can be told. DefaultConfig holds
// values that work on one machine.
type Config struct {
	DataDir   string           `yaml:"dataDir" doc:"Directory for the node's key, its certificate and the store. One node uses it at a time. Put it on the disk that has room for images; losing it costs a new join and the cached blobs, nothing else."`
	Scheduler Addresses        `yaml:"scheduler" doc:"host:port of the schedulers, with commas between; a name may have several addresses. One that answers is enough: it names the others, and this node attends them all. Naming more lets a node start while some are down. Empty: this node works by itself, as a cache in front of the registries, and exchanges nothing."`
	JoinToken config.Redacted  `yaml:"joinToken" doc:"Join token from 'scheduler token create', needed once: the certificate that it buys renews itself. Better kept in a file, see joinTokenFile."`
	TokenFile string           `yaml:"joinTokenFile" file:"read" doc:"File with the join token. Read at each start, and again when the node must join anew."`
	Mirror    MirrorConfig     `yaml:"mirror" doc:"Where container runtimes find this node as a registry mirror."`
	Proxy     ProxyConfig      `yaml:"proxy" doc:"The HTTP proxy face, and how all faces treat their clients."`
	Peer      PeerConfig       `yaml:"peer" doc:"The exchange of pieces with other nodes."`
	Limits    LimitsConfig     `yaml:"limits" live:"true" doc:"Most bytes a second that this node moves: in bits (800mbit) or bytes (100MB), 0 = no limit. Bytes that clients wait for go first. A change takes effect at once: in the file, within seconds or at SIGHUP; no restart is needed."`
	Store     StoreConfig      `yaml:"store" doc:"How much of the disk blobs may take, and how they are looked after."`
	Topology  TopologyConfig   `yaml:"topology" doc:"Where this node stands, so that pieces come from near."`
	Origin    origin.Config    `yaml:"origin" doc:"How registries and other servers are reached."`
	Log       config.Log       `yaml:"log" doc:"What is logged, and how."`
	Ops       config.OpsConfig `yaml:"ops" doc:"Where operators see how this node is."`
	Grace     config.Duration  `yaml:"grace" doc:"How long a stopping node lets running responses and uploads finish. Shorter restarts faster and makes clients resume elsewhere."`
}

// MirrorConfig says where the registry face listens.
type MirrorConfig struct {
	Listen     string           `yaml:"listen" doc:"Address of the registry mirror for containerd, CRI-O and podman. Keep it on loopback: whoever reaches it can pull what this node may pull without a credential. Empty turns it off."`
	DockerHub  string           `yaml:"dockerHubListen" doc:"Address of a second mirror face that stands for Docker Hub alone, for dockerd's registry-mirrors. Empty turns it off."`
	Registries []RegistryConfig `yaml:"registries" doc:"Further mirror faces, each for one registry. podman, skopeo and CRI-O need one for a private registry, or one with a port in its name: they learn from its first answer how to log in."`
}

// RegistryConfig is a mirror face that stands for one registry.
type RegistryConfig struct {
	Name   string `yaml:"name" doc:"Registry name as image references spell it, such as registry.example.com:5000."`
	Listen string `yaml:"listen" doc:"Address of its face, such as 127.0.0.1:65004. Clients look for credentials under this address."`
}

func (c MirrorConfig) validate() error {
	var errs []error
	for i, r := range c.Registries {
		setting := fmt.Sprintf("mirror.registries[%d]", i)
		if _, err := origin.ParseRegistry(r.Name); err != nil {
			errs = append(errs, fmt.Errorf("%s.name: %w", setting, err))
		}
		if r.Listen == "" {
			errs = append(errs, fmt.Errorf("%s.listen is empty; name an address, such as 127.0.0.1:65004", setting))
		}
		errs = append(errs, config.CheckAddress(setting+".listen", r.Listen))
	}
	return errors.Join(errs...)
}

// ProxyConfig says where the HTTP proxy face listens, and how all faces behave.
type ProxyConfig struct {
	Listen       string `yaml:"listen" doc:"Address of the HTTP(S) proxy face for dockerd's HTTPS_PROXY. Keep it on loopback. Empty turns it off."`
	proxy.Config `yaml:",inline"`
}

// PeerConfig says how other nodes reach this one and how much it gives them.
type PeerConfig struct {
	Listen        string `yaml:"listen" doc:"Address of the piece exchange with other nodes. They must be able to reach it; they need a certificate of this cluster."`
	Advertise     string `yaml:"advertise" doc:"host or host:port that other nodes use for it. Empty: the address that this machine uses towards the scheduler, with the port of listen."`
	UploadSlots   int    `yaml:"uploadSlots" doc:"Runs of pieces sent to other nodes at a time. Two keep a line full; more make every transfer slower."`
	DownloadSlots int    `yaml:"downloadSlots" doc:"Runs of pieces fetched at a time. Two keep a line full."`
}

// LimitsConfig bounds what a node moves.
type LimitsConfig struct {
	Upload   config.Rate `yaml:"upload" doc:"Sent to other nodes, who share it alike. Lower leaves more of the line to what else runs here, and makes pulls of the whole cluster slower."`
	Download config.Rate `yaml:"download" doc:"Read from other nodes and from origins together."`
	Origin   config.Rate `yaml:"origin" doc:"Read from origins. Manifests, pushes and tunnels do not count. The seed's counts for the cluster: it reads what all wait for."`
}

// StoreConfig bounds the store and says how it is looked after.
type StoreConfig struct {
	MaxBytes   config.Bytes    `yaml:"maxBytes" doc:"Most bytes of blobs kept; the least recently used go first. 0 means no limit but the disk's."`
	Share      string          `yaml:"share" doc:"Root directory of a containerd on the same file system, such as /var/lib/containerd. What it pulls is then on the disk once instead of twice, counts nothing against maxBytes, and what it has from elsewhere, images built or imported here too, is given to other nodes that know its digest. It and dataDir must be below one mount: a container gets one directory that both are below, such as the host's /var/lib, not a mount for each, which only XFS and Btrfs can share between. damselfly_cache_kept_twice tells when they cannot. Empty: nothing is shared."`
	KeepFree   int             `yaml:"keepFree" doc:"Percent of the disk's bytes and inodes to leave to others: where less is free, blobs that nobody uses go, least recently used first. Pulls are never refused for it; of a blob that the disk is too small for, what this leaves room for is kept. The default is where a kubelet begins to evict pods; 0 lets the disk fill."`
	MaxAge     config.Duration `yaml:"maxAge" doc:"Give up blobs that nobody used for so long, such as 30d. 0 keeps them until room is needed."`
	ScrubRate  config.Bytes    `yaml:"scrubRate" doc:"Bytes a second that are read from the disk and proven again in the background, so that rot is found before somebody reads it. More finds it sooner and takes more of the disk. 0 turns it off."`
	ScrubEvery config.Duration `yaml:"scrubEvery" doc:"How long after one pass over all blobs began the next one begins."`
}

// TopologyConfig says where this node stands. Pieces come from near nodes first.
type TopologyConfig struct {
	Region string `yaml:"region" doc:"Region of this node, such as eu-west-1. Names are compared, nothing else."`
	Zone   string `yaml:"zone" doc:"Zone within the region."`
	Rack   string `yaml:"rack" doc:"Rack within the zone."`
}

func (c StoreConfig) validate() error {
	if c.KeepFree < 0 || c.KeepFree > 90 {
		return fmt.Errorf("store.keepFree is %d; it is a percentage from 0 to 90", c.KeepFree)
	}
	if c.MaxAge < 0 || c.ScrubEvery < 0 {
		return errors.New("store.maxAge and store.scrubEvery must not be below zero")
	}
	if c.Share != "" && !filepath.IsAbs(c.Share) {
		return fmt.Errorf("store.share is %q, which is no absolute path; name containerd's root directory, such as /var/lib/containerd", c.Share)
	}
	return nil
}

// DefaultConfig is a node's configuration where nothing else is said.
func DefaultConfig() Config {
	return Config{
		DataDir: "/var/lib/damselfly",
		Mirror:  MirrorConfig{Listen: "127.0.0.1:65001"},
		Proxy:   ProxyConfig{Config: proxy.DefaultConfig()},
		Peer:    PeerConfig{Listen: ":65010", UploadSlots: 2, DownloadSlots: 2},
		Store:   StoreConfig{KeepFree: 10, ScrubRate: 8 << 20, ScrubEvery: 7 * 24 * time.Hour},
		Origin:  origin.DefaultConfig(),
		Log:     config.DefaultLog(),
		Ops:     config.OpsConfig{Listen: "127.0.0.1:65011"},
		Grace:   30e9,
	}
}

// named are the registries that the configuration names beside origin.hosts.
func (c Config) named() []string {
	out := append([]string{c.Proxy.DefaultRegistry}, c.Proxy.Intercept...)
	for _, r := range c.Mirror.Registries {
		out = append(out, r.Name)
	}
	return out
}

// DefaultSeedConfig is a seed's: it has no clients of its own and more to give.
func DefaultSeedConfig() Config {
	c := DefaultConfig()
	c.DataDir = "/var/lib/damselfly-seed"
	c.Mirror.Listen = ""
	c.Peer.Listen = ":65020"
	c.Peer.UploadSlots, c.Peer.DownloadSlots = 4, 8
	c.Ops.Listen = "127.0.0.1:65021"
	return c
}

// Validate says what is wrong with c, and what to do.
func (c Config) Validate() error {
	var errs []error
	if c.DataDir == "" {
		errs = append(errs, errors.New("dataDir is empty; name a directory that this process may write"))
	}
	errs = append(errs, c.Scheduler.validate())
	if c.JoinToken != "" && c.TokenFile != "" {
		errs = append(errs, errors.New("joinToken and joinTokenFile are both set; keep one"))
	}
	if len(c.Scheduler) > 0 && c.Peer.Listen == "" {
		errs = append(errs, errors.New("peer.listen is empty although a scheduler is set; other nodes need it to read from this one"))
	}
	for _, a := range []struct{ setting, addr string }{
		{"mirror.listen", c.Mirror.Listen}, {"mirror.dockerHubListen", c.Mirror.DockerHub}, {"proxy.listen", c.Proxy.Listen},
		{"peer.listen", c.Peer.Listen},
	} {
		errs = append(errs, config.CheckAddress(a.setting, a.addr))
	}
	errs = append(errs, c.Mirror.validate())
	if c.Peer.UploadSlots < 1 || c.Peer.UploadSlots > 1024 || c.Peer.DownloadSlots < 1 || c.Peer.DownloadSlots > 1024 {
		errs = append(errs, errors.New("peer.uploadSlots and peer.downloadSlots must be 1 to 1024"))
	}
	errs = append(errs, c.Limits.validate())
	if len(c.Proxy.Intercept) > 0 && c.Proxy.Listen == "" {
		errs = append(errs, errors.New("proxy.intercept is set but proxy.listen is not; set it, such as 127.0.0.1:65003"))
	}
	errs = append(errs, c.Store.validate())
	if c.Grace < 0 {
		errs = append(errs, errors.New("grace is below zero"))
	}
	return errors.Join(errs...)
}
