package client

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/damselfly-p2p/damselfly/e2e/process"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// registries makes containers/image ask the mirror first. It sends a mirror no
// name of the registry, so the name is a part of the mirror's path.
const registries = `unqualified-search-registries = []
[[registry]]
prefix = "REGISTRY"
location = "REGISTRY"
[[registry.mirror]]
location = "MIRROR/REGISTRY"
insecure = true
`

const noRegistries = "unqualified-search-registries = []\n"

func (p Pull) mirrorFile() (string, error) {
	return p.write("registries.conf", strings.NewReplacer("REGISTRY", p.Registry, "MIRROR", p.mirrorHost()).Replace(registries))
}

// podmanScript pulls and inspects in the same namespaces, whose mounts hold the
// image.
const podmanScript = `set -e
podman() {
	"$PODMAN" --root "$ROOT" --runroot /run/podman --tmpdir /run/libpod \
		--storage-driver overlay --events-backend none "$@"
}
podman pull --quiet "$IMAGE" >/dev/null
podman image inspect "$IMAGE"
`

// podmanMirror pulls with podman through the mirror.
func (p Programs) podmanMirror(ctx context.Context, pull Pull) (Arrived, error) {
	conf, err := pull.mirrorFile()
	if err != nil {
		return Arrived{}, err
	}
	return p.podman(ctx, pull, conf, nil, pull.namespace())
}

// podmanProxy pulls with podman through the node's HTTPS proxy, whose CA
// containers/image trusts for the registry.
func (p Programs) podmanProxy(ctx context.Context, pull Pull) (Arrived, error) {
	conf, err := pull.write("registries.conf", noRegistries)
	if err != nil {
		return Arrived{}, err
	}
	env := []string{"HTTPS_PROXY=" + pull.Node.Proxy}
	return p.podman(ctx, pull, conf, env, pull.namespace(pull.trust("/etc/containers")...))
}

func (p Programs) podman(ctx context.Context, pull Pull, conf string, env, mounts []string) (Arrived, error) {
	auth, err := pull.authFile()
	if err != nil {
		return Arrived{}, err
	}
	root := filepath.Join(pull.Dir, "root")
	defer os.RemoveAll(root)
	out, err := process.Run(ctx, process.Spec{
		Name: "podman", Path: "/bin/sh", Args: []string{"-c", podmanScript}, Dir: pull.Dir, Mounts: mounts,
		Env: append(pull.env(env...),
			"CONTAINERS_REGISTRIES_CONF="+conf, "REGISTRY_AUTH_FILE="+auth,
			"PODMAN="+p.Podman, "ROOT="+root, "IMAGE="+pull.Image()),
	})
	if err != nil {
		return Arrived{}, err
	}
	var images []struct {
		ID     string `json:"Id"`
		Digest string
	}
	if err := json.Unmarshal([]byte(out), &images); err != nil || len(images) != 1 {
		return Arrived{}, fmt.Errorf("podman image inspect: %q: %w", out, err)
	}
	return Arrived{Index: images[0].Digest, Config: "sha256:" + images[0].ID}, nil
}

// skopeoMirror copies through the mirror to a directory.
func (p Programs) skopeoMirror(ctx context.Context, pull Pull) (Arrived, error) {
	conf, err := pull.mirrorFile()
	if err != nil {
		return Arrived{}, err
	}
	return p.skopeo(ctx, pull, conf, nil, pull.namespace())
}

// skopeoProxy copies through the node's HTTPS proxy to a directory.
func (p Programs) skopeoProxy(ctx context.Context, pull Pull) (Arrived, error) {
	conf, err := pull.write("registries.conf", noRegistries)
	if err != nil {
		return Arrived{}, err
	}
	env := []string{"HTTPS_PROXY=" + pull.Node.Proxy}
	return p.skopeo(ctx, pull, conf, env, pull.namespace(pull.trust("/etc/containers")...))
}

func (p Programs) skopeo(ctx context.Context, pull Pull, conf string, env, mounts []string) (Arrived, error) {
	auth, err := pull.authFile()
	if err != nil {
		return Arrived{}, err
	}
	dir := filepath.Join(pull.Dir, "image")
	defer os.RemoveAll(dir)
	if _, err := process.Run(ctx, process.Spec{
		Name: "skopeo", Path: p.Skopeo, Dir: pull.Dir, Env: pull.env(env...), Mounts: mounts,
		Args: []string{
			"--insecure-policy", "--registries-conf", conf, "copy", "--authfile", auth,
			"docker://" + pull.Image(), "dir:" + dir,
		},
	}); err != nil {
		return Arrived{}, err
	}
	content, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return Arrived{}, fmt.Errorf("skopeo copy: %w", err)
	}
	return Arrived{Manifest: sample.Digest(content)}, nil
}
