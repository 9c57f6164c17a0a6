package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/e2e/client"
	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// sharing is a node and a runtime on a disk of their own.
type sharing struct {
	t      *testing.T
	disk   disk
	origin *origin.Origin
	node   *cluster.Member
	// runtime is the runtime's root directory as it sees it itself.
	runtime string
}

// place says where a node finds its data and the runtime's root, which are both on d.
type place func(t *testing.T, d disk) (data, root string)

func oneMount(_ *testing.T, d disk) (data, root string) {
	return filepath.Join(d.at, "damselfly"), filepath.Join(d.at, "containerd")
}

// twoMounts is a pod with a volume for each.
func twoMounts(t *testing.T, d disk) (data, root string) {
	data, root = oneMount(t, d)
	return bind(t, data, false), bind(t, root, false)
}

// readOnly is twoMounts where the node may only read the runtime's.
func readOnly(t *testing.T, d disk) (data, root string) {
	data, root = oneMount(t, d)
	return bind(t, data, false), bind(t, root, true)
}

// covered is one mount of the disk, and another over the runtime's root in it.
func covered(t *testing.T, d disk) (data, root string) {
	all := disk{bind(t, d.at, false)}
	data, root = oneMount(t, all)
	_, outside := oneMount(t, d)
	mount(t, outside, root, true)
	return data, root
}

// elsewhere has the node's data on another disk.
func elsewhere(t *testing.T, d disk) (data, root string) {
	_, root = oneMount(t, d)
	return filepath.Join(newDisk(t, "xfs").at, "damselfly"), root
}

// startSharing starts a node on a new disk, alone with the origin.
func startSharing(t *testing.T, o *origin.Origin, where place, fs string, options ...string) *sharing {
	t.Helper()
	s := &sharing{t: t, disk: newDisk(t, fs, options...), origin: o}
	data, root := oneMount(t, s.disk)
	s.runtime = root
	must(t, os.Mkdir(data, 0o755))
	must(t, os.MkdirAll(filepath.Join(content(root), "sha256"), 0o700))
	data, root = where(t, s.disk)
	c := startConfig(t, o, cluster.Config{Alone: true})
	s.node = startSharer(t, c, "sharer", filepath.Dir(data), root)
	return s
}

// ours and theirs are the repositories of an image that comes through the node, and
// of one that only the runtime has.
func (s *sharing) ours() string   { return "ours/" + name(s.t) }
func (s *sharing) theirs() string { return "theirs/" + name(s.t) }

// commit puts blobs into the runtime's store as containerd does.
func (s *sharing) commit(blobs ...sample.Blob) {
	s.t.Helper()
	for _, b := range blobs {
		ingest := filepath.Join(filepath.Dir(content(s.runtime)), "ingest")
		must(s.t, os.WriteFile(ingest, b.Data, 0o600))
		must(s.t, os.Chmod(ingest, 0o444))
		must(s.t, os.Rename(ingest, s.path(b)))
	}
}

func (s *sharing) path(b sample.Blob) string {
	return filepath.Join(content(s.runtime), "sha256", strings.TrimPrefix(b.Digest, "sha256:"))
}

// shares waits until exactly n bytes are shared.
func (s *sharing) shares(n int64) {
	s.t.Helper()
	eventually(s.t, func(ctx context.Context) error {
		if got := gauge(ctx, s.t, s.node, "damselfly_cache_shared_bytes"); got != float64(n) {
			return fmt.Errorf("%v bytes are shared, want %d", got, n)
		}
		return nil
	})
}

// takes waits until the disk has no more than n bytes taken above base: it may have
// the room of a deleted file back a moment later.
func (s *sharing) takes(what string, base, n int64) {
	s.t.Helper()
	eventually(s.t, func(context.Context) error {
		took := s.disk.used(s.t) - base
		if ratio := float64(took) / float64(n); ratio > 1.02 {
			return fmt.Errorf("%s: %d bytes of disk are used, %.3f times one copy", what, took, ratio)
		}
		s.t.Logf("%s: %.3f times one copy", what, float64(took)/float64(n))
		return nil
	})
}

// pulls pulls an image through the node and checks it and what the origin sent of its
// layers.
func (s *sharing) pulls(img *sample.Image, repository string, sent int64) {
	s.t.Helper()
	before := s.origin.Counts().Bytes(layerDigests(img)...)
	pullAll(s.t, s.origin, []*cluster.Member{s.node}, img, repository)
	if got := s.origin.Counts().Bytes(layerDigests(img)...) - before; got != sent {
		s.t.Errorf("the origin sent %d bytes, want %d", got, sent)
	}
}

