package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/damselfly-p2p/damselfly/e2e/client"
	"github.com/damselfly-p2p/damselfly/e2e/cluster"
	"github.com/damselfly-p2p/damselfly/e2e/origin"
	"github.com/damselfly-p2p/damselfly/e2e/sample"
)

// TestShare pulls with containerds whose disk the node shares: once they have
// committed the image, it is on the disk once.
func TestShare(t *testing.T) {
	o := startOrigin(t, origin.Token, false)
	c := startCluster(t, o, 1, 1)
	for _, runtime := range containerds(t) {
		t.Run(runtime.Name, func(t *testing.T) {
			repository := "app/" + name(t)
			img := push(t, o, repository, sample.Medium(), sample.OCI)
			dir := directory(t)
			pull := client.Pull{
				Dir: filepath.Join(dir, "runtime"), CAFile: o.CAFile, User: reader(), Registry: registry, Repository: repository, Tag: "v1",
			}
			node := startSharer(t, c, runtime.Name, dir, pull.Root())
			pull.Node = client.Node{Mirror: node.Mirror}
			pull.Then = func(root string) error {
				eventually(t, func(context.Context) error {
					one, both := diskUsed(t, content(root)), diskUsed(t, content(root), node.DataDir)
					ratio := float64(both) / float64(one)
					if one < img.Native.LayerBytes() || ratio > 1.02 {
						return fmt.Errorf("%d bytes of disk are used, %.3f times the runtime's own copy", both, ratio)
					}
					t.Logf("%.3f times one copy", ratio)
					return nil
				})
				checkContent(t, root)
				// What is shared is what other nodes get.
				pullAll(t, o, c.Nodes, img, repository)
				pullAll(t, o, []*cluster.Member{node}, img, repository)
				return nil
			}
			arrived, err := runtime.Pull(deadline(t), pull)
			must(t, err)
			checkArrived(t, img, arrived)
			checkOriginPaidOnce(t, o, img)
		})
	}
}

// TestAdopt starts a node beside a containerd that pulled an image straight from
// the origin: other nodes get the image from there, and nothing from the origin.
// When containerd is gone, so is what its node kept for others.
func TestAdopt(t *testing.T) {
	for _, runtime := range containerds(t) {
		t.Run(runtime.Name, func(t *testing.T) {
			o := startOrigin(t, origin.Token, false)
			img := push(t, o, "app/img", sample.Medium(), sample.OCI)
			dir := directory(t)
			pull := client.Pull{
				Dir: filepath.Join(dir, "runtime"), Node: client.Node{Mirror: o.URL}, CAFile: o.CAFile, User: reader(),
				Registry: registry, Repository: "app/img", Tag: "v1",
			}
			var holder *cluster.Member
			pull.Then = func(root string) error {
				c := startCluster(t, o, 0, 1)
				before := o.Counts()
				holder = startSharer(t, c, "holder", dir, root)
				eventually(t, func(ctx context.Context) error {
					if n, want := gauge(ctx, t, c.Scheduler, "damselfly_blobs"), float64(len(img.Native.Layers)+3); n < want {
						return fmt.Errorf("the scheduler knows of %v blobs, want the image's %v", n, want)
					}
					return nil
				})
				pullAll(t, o, c.Nodes, img, "app/img")
				after := o.Counts()
				digests := append(layerDigests(img), img.Native.Config.Digest)
				if got := after.Bytes(digests...) - before.Bytes(digests...); got != 0 {
					t.Errorf("the origin sent %d bytes of what a node had from its runtime", got)
				}
				if ratio := float64(diskUsed(t, content(root), holder.DataDir)) / float64(diskUsed(t, content(root))); ratio > 1.02 {
					t.Errorf("%.3f times the runtime's own copy are on the disk", ratio)
				}
				checkContent(t, root)
				return os.RemoveAll(filepath.Join(content(root), "sha256"))
			}
			_, err := runtime.Pull(deadline(t), pull)
			must(t, err)
			eventually(t, func(ctx context.Context) error {
				if n := gauge(ctx, t, holder, "damselfly_cache_shared_bytes"); n != 0 {
					return fmt.Errorf("%v bytes are still shared", n)
				}
				return nil
			})
			if used := diskUsed(t, holder.DataDir); used > 1<<20 {
				t.Errorf("%d bytes are left of what only the runtime had", used)
			}
		})
	}
}

// containerds are containerd 1.6 by its own tool and containerd 2 as the kubelet
// uses it.
func containerds(t *testing.T) []client.Client {
	t.Helper()
	all := client.All(programs(t).Programs.Programs)
	return slices.DeleteFunc(all, func(c client.Client) bool { return c.Name != "containerd-1.6" && c.Name != "containerd-2-chunked" })
}

// startSharer starts a further node of c with its data below dir, where the
// containerd with the given root directory is too.
func startSharer(t *testing.T, c *cluster.Cluster, name, dir, root string) *cluster.Member {
	t.Helper()
	m, err := c.New(cluster.Member{Name: name, Role: cluster.Node, DataDir: filepath.Join(dir, "damselfly"), Share: root})
	must(t, err)
	must(t, m.Start(deadline(t)))
	t.Cleanup(func() {
		must(t, m.Stop())
		if t.Failed() {
			t.Logf("log of %s:\n%s", m.Name, m.Log(60))
		}
	})
	return m
}

func content(root string) string {
	return filepath.Join(root, "io.containerd.content.v1.content", "blobs")
}

// diskUsed is what all files below some directories take, each counted once.
func diskUsed(t *testing.T, dirs ...string) (bytes int64) {
	t.Helper()
	seen := map[uint64]bool{}
	for _, dir := range dirs {
		must(t, filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
			var st syscall.Stat_t
			if err == nil {
				err = syscall.Lstat(name, &st)
			}
			if os.IsNotExist(err) {
				return nil // a file that was there a moment ago
			}
			if err == nil && !seen[st.Ino] {
				seen[st.Ino] = true
				bytes += st.Blocks * 512
			}
			return err
		}))
	}
	return bytes
}

// checkContent checks that each of containerd's files is as containerd wrote it.
func checkContent(t *testing.T, root string) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(content(root), "sha256"))
	must(t, err)
	if len(files) == 0 {
		t.Error("containerd has no files")
	}
	for _, f := range files {
		info, err := f.Info()
		must(t, err)
		data, err := os.ReadFile(filepath.Join(content(root), "sha256", f.Name()))
		must(t, err)
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != f.Name() || info.Mode() != 0o444 {
			t.Errorf("containerd's file %s has mode %v and the digest %x", f.Name(), info.Mode(), sum)
		}
	}
}

// gauge is the value of a member's gauge without labels.
func gauge(ctx context.Context, t *testing.T, m *cluster.Member, name string) float64 {
	t.Helper()
	families, err := m.Metrics(ctx)
	must(t, err)
	metrics := families[name].GetMetric()
	if len(metrics) != 1 {
		t.Fatalf("%s has %d metrics %s", m.Name, len(metrics), name)
	}
	return metrics[0].GetGauge().GetValue()
}
