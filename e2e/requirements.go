// Package e2e tests Damselfly as its users run it: real registries, real
// container runtimes, the real binaries as processes, and faults. The origin's
// own counters are the judge.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/damselfly-p2p/damselfly/e2e/client"
)

// Programs are all the files that the tests run.
type Programs struct {
	client.Programs
	// Registry and Gateway are distribution's registry and versitygw.
	Registry, Gateway string
	// Nginx stands before a registry.
	Nginx string
}

// Prepare makes the machine ready for the tests: it installs missing Debian
// packages where it may (e2e/install.sh) and builds the tools that tools/e2e
// pins. root is the repository. What was built before is used again. The error
// names everything that is missing.
func Prepare(ctx context.Context, root string) (Programs, error) {
	if err := errors.Join(needRoot(), needPackages(ctx, root, packages())); err != nil {
		return Programs{}, fmt.Errorf("the end-to-end tests cannot run here:\n%w", err)
	}
	tools := cache("tools")
	if err := build(ctx, filepath.Join(root, "tools", "e2e"), tools, nil, "tool"); err != nil {
		return Programs{}, err
	}
	p := Programs{Registry: filepath.Join(tools, "registry"), Gateway: filepath.Join(tools, "versitygw")}
	p.Containerd2 = filepath.Join(tools, "containerd")
	for program, file := range map[string]*string{
		"containerd": &p.Containerd, "ctr": &p.Ctr, "dockerd": &p.Dockerd, "podman": &p.Podman, "skopeo": &p.Skopeo,
		"nginx": &p.Nginx,
	} {
		path, err := exec.LookPath(program)
		if err != nil {
			return Programs{}, err
		}
		*file = path
	}
	return p, nil
}

// PrepareLab makes the machine ready for the swarm lab, which needs less: nsenter and
// the registry. It returns the registry's program.
func PrepareLab(ctx context.Context, root string) (registry string, err error) {
	if _, err := exec.LookPath("nsenter"); err != nil {
		return "", fmt.Errorf("the lab needs nsenter of util-linux: %w; apt-get install util-linux", err)
	}
	tools := cache("tools")
	err = build(ctx, filepath.Join(root, "tools", "e2e"), tools, nil, "github.com/distribution/distribution/v3/cmd/registry")
	return filepath.Join(tools, "registry"), err
}

// PrepareNginx returns the program of Debian's nginx, which the swarm lab compares with.
// It installs the package where it may.
func PrepareNginx(ctx context.Context, root string) (string, error) {
	if err := needPackages(ctx, root, map[string][]string{"nginx": {"nginx"}}); err != nil {
		return "", fmt.Errorf("nginx is not there and cannot be installed here:\n%w", err)
	}
	return exec.LookPath("nginx")
}

// Build builds scheduler, seed and dfget from the repository at root, with the
// race detector if race is set, and returns their directory.
func Build(ctx context.Context, root string, race bool) (string, error) {
	bin, flags := cache("bin"), []string(nil)
	if race {
		bin, flags = cache("bin-race"), []string{"-race"}
	}
	return bin, build(ctx, root, bin, flags, "./scheduler", "./seed", "./dfget")
}

// BuildRogue builds the node that misbehaves (e2e/rogue) beside what Build builds
// without the race detector, and returns its file.
func BuildRogue(ctx context.Context, root string) (string, error) {
	return filepath.Join(cache("bin"), "rogue"), build(ctx, root, cache("bin"), nil, "./e2e/rogue")
}

// cache is a directory for what is built.
func cache(name string) string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "damselfly-e2e", name)
}

// packages are the Debian packages whose programs the tests run.
func packages() map[string][]string {
	return map[string][]string{
		"containerd": {"containerd", "ctr"},
		"docker.io":  {"dockerd"},
		"runc":       {"runc"},
		"podman":     {"podman"},
		"skopeo":     {"skopeo"},
		"nginx":      {"nginx"},
		"util-linux": {"mount"},
		// Disks to share blobs on.
		"btrfs-progs": {"mkfs.btrfs", "btrfs"},
		"e2fsprogs":   {"mkfs.ext4"},
		"xfsprogs":    {"mkfs.xfs"},
	}
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("root: container runtimes mount layers; run the tests as root or in a privileged container")
	}
	return nil
}

// needPackages errs with the packages that are missing, by their programs, and could
// not be installed.
func needPackages(ctx context.Context, root string, needed map[string][]string) error {
	missing := missingPackages(needed)
	if len(missing) == 0 {
		return nil
	}
	var install error
	if _, err := exec.LookPath("apt-get"); err == nil && os.Geteuid() == 0 {
		cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{filepath.Join(root, "e2e", "install.sh")}, missing...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			install = fmt.Errorf("e2e/install.sh: %w\n%s", err, out)
		}
		missing = missingPackages(needed)
	}
	if len(missing) == 0 {
		return nil
	}
	return errors.Join(fmt.Errorf("packages: apt-get install %s", strings.Join(missing, " ")), install)
}

func missingPackages(needed map[string][]string) []string {
	var missing []string
	for name, programs := range needed {
		for _, program := range programs {
			if _, err := exec.LookPath(program); err != nil {
				missing = append(missing, name)
				break
			}
		}
	}
	slices.Sort(missing)
	return missing
}

// build builds Go packages of the module in dir into the directory out.
func build(ctx context.Context, dir, out string, flags []string, names ...string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("build %s: %w", strings.Join(names, " "), err)
	}
	args := append([]string{"build", "-o", out + string(filepath.Separator)}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, names...)...)
	cmd.Dir = dir
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s in %s: %w\n%s", strings.Join(names, " "), dir, err, output)
	}
	return nil
}