// blobs are what a runtime keeps of an image.
func blobs(img *sample.Image) []sample.Blob {
	return append([]sample.Blob{img.Native.Config}, img.Native.Layers...)
}

func size(blobs []sample.Blob) (n int64) {
	for _, b := range blobs {
		n += b.Size()
	}
	return n
}

// TestShareDisks has a node share with a runtime on each file system in each place
// where it can: bytes are on the disk once, whoever had them first.
func TestShareDisks(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	o := startOrigin(t, origin.Token, false)
	for _, row := range []struct {
		fs, name string
		where    place
		cloned   bool
	}{
		{"ext4", "one-mount", oneMount, false},
		{"xfs", "one-mount", oneMount, false},
		{"btrfs", "one-mount", oneMount, false},
		{"xfs", "two-mounts", twoMounts, true},
		{"btrfs", "two-mounts", twoMounts, true},
		{"xfs", "read-only", readOnly, true},
		{"btrfs", "read-only", readOnly, true},
		{"xfs", "covered", covered, true},
		{"btrfs", "subvolumes", subvolumes, true},
	} {
		t.Run(row.fs+"-"+row.name, func(t *testing.T) {
			t.Parallel()
			s := startSharing(t, o, row.where, row.fs)
			layers := []int64{12 << 10, 16 << 20}
			s.follow(push(t, o, s.ours(), layers, sample.OCI), push(t, o, s.theirs(), layers, sample.OCI), row.cloned)
		})
	}
}

// subvolumes has a Btrfs subvolume for each of the two. They have no hard links between
// them, and different device numbers.
func subvolumes(t *testing.T, d disk) (data, root string) {
	data, root = oneMount(t, d)
	must(t, os.Remove(data))
	run(t, "btrfs", "subvolume", "create", data)
	return data, root
}

// follow is what a node and a runtime live through together: ours comes through the
// node, theirs does not.
func (s *sharing) follow(ours, theirs *sample.Image, cloned bool) {
	t := s.t
	base := s.disk.used(t)
	one := size(blobs(ours))
	s.pulls(ours, s.ours(), ours.Native.LayerBytes())
	s.commit(blobs(ours)...)
	s.shares(one)
	s.takes("in place of ours", base, one)
	s.checkFiles(ours, cloned)

	base, one = s.disk.used(t), one+size(blobs(theirs))
	s.commit(blobs(theirs)...)
	s.shares(one)
	s.takes("adopted", base, size(blobs(theirs)))
	s.checkFiles(theirs, cloned)
	s.pulls(theirs, s.theirs(), 0)

	// What is shared outlives a kill, and is not taken for new.
	s.node.Kill()
	must(t, s.node.Start(deadline(t)))
	s.shares(one)
	s.pulls(ours, s.ours(), 0)
	s.pulls(theirs, s.theirs(), 0)
	checkContent(t, s.runtime)

	// The runtime gets a blob anew, as its own file.
	layer := largest(ours)
	must(t, os.Remove(s.path(layer)))
	s.commit(layer)
	s.takes("got anew", base-layer.Size(), layer.Size()+size(blobs(theirs)))
	s.checkFiles(ours, cloned)

	// Root writes into a file of the runtime's. Of a hard link that is ours too.
	layer = largest(theirs)
	s.spoil(layer)
	var again int64
	if !cloned {
		again = layer.Size()
	}
	s.pulls(theirs, s.theirs(), again)

	// The runtime lets go of everything: what came through the node stays.
	must(t, os.RemoveAll(filepath.Join(content(s.runtime), "sha256")))
	s.shares(0)
	s.pulls(ours, s.ours(), 0)
	if count := strings.Count(s.node.Log(1000), "has not the bytes"); count > 1 {
		t.Errorf("a spoilt file is told of %d times", count)
	}
}

// checkFiles waits until the node's file of each blob is a clone of the runtime's or,
// where it can be, a hard link to it.
func (s *sharing) checkFiles(img *sample.Image, cloned bool) {
	s.t.Helper()
	for _, b := range blobs(img) {
		hex := strings.TrimPrefix(b.Digest, "sha256:")
		eventually(s.t, func(context.Context) error {
			ours, err := os.Stat(filepath.Join(s.node.DataDir, "store", "v1", "sha256", hex[:2], hex))
			if err != nil {
				return err
			}
			theirs, err := os.Stat(s.path(b))
			must(s.t, err)
			if os.SameFile(ours, theirs) == cloned || !ours.ModTime().Equal(theirs.ModTime()) {
				return fmt.Errorf("%s: one file %v, want %v; of %s and %s, want one time", hex, os.SameFile(ours, theirs), !cloned, ours.ModTime(), theirs.ModTime())
			}
			return nil
		})
	}
}

