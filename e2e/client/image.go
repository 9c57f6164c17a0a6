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

// registries makes containers/image ask the mirror first.
const registries = `unqualified-search-registries = []
[[registry]]
prefix = "REGISTRY"
location = "REGISTRY"
[[registry.mirror]]
location = "MIRROR"
insecure = true
`

const noRegistries = "unqualified-search-registries = []\n"

func (p Pull) mirrorFile(mirror string) (string, error) {
	return p.write("registries.conf", strings.NewReplacer("REGISTRY", p.Registry, "MIRROR", mirror).Replace(registries))
}

// named is the mirror of every registry: containers/image sends no name of the
// registry, so the name is a part of the path.
func (p Pull) named() string { return p.mirrorHost() + "/" + p.Registry }

// faceHost is host:port of the mirror for the pull's registry alone. Its credentials
// are looked for under this name.
func (p Pull) faceHost() string { return strings.TrimPrefix(p.Node.Face, "http://") }

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
	return p.podmanBy(ctx, pull, pull.named(), pull.Registry)
}

// podmanFace is podmanMirror through the mirror for the registry alone.
func (p Programs) podmanFace(ctx context.Context, pull Pull) (Arrived, error) {
	return p.podmanBy(ctx, pull, pull.faceHost(), pull.faceHost())
}

func (p Programs) podmanBy(ctx context.Context, pull Pull, mirror, login string) (Arrived, error) {
	conf, err := pull.mirrorFile(mirror)
	if err != nil {
		return Arrived{}, err
	}
	return p.podman(ctx, pull, conf, login, nil, pull.namespace())
}

// podmanProxy pulls with podman through the node's HTTPS proxy, whose CA
// containers/image trusts for the registry.
func (p Programs) podmanProxy(ctx context.Context, pull Pull) (Arrived, error) {
	conf, err := pull.write("registries.conf", noRegistries)
	if err != nil {
		return Arrived{}, err
	}
	env := []string{"HTTPS_PROXY=" + pull.Node.Proxy}
	return p.podman(ctx, pull, conf, pull.Registry, env, pull.namespace(pull.trust("/etc/containers")...))
}

func (p Programs) podman(ctx context.Context, pull Pull, conf, login string, env, mounts []string) (Arrived, error) {
	auth, err := pull.authFile(login)
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
	return p.skopeoBy(ctx, pull, pull.named(), pull.Registry)
}

// skopeoFace is skopeoMirror through the mirror for the registry alone.
func (p Programs) skopeoFace(ctx context.Context, pull Pull) (Arrived, error) {
	return p.skopeoBy(ctx, pull, pull.faceHost(), pull.faceHost())
}

func (p Programs) skopeoBy(ctx context.Context, pull Pull, mirror, login string) (Arrived, error) {
	conf, err := pull.mirrorFile(mirror)
	if err != nil {
		return Arrived{}, err
	}
	return p.skopeo(ctx, pull, conf, login, nil, pull.namespace())
}

// skopeoProxy copies through the node's HTTPS proxy to a directory.
func (p Programs) skopeoProxy(ctx context.Context, pull Pull) (Arrived, error) {
	conf, err := pull.write("registries.conf", noRegistries)
	if err != nil {
		return Arrived{}, err
	}
	env := []string{"HTTPS_PROXY=" + pull.Node.Proxy}
	return p.skopeo(ctx, pull, conf, pull.Registry, env, pull.namespace(pull.trust("/etc/containers")...))
}

func (p Programs) skopeo(ctx context.Context, pull Pull, conf, login string, env, mounts []string) (Arrived, error) {
	auth, err := pull.authFile(login)
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
