package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// envMounts tells a process of these tests that it has mounts of its own.
const envMounts = "DAMSELFLY_E2E_MOUNTS"

// ownMounts runs the calling test again, in a process whose mounts are its own, and
// tells that process from this one: true there. What it mounts ends with it, however
// it ends, and so do the loop devices of those mounts. The directories that it makes
// are below one of this process's.
func ownMounts(t *testing.T) bool {
	t.Helper()
	if os.Getenv(envMounts) != "" {
		return true
	}
	dir := directory(t)
	out, err := again(deadline(t), t, dir).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("the test in a mount namespace of its own: %v", err)
	}
	checkNoLoops(t, dir)
	return false
}

// again is the command that runs the calling test in a process with mounts of its own.
func again(ctx context.Context, t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	which := "^" + t.Name() + "$"
	if _, rows, ok := strings.Cut(flag.Lookup("test.run").Value.String(), "/"); ok { // of one row, the same row
		which += "/" + rows
	}
	cmd := exec.CommandContext(ctx, self, "-test.run="+which, "-test.v=true", "-test.count=1", "-test.parallel=16")
	cmd.Env = append(os.Environ(), envMounts+"=1", "TMPDIR="+dir)
	// Go makes the mounts private to it, so that none shows outside.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// checkNoLoops checks that no loop device has a file below dir. The kernel takes one
// apart a moment after the last of its mounts.
func checkNoLoops(t *testing.T, dir string) {
	t.Helper()
	eventually(t, func(context.Context) error {
		if left := loops(t, dir); len(left) > 0 {
			return fmt.Errorf("loop devices are left: %s", left)
		}
		return nil
	})
}

// loops lists the files below dir that loop devices have.
func loops(t *testing.T, dir string) (files []string) {
	t.Helper()
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, name := range names {
		// One that goes in the meantime is gone.
		if file, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(file), dir+"/") {
			files = append(files, strings.TrimSpace(string(file)))
		}
	}
	return files
}

// TestMountsEndWithTheirProcess kills a process that has mounted a disk: neither the
// mount nor its loop device is left.
func TestMountsEndWithTheirProcess(t *testing.T) {
	if os.Getenv(envMounts) != "" {
		newDisk(t, "ext4")
		<-t.Context().Done() // until it is killed
		return
	}
	dir := directory(t)
	cmd := again(deadline(t), t, dir)
	must(t, cmd.Start())
	eventually(t, func(context.Context) error {
		if len(loops(t, dir)) == 0 {
			return fmt.Errorf("process %d has no disk yet", cmd.Process.Pid)
		}
		return nil
	})
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	if strings.Contains(string(mounts), dir) {
		t.Errorf("its mounts are seen from outside:\n%s", mounts)
	}
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		t.Error("it ended by itself")
	}
	checkNoLoops(t, dir)
}

// disk is a file system of its own, in a file.
type disk struct{ at string }

// newDisk makes a disk and mounts it until the test ends, in a process with mounts of
// its own only. options are those of mkfs.
func newDisk(t *testing.T, fs string, options ...string) disk {
	t.Helper()
	dir := directory(t)
	d, file := disk{filepath.Join(dir, "disk")}, filepath.Join(dir, "file")
	must(t, os.Mkdir(d.at, 0o755))
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, 400<<20)) // XFS takes no less than 300 MiB
	run(t, "mkfs."+fs, append(options, "-q", file)...)
	run(t, "mount", "-o", "loop", file, d.at)
	t.Cleanup(func() { must(t, unix.Unmount(d.at, 0)) })
	return d
}

// bind mounts a directory in another place until the test ends, and returns that
// place.
func bind(t *testing.T, from string, readOnly bool) string {
	t.Helper()
	at := filepath.Join(directory(t), filepath.Base(from))
	must(t, os.Mkdir(at, 0o755))
	mount(t, from, at, readOnly)
	return at
}

// mount mounts a directory over another until the test ends.
func mount(t *testing.T, from, at string, readOnly bool) {
	t.Helper()
	must(t, unix.Mount(from, at, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(at, 0)) })
	if readOnly {
		must(t, unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	}
}

// used is how many bytes of the disk are taken, once all is written.
func (d disk) used(t *testing.T) int64 {
	t.Helper()
	f, err := os.Open(d.at)
	must(t, err)
	defer f.Close()
	must(t, unix.Syncfs(int(f.Fd())))
	var st unix.Statfs_t
	must(t, unix.Fstatfs(int(f.Fd()), &st))
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// run runs a program and returns what it writes.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(deadline(t), program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s\nThis needs loop devices and the kernel's XFS, Btrfs and ext4.", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}
