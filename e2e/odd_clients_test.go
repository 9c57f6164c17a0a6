package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/odd"
	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// oddClient is a real program: script below testdata/odd pulls with it.
type oddClient struct {
	name, script string
	env          []string
	// mirror tells that it is told of the node by hosts.toml, instead of HTTPS_PROXY.
	mirror bool
	config string // of containerd
}

func oddClients(l lab) []oddClient {
	tool := func(name string) string { return filepath.Join(filepath.Dir(l.Registry), name) }
	return []oddClient{
		{name: "containerd-1.6", script: "containerd.sh", env: []string{"CONTAINERD=" + l.Containerd, "CTR=" + l.Ctr}, mirror: true,
			config: "version = 2\n[plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"DIR/opt\"\n"},
		{name: "containerd-2", script: "containerd.sh", env: []string{"CONTAINERD=" + l.Containerd2, "CTR=" + tool("ctr")}, mirror: true,
			config: "version = 3\n[plugins.'io.containerd.internal.v1.opt']\n  path = 'DIR/opt'\n" +
				"[plugins.'io.containerd.transfer.v1.local']\n  config_path = 'DIR/certs.d'\n  concurrent_layer_fetch_buffer = 8388608\n"},
		{name: "dockerd", script: "docker.sh", env: []string{"DOCKERD=" + l.Dockerd}},
		{name: "podman", script: "podman.sh", env: []string{"PODMAN=" + l.Podman}},
		{name: "skopeo", script: "skopeo.sh", env: []string{"SKOPEO=" + l.Skopeo}},
		{name: "crane", script: "crane.sh", env: []string{"CRANE=" + tool("crane"), "ARCH=" + runtime.GOARCH}},
		{name: "curl", script: "curl.sh"},
	}
}

// TestOddClients pulls from one registry of each kind with real programs, directly and
// through a node: whatever comes directly comes through the node.
func TestOddClients(t *testing.T) {
	rows := []string{
		"healthy", "head-manifest-404", "head-blob-403", "head-blob-signed", "head-manifest-length-half", "head-digest-former", "chunked",
		"close-delimited", "layer-size-plus", "config-size-half", "child-type-differs", "gzip-manifests", "gzip-blobs", "slow-get-manifest",
		"slow-first-byte-4", "fails-cut-once", "redirect-blob-307", "redirect-unlisted", "range-416", "no-digest", "etag-weak",
	}
	behaviours := slices.DeleteFunc(odd.Behaviours(), func(b odd.Behaviour) bool { return !slices.Contains(rows, b.Name) })
	registries := alone(t, behaviours)
	behaviours = slices.Concat(registries...)
	world := startOdd(t, registries, cluster.Config{Nodes: 1, Alone: true})
	l := programs(t)
	all := oddClients(l)
	found := make([][]odd.Verdict, len(all))
	var group errgroup.Group
	group.SetLimit(3)
	for i, c := range all {
		group.Go(func() (err error) {
			found[i], err = c.compare(t, world, behaviours)
			return err
		})
	}
	must(t, group.Wait())
	judgeOdd(t, slices.Concat(found...))
}

// compare pulls from each behaviour directly and through the node.
func (c oddClient) compare(t *testing.T, world oddWorld, behaviours []odd.Behaviour) ([]odd.Verdict, error) {
	direct, _, err := c.pull(t, world, behaviours, "direct")
	if err != nil {
		return nil, err
	}
	through, dir, err := c.pull(t, world, behaviours, "node")
	if err != nil {
		return nil, err
	}
	var out []odd.Verdict
	for _, b := range behaviours {
		v := odd.Verdict{Behaviour: b.Name, Client: c.name}
		if strings.HasPrefix(direct[b.Name], "ok") && !strings.HasPrefix(through[b.Name], "ok") {
			v.Worse = []string{process.Tail(filepath.Join(dir, b.Name+".log"), 5)}
		}
		t.Logf("%s %s: directly %s, through the node %s", c.name, b.Name, direct[b.Name], through[b.Name])
		out = append(out, v)
	}
	if strings.HasPrefix(direct["healthy"], "failed") {
		return nil, fmt.Errorf("%s cannot pull from a healthy registry directly", c.name)
	}
	return out, nil
}

// pull runs the client once for all behaviours, and returns its results by name.
func (c oddClient) pull(t *testing.T, world oddWorld, behaviours []odd.Behaviour, by string) (map[string]string, string, error) {
	dir := directory(t)
	node := world.Nodes[0]
	var images, bundle strings.Builder
	for i, b := range behaviours {
		_, port, _ := strings.Cut(world.Registries[i].Host, ":")
		fmt.Fprintf(&images, "%s %s:%s/%s/%s-%s:v1\n", b.Name, oddName, port, b.Name, c.name, by)
	}
	for _, ca := range []string{world.CAFile, node.CAFile} {
		content, err := os.ReadFile(ca)
		if err != nil {
			return nil, "", err
		}
		bundle.Write(content)
	}
	files := map[string]string{
		"images": images.String(), "ca.crt": bundle.String(), "daemon.json": "{}",
		"containerd.toml": strings.ReplaceAll(c.config, "DIR", dir),
	}
	env := append([]string{"DIR=" + dir, "IMAGES=" + filepath.Join(dir, "images"), "SSL_CERT_FILE=" + filepath.Join(dir, "ca.crt")}, c.env...)
	switch {
	case by == "node" && c.mirror:
		files["certs.d/_default/hosts.toml"] = "server = \"http://127.0.0.1:1\"\n[host.\"" + node.Mirror + "\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
	case by == "node":
		env = append(env, "HTTPS_PROXY="+node.Proxy)
	}
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return nil, "", err
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			return nil, "", err
		}
	}
	scripts, err := filepath.Abs("testdata/odd")
	if err != nil {
		return nil, "", err
	}
	out, err := process.Run(deadline(t), process.Spec{
		Name: c.name, Path: "/bin/sh", Args: []string{filepath.Join(scripts, "each.sh"), filepath.Join(scripts, c.script)}, Dir: dir, Env: env,
		Mounts: []string{
			"mount -t tmpfs tmpfs /run", "mkdir /run/etc /run/work /run/lock",
			"mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work /etc",
			"echo 127.0.0.1 " + oddName + " >>/etc/hosts",
		},
	})
	if err != nil {
		return nil, "", err
	}
	results := map[string]string{}
	for line := range strings.Lines(out) {
		name, result, _ := strings.Cut(strings.TrimSpace(line), " ")
		results[name] = result
	}
	return results, dir, nil
}
