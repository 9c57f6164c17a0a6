package client

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// dockerMirror pulls with dockerd's registry-mirrors, which serve Docker Hub
// names.
func (p Programs) dockerMirror(ctx context.Context, pull Pull) (Arrived, error) {
	pull.Registry = "docker.io"
	config := map[string]any{"registry-mirrors": []string{pull.Node.Hub}}
	// Nothing but the mirror: Docker Hub itself is behind a proxy that is not there.
	env := []string{"HTTPS_PROXY=http://127.0.0.1:1"}
	return p.docker(ctx, pull, config, env, pull.namespace())
}

// dockerProxy pulls with dockerd through the node's HTTPS proxy, whose CA
// dockerd trusts for the registry.
func (p Programs) dockerProxy(ctx context.Context, pull Pull) (Arrived, error) {
	env := []string{"HTTPS_PROXY=" + pull.Node.Proxy}
	return p.docker(ctx, pull, map[string]any{}, env, pull.namespace(pull.trust("/etc/docker")...))
}

func (p Programs) docker(ctx context.Context, pull Pull, config map[string]any, env, mounts []string) (out Arrived, err error) {
	content, err := json.Marshal(config)
	if err != nil {
		return Arrived{}, fmt.Errorf("set up dockerd: %w", err)
	}
	file, err := pull.write("daemon.json", string(content))
	if err != nil {
		return Arrived{}, err
	}
	socket := filepath.Join(pull.Dir, "d.sock")
	root := filepath.Join(pull.Dir, "root")
	daemon, err := process.Start(process.Spec{
		Name: "dockerd", Path: p.Dockerd, Dir: pull.Dir, Env: pull.env(env...), Mounts: mounts,
		Args: []string{
			"--config-file", file, "--host", "unix://" + socket, "--pidfile", filepath.Join(pull.Dir, "pid"),
			"--data-root", root, "--exec-root", filepath.Join(pull.Dir, "x"),
			"--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2",
		},
	})
	if err != nil {
		return Arrived{}, err
	}
	defer func() { err = errors.Join(err, daemon.Stop(grace), os.RemoveAll(root)) }()
	if err := daemon.Ready(ctx, listens(socket)); err != nil {
		return Arrived{}, err
	}
	api := dockerAPI{&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
	if pull.Archive != "" {
		err = api.load(ctx, pull)
	} else {
		err = api.pull(ctx, pull)
	}
	if err != nil {
		return Arrived{}, err
	}
	return api.status(ctx, pull)
}

// DockerLoad has a fresh dockerd take an image from the archive, as docker load
// does.
func (p Programs) DockerLoad(ctx context.Context, pull Pull) (Arrived, error) {
	return p.docker(ctx, pull, map[string]any{}, nil, pull.namespace())
}

func (d dockerAPI) load(ctx context.Context, pull Pull) error {
	f, err := os.Open(pull.Archive)
	if err != nil {
		return fmt.Errorf("docker load: %w", err)
	}
	defer f.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker/v1.41/images/load", f)
	if err != nil {
		return fmt.Errorf("docker load: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-tar")
	body, err := d.do(req)
	if err != nil {
		return fmt.Errorf("docker load: %w", err)
	}
	return progressError("docker load", body)
}

// dockerAPI is dockerd's own API.
type dockerAPI struct{ *http.Client }

func (d dockerAPI) pull(ctx context.Context, pull Pull) error {
	auth := map[string]string{}
	if pull.User.Name != "" {
		auth = map[string]string{"username": pull.User.Name, "password": pull.User.Password, "serveraddress": pull.Registry}
	}
	header, err := json.Marshal(auth)
	if err != nil {
		return fmt.Errorf("docker pull: %w", err)
	}
	query := url.Values{"fromImage": {pull.Registry + "/" + pull.Repository}, "tag": {pull.Tag}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker/v1.41/images/create?"+query.Encode(), nil)
	if err != nil {
		return fmt.Errorf("docker pull: %w", err)
	}
	req.Header.Set("X-Registry-Auth", base64.URLEncoding.EncodeToString(header))
	body, err := d.do(req)
	if err != nil {
		return fmt.Errorf("docker pull %s: %w", pull.Image(), err)
	}
	return progressError("docker pull "+pull.Image(), body)
}

// progressError is the error in a body of progress messages, if there is one.
func progressError(what string, body []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(body))
	for {
		var progress struct{ Error string }
		if err := decoder.Decode(&progress); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if progress.Error != "" {
			return fmt.Errorf("%s: %s", what, progress.Error)
		}
	}
}

func (d dockerAPI) status(ctx context.Context, pull Pull) (Arrived, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/v1.41/images/"+pull.Image()+"/json", nil)
	if err != nil {
		return Arrived{}, fmt.Errorf("docker inspect: %w", err)
	}
	body, err := d.do(req)
	if err != nil {
		return Arrived{}, fmt.Errorf("docker inspect: %w", err)
	}
	var image struct {
		ID          string `json:"Id"`
		RepoDigests []string
	}
	if err := json.Unmarshal(body, &image); err != nil {
		return Arrived{}, fmt.Errorf("docker inspect: %w", err)
	}
	out := Arrived{Config: image.ID}
	for _, name := range image.RepoDigests {
		_, out.Index, _ = strings.Cut(name, "@")
	}
	return out, nil
}

func (d dockerAPI) do(req *http.Request) ([]byte, error) {
	resp, err := d.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", resp.Status, body)
	}
	return body, nil
}
