package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/process"
)

// grace is how long a runtime may take to end.
const grace = 20 * time.Second

const config16 = `version = 2
[plugins."io.containerd.internal.v1.opt"]
  path = "DIR/opt"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "DIR/certs.d"
`

// The size of the fetch buffer is what switches on chunked fetching.
const config2 = `version = 3
[plugins.'io.containerd.internal.v1.opt']
  path = 'DIR/opt'
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = 'DIR/certs.d'
[plugins.'io.containerd.transfer.v1.local']
  config_path = 'DIR/certs.d'
  concurrent_layer_fetch_buffer = 8388608
`

// hosts makes containerd ask the node first. The registry itself leads nowhere, so
// nothing arrives but through the node.
const hosts = `server = "http://127.0.0.1:1"
[host."MIRROR"]
  capabilities = ["pull", "resolve"]
`

// containerd runs use with the socket of a fresh containerd.
func (p Pull) containerd(ctx context.Context, program, config string, use func(socket string) error) (err error) {
	if _, err := p.write("certs.d/"+p.Registry+"/hosts.toml",
		strings.ReplaceAll(hosts, "MIRROR", p.Node.Mirror)); err != nil {
		return err
	}
	file, err := p.write("containerd.toml", strings.ReplaceAll(config, "DIR", p.Dir))
	if err != nil {
		return err
	}
	socket := filepath.Join(p.Dir, "c.sock")
	daemon, err := process.Start(process.Spec{
		Name: "containerd", Path: program, Dir: p.Dir, Env: p.env(), Mounts: p.namespace(),
		Args: []string{
			"--config", file, "--address", socket,
			"--root", p.Root(), "--state", filepath.Join(p.Dir, "state"),
		},
	})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, daemon.Stop(grace), os.RemoveAll(p.Root()))
	}()
	if err := daemon.Ready(ctx, listens(socket)); err != nil {
		return err
	}
	if err := use(socket); err != nil || p.Then == nil {
		return err
	}
	return p.Then(p.Root())
}

// Root is the root directory of the pull's containerd.
func (p Pull) Root() string { return filepath.Join(p.Dir, "root") }

// listens checks that a unix socket accepts connections.
func listens(socket string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// ctr16 pulls with containerd 1.6 by its own tool.
func (p Programs) ctr16(ctx context.Context, pull Pull) (Arrived, error) {
	var out Arrived
	err := pull.containerd(ctx, p.Containerd, config16, func(socket string) error {
		ctr := func(args ...string) (string, error) {
			return process.Run(ctx, process.Spec{
				Name: "ctr", Path: p.Ctr, Dir: pull.Dir, Env: pull.env(),
				Args: append([]string{"--address", socket}, args...),
			})
		}
		args := []string{"images", "pull", "--hosts-dir", filepath.Join(pull.Dir, "certs.d")}
		if pull.User.Name != "" {
			args = append(args, "--user", pull.User.Name+":"+pull.User.Password)
		}
		start := time.Now()
		if _, err := ctr(append(args, pull.Image())...); err != nil {
			return err
		}
		out.Took = time.Since(start)
		list, err := ctr("images", "list", "name=="+pull.Image())
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(list), "\n")
		if fields := strings.Fields(lines[len(lines)-1]); len(fields) > 2 && fields[0] == pull.Image() {
			out.Index = fields[2]
			return nil
		}
		return fmt.Errorf("the pulled image is not listed:\n%s", list)
	})
	return out, err
}

// cri16 pulls with containerd 1.6 as the kubelet does.
func (p Programs) cri16(ctx context.Context, pull Pull) (Arrived, error) {
	return pull.cri(ctx, p.Containerd, config16)
}

// cri2 pulls with containerd 2, which fetches layers in chunks, as the kubelet
// does.
func (p Programs) cri2(ctx context.Context, pull Pull) (Arrived, error) {
	return pull.cri(ctx, p.Containerd2, config2)
}

func (p Pull) cri(ctx context.Context, program, config string) (Arrived, error) {
	var out Arrived
	err := p.containerd(ctx, program, config, func(socket string) error {
		service, err := dialCRI(socket)
		if err != nil {
			return err
		}
		defer service.Close()
		if err := service.pull(ctx, p.Image(), p.User); err != nil {
			return err
		}
		out, err = service.status(ctx, p.Image())
		return err
	})
	return out, err
}