// spoil changes a byte of the runtime's file of a blob.
func (s *sharing) spoil(b sample.Blob) {
	f, err := os.OpenFile(s.path(b), os.O_RDWR, 0)
	must(s.t, err)
	_, err = f.WriteAt([]byte{b.Data[100] ^ 1}, 100)
	must(s.t, err)
	must(s.t, f.Close())
}

// TestCannotShare has the two where they cannot share: the node keeps its copies, says
// once which mounts are in the way and what to do, and leaves it at that.
func TestCannotShare(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	o := startOrigin(t, origin.Token, false)
	const common = "mount one directory that both are below instead"
	for _, row := range []struct {
		name    string
		where   place
		fs      string
		options []string
		says    string
	}{
		{"ext4-two-mounts", twoMounts, "ext4", nil, common},
		{"ext4-read-only", readOnly, "ext4", nil, common},
		{"ext4-covered", covered, "ext4", nil, common},
		{"xfs-without-reflink", twoMounts, "xfs", []string{"-m", "reflink=0"}, common},
		{"another-disk", elsewhere, "ext4", nil, "two file systems"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := startSharing(t, o, row.where, row.fs, row.options...)
			ours, theirs := push(t, o, s.ours(), sample.Small(), sample.OCI), push(t, o, s.theirs(), sample.Small(), sample.OCI)
			s.pulls(ours, s.ours(), ours.Native.LayerBytes())
			s.commit(append(blobs(ours), blobs(theirs)...)...)
			eventually(t, func(ctx context.Context) error {
				if gauge(ctx, t, s.node, "damselfly_cache_kept_twice") != 1 {
					return fmt.Errorf("it is not told that blobs are kept twice")
				}
				return nil
			})
			s.shares(0)
			s.pulls(ours, s.ours(), 0)
			s.commit(theirs.Native.Blob)
			must(t, s.node.Stop())
			data, root := s.node.DataDir, s.node.Share
			log := s.node.Log(1000)
			if n := strings.Count(log, "kept twice on this machine"); n != 1 {
				t.Errorf("said %d times", n)
			}
			for _, want := range []string{row.says, mountPoint(t, data), mountPoint(t, root)} {
				if !strings.Contains(log, want) {
					t.Errorf("the log does not say %q:\n%s", want, log)
				}
			}
			if left, _ := filepath.Glob(filepath.Join(data, "store", "v1", "share", "*")); len(left) > 0 {
				t.Errorf("left behind: %s", left)
			}
			checkContent(t, s.runtime)
			must(t, s.node.Start(deadline(t)))
			s.pulls(ours, s.ours(), 0)
		})
	}
}

// mountPoint is the mount that a directory is on, as findmnt knows it.
func mountPoint(t *testing.T, dir string) string {
	t.Helper()
	return strings.TrimSpace(run(t, "findmnt", "-n", "-o", "TARGET", "--target", dir))
}

// TestShareContainerd shares with a containerd that unpacks layers on the same disk,
// from a mount of the node's own.
func TestShareContainerd(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	o := startOrigin(t, origin.Token, false)
	for _, fs := range []string{"xfs", "btrfs"} {
		for _, runtime := range containerds(t) {
			t.Run(fs+"-"+runtime.Name, func(t *testing.T) {
				repository := "app/" + name(t)
				img := push(t, o, repository, sample.Medium(), sample.OCI)
				d := newDisk(t, fs)
				pull := client.Pull{
					Dir: filepath.Join(d.at, "containerd"), Node: client.Node{Mirror: o.URL}, CAFile: o.CAFile, User: reader(),
					Registry: registry, Repository: repository, Tag: "v1",
				}
				pull.Then = func(string) error {
					data := filepath.Join(d.at, "damselfly")
					must(t, os.Mkdir(data, 0o755))
					data = bind(t, data, false)
					root := filepath.Join(bind(t, pull.Dir, true), filepath.Base(pull.Root()))
					s := &sharing{t: t, disk: d, origin: o, runtime: pull.Root()}
					one, base := diskUsed(t, content(pull.Root())), d.used(t)-diskUsed(t, content(pull.Root()))
					s.node = startSharer(t, startConfig(t, o, cluster.Config{Alone: true}), "sharer", filepath.Dir(data), root)
					s.checkFiles(img, true)
					s.takes("adopted", base, one)
					s.pulls(img, repository, 0)
					checkContent(t, pull.Root())
					return nil
				}
				start := time.Now()
				arrived, err := runtime.Pull(deadline(t), pull)
				must(t, err)
				t.Logf("%.1f s", time.Since(start).Seconds())
				checkArrived(t, img, arrived)
			})
		}
	}
}
