// Package client drives real container runtimes for the end-to-end tests:
// containerd 1.6 and 2.x, dockerd, podman and skopeo. Each pull starts a fresh
// runtime with state of its own, in its own mount and PID namespaces, so that
// nothing of it outlives the pull and nothing on the machine is changed.
package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Programs are the files of the runtimes. Containerd2 is containerd 2.x, built
// from a pinned module; the others come from Debian packages.
type Programs struct {
	Containerd, Ctr, Dockerd, Podman, Skopeo string

	Containerd2 string
}

// Node is where a node of Damselfly, or what stands in for it, listens.
type Node struct {
	// Mirror is the URL of the registry mirror, Hub that of the mirror that stands
	// for Docker Hub alone, Proxy that of the HTTPS proxy.
	Mirror, Hub, Proxy string
	// CAFile is the certificate that the proxy's certificates chain to.
	CAFile string
}

// User is a user of the registry; the zero User is anonymous.
type User struct{ Name, Password string }

// Pull says what to pull.
type Pull struct {
	// Dir is the pull's own directory.
	Dir  string
	Node Node
	// Registry is the registry's name in image names, Repository and Tag the
	// image in it. Clients that know only Docker Hub ask for
	// docker.io/Repository instead.
	Registry, Repository, Tag string
	User                      User
	// CAFile is the certificate of whoever signed those of the registry and its token
	// realm, to which clients go themselves; the client's machine trusts it.
	CAFile string
	// Then is called while containerd still runs and has the image, with its root
	// directory; nil for nothing.
	Then func(root string) error
	// Archive is the file that DockerLoad takes the image from.
	Archive string
}

// Image is the image's name.
func (p Pull) Image() string { return p.Registry + "/" + p.Repository + ":" + p.Tag }

// mirrorHost is host:port of the mirror.
func (p Pull) mirrorHost() string { return strings.TrimPrefix(p.Node.Mirror, "http://") }

// Arrived is what a runtime says it has after a pull; a field that it does not
// tell is empty.
type Arrived struct {
	// Index is the digest that the tag named.
	Index string
	// Manifest is the digest of this machine's manifest, Config of its config.
	Manifest, Config string
	// Took is how long the pull itself took, without the start of the runtime; only
	// containerd's ctr tells it.
	Took time.Duration
}

// Client is one way to pull an image.
type Client struct {
	// Name names the client in test names.
	Name string
	// Hub tells that the client's mirror setting serves Docker Hub names only.
	Hub bool
	// Docker tells that the client is given images with Docker's media types.
	Docker bool
	// Anonymous tells that the client sends no credentials this way: a mirror that
	// serves every registry has no challenge for the ping with which
	// containers/image begins, and nothing makes it answer a later one.
	Anonymous bool
	// Pull pulls with a fresh runtime.
	Pull func(context.Context, Pull) (Arrived, error)
}

// All is every client.
func All(p Programs) []Client {
	return []Client{
		{Name: "containerd-1.6", Pull: p.ctr16},
		{Name: "containerd-1.6-cri", Pull: p.cri16},
		{Name: "containerd-2-chunked", Pull: p.cri2},
		{Name: "docker-mirror", Hub: true, Docker: true, Pull: p.dockerMirror},
		{Name: "docker-proxy", Docker: true, Pull: p.dockerProxy},
		{Name: "podman-mirror", Anonymous: true, Pull: p.podmanMirror},
		{Name: "podman-proxy", Pull: p.podmanProxy},
		{Name: "skopeo-mirror", Anonymous: true, Pull: p.skopeoMirror},
		{Name: "skopeo-proxy", Pull: p.skopeoProxy},
	}
}

// namespace is the shell commands that give a runtime a /run of its own, empty,
// and a changeable copy of /etc, in which the registry's name leads nowhere but
// to this machine's closed port 443.
func (p Pull) namespace(more ...string) []string {
	return append([]string{
		"mount -t tmpfs tmpfs /run",
		"mkdir /run/etc /run/work /run/lock",
		"mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work /etc",
		"echo 127.0.0.1 " + p.Registry + " >>/etc/hosts",
	}, more...)
}

// trust is the commands that make Docker's or containers/image's directory dir
// trust the proxy for the registry.
func (p Pull) trust(dir string) []string {
	certs := filepath.Join(dir, "certs.d", p.Registry)
	return []string{"mkdir -p " + certs, "cp " + p.Node.CAFile + " " + filepath.Join(certs, "ca.crt")}
}

// env is the environment of everything that belongs to the client. Its programs are
// Go's, which take the system's trusted certificates from this file.
func (p Pull) env(more ...string) []string {
	if p.CAFile != "" {
		more = append(more, "SSL_CERT_FILE="+p.CAFile)
	}
	return more
}

// write writes a file of the pull and returns its path.
func (p Pull) write(name, content string) (string, error) {
	file := filepath.Join(p.Dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", fmt.Errorf("set up client: %w", err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		return "", fmt.Errorf("set up client: %w", err)
	}
	return file, nil
}

// authFile writes a credentials file with the user for the registry, empty for
// the anonymous user.
func (p Pull) authFile() (string, error) {
	auths := map[string]any{}
	if p.User.Name != "" {
		auths[p.Registry] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(p.User.Name + ":" + p.User.Password))}
	}
	content, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		return "", fmt.Errorf("set up client: %w", err)
	}
	return p.write("auth.json", string(content))
}
